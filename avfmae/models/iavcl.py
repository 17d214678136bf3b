"""Iterative audio-visual correlations learning, the fusion (AVF-MAE++ §3.4, eqs. 8–16).

Two DiER units let the modalities interact while a joint feature is refined beside them; HAFE then gathers the units'
outputs and feeds the joint feature back. Shapes: B batch, N video and M audio tokens (or either), J joint tokens, C width.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

import avfmae_kernels as K
from avfmae.config import ModelConfig
from avfmae.models.attention import MLP, CrossAttention, DropsBranches, Linear, SelfAttention, add_norm, layer_norm
from avfmae.models.cross import cross_blocks, read_each_other
from avfmae.models.interfaces import Fusion
from avfmae.world import world_size

RELEASED_UNIT = {  # the parts of a DiER unit in the released files, of video and of audio
    "norm": ("norm3", "norm3_1"),
    "self_norm": ("norm1", "norm_new"),
    "self_attn": ("attn", "attn_new"),
    "self_mlp_norm": ("norm_vsa", "norm_asa"),
    "self_mlp": ("mlp_vsa", "mlp_asa"),
    "cross_norm": ("cross_norm1", "cross_norm1_a"),
    "context_norm": ("cross_norm2", "cross_norm2_a"),
    "cross_attn": ("cross_attn", "cross_attn_a"),
    "cross_mlp_norm": ("norm_vcma", "norm_acma"),
    "cross_mlp": ("mlp_vcma", "mlp_acma"),
    "self_gate": ("lv1", "la1"),
    "cross_gate": ("lv2", "la2"),
}


class GatedInteraction(DropsBranches):
    """One modality's half of a DiER unit: a self and a cross branch from the same input, weighed by learned gates."""

    def __init__(self, width: int, heads: int, drop: float):
        super().__init__(drop)
        self.self_norm, self.self_attn = layer_norm(width), SelfAttention(width, heads)
        self.self_mlp_norm, self.self_mlp = layer_norm(width), MLP(width)
        self.cross_norm, self.context_norm = layer_norm(width), layer_norm(width)
        self.cross_attn = CrossAttention(width, heads)
        self.cross_mlp_norm, self.cross_mlp = layer_norm(width), MLP(width)
        self.self_gate, self.cross_gate = Linear(2 * width, width), Linear(2 * width, width)
        self.norm = layer_norm(width)

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        """x (B, N, C), other (B, M, C) -> (B, N, C)."""
        s, branch = self.self_attn(x, None, self.self_norm)
        s, branch = self.self_mlp(s, self.dropped(branch), self.self_mlp_norm)
        s = s + self.dropped(branch)
        c, branch = self.cross_attn(x, None, self.cross_norm, other, self.context_norm)
        c, branch = self.cross_mlp(c, self.dropped(branch), self.cross_mlp_norm)
        c = c + self.dropped(branch)
        z = torch.cat([s, c], dim=-1)
        gated = K.gated_sum(self.self_gate(z), s, self.cross_gate(z), c)  # eq. 9
        return add_norm(gated, None, self.norm)[1]


class BatchNorm(nn.BatchNorm1d):
    """BatchNorm1d over all processes of a data-parallel run (torch's SyncBatchNorm has no CPU form).

    A frozen one keeps its running statistics, and normalises by them in training too.
    """

    frozen = False

    def train(self, mode: bool = True) -> "BatchNorm":
        return super().train(mode and not self.frozen)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, J)
        if not (self.training and world_size() > 1):
            if self.training and x.shape[0] * x.shape[2] == 1:
                raise ValueError(
                    "optim.total_batch, optim.micro_batch: got one clip a pass, expected 2 or more, of which the fusion's "
                    "normalisation takes batch statistics"
                )
            if self.weight.dtype == self.running_mean.dtype:
                return super().forward(x)
            weight, bias = self.weight.float(), self.bias.float()  # gathered in another dtype than the statistics, to evaluate
            return F.batch_norm(x.float(), self.running_mean, self.running_var, weight, bias, eps=self.eps).to(x.dtype)
        from torch.distributed.nn.functional import all_reduce

        count = x.new_tensor([x.shape[0] * x.shape[2]], dtype=torch.float32)
        sums = torch.cat([x.float().sum((0, 2)), x.float().square().sum((0, 2)), count])
        sums = all_reduce(sums)
        n, (total, squares) = sums[-1], sums[:-1].chunk(2)
        mean = total / n
        var = squares / n - mean.square()
        with torch.no_grad():
            self.num_batches_tracked += 1
            # torch's None: the mean over all batches
            momentum = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(var * n / (n - 1), momentum)
        scale = self.weight * (var + self.eps).rsqrt()
        return x * scale[:, None] + (self.bias - mean * scale)[:, None]


class EvolutionaryRefinement(nn.Module):
    """The joint feature reads each modality by single-head attention without projections (eqs. 12, 13)."""

    def __init__(self, width: int):
        super().__init__()
        self.proj = Linear(2 * width, width)
        self.audio, self.video = (nn.Sequential(nn.Conv1d(width, width, 1), BatchNorm(width), nn.PReLU()) for _ in range(2))
        self.norm = layer_norm(width)

    def forward(self, joint: Tensor, video: Tensor, audio: Tensor) -> Tensor:
        """joint (B, J, C), or (B, J, 2C) on first use -> (B, J, C)."""
        if joint.shape[-1] == self.proj.in_features:
            joint = self.proj(joint)
        read = self.residual(self.audio, joint, audio) + self.residual(self.video, joint, video)
        return add_norm(joint, read, self.norm)[1]

    @staticmethod
    def residual(layers: nn.Sequential, joint: Tensor, tokens: Tensor) -> Tensor:
        conv, norm, activation = layers
        attention = (joint @ tokens.mT * joint.shape[-1] ** -0.5).softmax(dim=-1)
        y = K.linear(attention @ tokens, conv.weight.squeeze(-1), conv.bias)  # a kernel of one place
        # contiguous: torch's batch norm of anything else has other strides than a compiler is told
        return activation(norm(y.mT.contiguous())).mT.contiguous()


class UnitAggregation(DropsBranches):
    """One modality's half of HAFE: each token's outputs of all units attend to each other and are summed by learned weights."""

    def __init__(self, width: int, heads: int, drop: float):
        super().__init__(drop)
        self.attn_norm, self.attn = layer_norm(width), SelfAttention(width, heads)
        self.mlp_norm, self.mlp = layer_norm(width), MLP(width)
        self.weight = Linear(width, 1)
        self.feedback_norm = layer_norm(width)
        self.feedback_mlp_norm, self.feedback_mlp = layer_norm(width), MLP(width)

    def aggregate(self, units: list[Tensor]) -> Tensor:
        """Units × (B, N, C) -> (B, N, C)."""
        y = rearrange(units, "u b n c -> (b n) u c")
        y, branch = self.attn(y, None, self.attn_norm)
        y, branch = self.mlp(y, self.dropped(branch), self.mlp_norm)
        y = y + self.dropped(branch)
        return rearrange((self.weight(y).sigmoid() * y).sum(1), "(b n) c -> b n c", b=len(units[0]))

    def feed_back(self, t: Tensor, joint: Tensor, attn: CrossAttention) -> Tensor:
        """t (B, N, C) reads the normalised joint feature (B, J, C)."""
        if joint.shape[1] == 1:
            branch = attn.one_key(joint).expand_as(t)
        else:
            t, q = attn.queries(t, None, self.feedback_norm)
            branch = attn.attend(q, K.linear(joint, attn.kv.weight, attn.bias))
        t, branch = self.feedback_mlp(t, self.dropped(branch), self.feedback_mlp_norm)
        return t + self.dropped(branch)


class IAVCL(Fusion):
    """DiER units, evolutionary refinement (shared by the units) and HAFE.

    The paper ablates both parts, and leaves open what is passed on without them. Here, without HAFE the last unit's tokens go on,
    and nobody reads the joint feature: the refinement has parameters, and is not computed. Without DiER the units are HiCMAE's
    layers, and HAFE feeds the projected joint feature back unrefined.
    """

    interacts, aggregates, reads_joint = True, True, True

    RELEASED_NAMES = (
        *(
            (rf"^{side}_units\.(\d+)\.{name}\.", rf"blocks.\1.{released[i]}.")
            for name, released in RELEASED_UNIT.items()
            for i, side in enumerate(("video", "audio"))
        ),
        (r"^refinement\.proj\.", "Iterative_Refinement_Module.post_extract_proj."),
        (r"^refinement\.norm\.", "Iterative_Refinement_Module.layer_norm."),
        (r"^refinement\.(audio|video)\.", r"Iterative_Refinement_Module.conv_\1."),
        (r"^video_aggregation\.attn_norm\.", "norm."),
        (r"^audio_aggregation\.attn_norm\.", "norm_audio."),
        (r"^(v|a)\w+_aggregation\.attn\.", r"\1adaptiveinteraction."),
        (r"^(v|a)\w+_aggregation\.weight\.", r"\1selectfusion."),
        (r"^(v|a)\w+_aggregation\.mlp_norm\.", r"norm_att_\1."),
        (r"^(v|a)\w+_aggregation\.mlp\.", r"mlp_att_\1."),
        (r"^video_aggregation\.feedback_norm\.", "cross_norm_1."),
        (r"^audio_aggregation\.feedback_norm\.", "cross_norm_3."),
        (r"^joint_norm\.", "cross_norm_2."),
        (r"^feedback_attn\.", "cross_attn."),
        (r"^(v|a)\w+_aggregation\.feedback_mlp_norm\.", r"norm_att_\1_IR."),
        (r"^(video|audio)_aggregation\.feedback_mlp\.", r"mlp_att_\1_IR."),
    )

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        width, heads = cfg.width, cfg.heads
        if self.interacts:
            rates = torch.linspace(0, cfg.drop_path, cfg.fusion_depth, device="cpu").tolist()
            self.video_units = nn.ModuleList(GatedInteraction(width, heads, r) for r in rates)
            self.audio_units = nn.ModuleList(GatedInteraction(width, heads, r) for r in rates)
            self.refinement = EvolutionaryRefinement(width)
        else:
            self.video_units, self.audio_units, self.joint_proj = cross_blocks(cfg), cross_blocks(cfg), Linear(2 * width, width)
        if self.aggregates:
            self.video_aggregation = UnitAggregation(width, heads, cfg.drop_path / 2)
            self.audio_aggregation = UnitAggregation(width, heads, cfg.drop_path / 2)
            self.joint_norm, self.feedback_attn = (layer_norm(width), CrossAttention(width, heads))  # shared by the modalities

    def forward(self, video: Tensor, audio: Tensor, joint: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Without a joint feature (B, J, 2C) it is of one token, the means of video and audio."""
        if joint is None:
            joint = torch.cat([video.mean(1, keepdim=True), audio.mean(1, keepdim=True)], dim=-1)  # (B, 1, 2C)
        units = list(self.read(video, audio))
        if not self.aggregates:
            return units[-1]
        if self.interacts:
            for video, audio in units:
                joint = self.refinement(joint, video, audio)
        else:
            joint = self.joint_proj(joint)
        _, joint = add_norm(joint, None, self.joint_norm)
        videos, audios = map(list, zip(*units, strict=True))
        video = self.video_aggregation.feed_back(self.video_aggregation.aggregate(videos), joint, self.feedback_attn)
        audio = self.audio_aggregation.feed_back(self.audio_aggregation.aggregate(audios), joint, self.feedback_attn)
        return video, audio

    def read(self, video: Tensor, audio: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Each unit's tokens."""
        if not self.interacts:
            yield from read_each_other(self.video_units, self.audio_units, video, audio)
            return
        for video_unit, audio_unit in zip(self.video_units, self.audio_units, strict=True):
            video, audio = video_unit(video, audio), audio_unit(audio, video)
            yield video, audio


class DiER(IAVCL):
    """IAV-CL without HAFE."""

    aggregates, reads_joint = False, False


class HAFE(IAVCL):
    """IAV-CL without DiER."""

    interacts = False
