"""AVF-MAE++ as released: pre-training and fine-tuning, executed op by op, dead work included."""

import torch
from torch import Tensor, nn

from avfmae.config import ModalityConfig, ModelConfig
from avfmae_benchmarks.peers.parts import MLP, CrossAttention, Decoder, PatchEmbed, SelfAttention, layer_norm, pick


class SplitSelfAttention(CrossAttention):
    """Self-attention whose queries have a matrix of their own, as the encoders' have."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x, x)


class LGIBlock(nn.Module):
    """Stages I to IV, in MAE-DFER I to III, and the feed-forward over (B·R, S, C); every stage takes its tokens out and puts them
    back."""

    def __init__(self, width: int, heads: int, collects: bool = True):
        super().__init__()
        self.local_norm, self.local_attn = layer_norm(width), SplitSelfAttention(width, heads)
        self.region_norm, self.region_attn = layer_norm(width), SplitSelfAttention(width, heads)
        self.spread_norm, self.spread_context_norm = layer_norm(width), layer_norm(width)
        self.spread_attn = CrossAttention(width, heads)
        self.collects = collects
        if collects:
            self.collect_norm, self.collect_context_norm = layer_norm(width), layer_norm(width)
            self.collect_attn = CrossAttention(width, heads)
        self.mlp_norm, self.mlp = layer_norm(width), MLP(width)

    def forward(self, x: Tensor, batch: int) -> Tensor:
        x = x + self.local_attn(self.local_norm(x))
        S, C = x.shape[1:]
        m = x[:, 0].reshape(batch, -1, C).clone()  # (B, R, C)
        t = x[:, 1:].reshape(batch, -1, C).clone()  # (B, R·(S-1), C)
        m = m + self.region_attn(self.region_norm(m))
        t = t + self.spread_attn(self.spread_norm(t), self.spread_context_norm(m))
        if self.collects:
            m = m + self.collect_attn(self.collect_norm(m), self.collect_context_norm(t))
        x = torch.cat([m.reshape(-1, 1, C), t.reshape(-1, S - 1, C)], dim=1)
        return x + self.mlp(self.mlp_norm(x))


class Encoder(nn.Module):
    def __init__(self, cfg: ModelConfig, m: ModalityConfig):
        super().__init__()
        self.m, self.skip_blocks = m, cfg.skip_blocks
        self.embed = PatchEmbed(m, cfg.width)
        self.region_tokens = nn.Parameter(torch.zeros(m.regions, cfg.width))
        self.blocks = nn.ModuleList(LGIBlock(cfg.width, cfg.heads, cfg.encoder == "lgi4") for _ in range(cfg.depth))
        self.norm = layer_norm(cfg.width)

    def with_regions(self, t: Tensor) -> Tensor:
        """Region-major tokens (B, N, C) -> (B·R, S, C), region tokens in front."""
        B, _, C = t.shape
        regions = self.region_tokens.expand(B, -1, -1).reshape(-1, 1, C).type_as(t)
        return torch.cat([regions, t.reshape(B * self.m.regions, -1, C)], dim=1)

    def encode_visible(self, clip: Tensor, masked: Tensor) -> tuple[Tensor, list[Tensor]]:
        """LN(local tokens) of the last block and of the skip blocks. Regions are runs of visible tokens."""
        t = self.embed(clip)
        B, _, C = t.shape
        t = pick(t, ~masked, None)
        if len(self.m.grid) == 3:
            groups = self.m.grid[0] // self.m.region[0]
            t = t.reshape(B, groups, self.m.region[0], self.m.regions // groups, -1, C).transpose(2, 3).reshape(B, -1, C)
        x, skips = self.with_regions(t), []
        for i, block in enumerate(self.blocks):
            x = block(x, B)
            if i in self.skip_blocks:
                skips.append(self.norm(x[:, 1:].reshape(B, -1, C)))
        return self.norm(x[:, 1:].reshape(B, -1, C)), skips

    def encode_regions(self, clip: Tensor) -> Tensor:
        """LN(region tokens) of every block (B, R, L, C). Regions are places."""
        t = self.embed(clip)
        B, _, C = t.shape
        g, r = self.m.grid, self.m.region
        cut = [n for axis in zip(g, r, strict=True) for n in (axis[0] // axis[1], axis[1])]
        axes = len(g)
        order = [1 + 2 * i for i in range(axes)] + [2 + 2 * i for i in range(axes)]
        x = self.with_regions(t.reshape(B, *cut, C).permute(0, *order, -1).reshape(B, -1, C))
        layers = []
        for block in self.blocks:
            x = block(x, B)
            layers.append(self.norm(x[:, 0].reshape(B, -1, C)))
        return torch.stack(layers, dim=2)


class Interaction(nn.Module):
    """One modality's half of a DiER unit."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.self_norm, self.self_attn = layer_norm(width), SelfAttention(width, heads)
        self.self_mlp_norm, self.self_mlp = layer_norm(width), MLP(width)
        self.cross_norm, self.context_norm = layer_norm(width), layer_norm(width)
        self.cross_attn = CrossAttention(width, heads)
        self.cross_mlp_norm, self.cross_mlp = layer_norm(width), MLP(width)
        self.self_gate, self.cross_gate = nn.Linear(2 * width, width), nn.Linear(2 * width, width)
        self.norm = layer_norm(width)

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        s = x + self.self_attn(self.self_norm(x))
        s = s + self.self_mlp(self.self_mlp_norm(s))
        c = x + self.cross_attn(self.cross_norm(x), self.context_norm(other))
        c = c + self.cross_mlp(self.cross_mlp_norm(c))
        z = torch.cat([s, c], dim=-1)
        return self.norm(self.self_gate(z).sigmoid() * s + self.cross_gate(z).sigmoid() * c)


class Refinement(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.proj = nn.Linear(2 * width, width)
        self.audio, self.video = (nn.Sequential(nn.Conv1d(width, width, 1), nn.BatchNorm1d(width), nn.PReLU()) for _ in range(2))
        self.norm = layer_norm(width)

    def forward(self, joint: Tensor, video: Tensor, audio: Tensor) -> Tensor:
        if joint.shape[-1] == self.proj.in_features:
            joint = self.proj(joint)
        return self.norm(joint + self.read(self.audio, joint, audio) + self.read(self.video, joint, video))

    @staticmethod
    def read(conv: nn.Module, joint: Tensor, tokens: Tensor) -> Tensor:
        attention = (joint @ tokens.transpose(1, 2) * joint.shape[-1] ** -0.5).softmax(dim=-1)
        return conv((attention @ tokens).transpose(1, 2)).transpose(1, 2)


class Aggregation(nn.Module):
    """One modality's half of HAFE."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attn_norm, self.attn = layer_norm(width), SelfAttention(width, heads)
        self.mlp_norm, self.mlp = layer_norm(width), MLP(width)
        self.weight = nn.Linear(width, 1)
        self.feedback_norm = layer_norm(width)
        self.feedback_mlp_norm, self.feedback_mlp = layer_norm(width), MLP(width)

    def forward(self, units: list[Tensor], joint: Tensor, feedback: CrossAttention) -> Tensor:
        B, N, C = units[0].shape
        y = torch.stack(units, dim=2).reshape(B * N, len(units), C)
        y = y + self.attn(self.attn_norm(y))
        y = y + self.mlp(self.mlp_norm(y))
        t = (self.weight(y).sigmoid() * y).sum(1).reshape(B, N, C)
        t = t + feedback(self.feedback_norm(t), joint)
        return t + self.feedback_mlp(self.feedback_mlp_norm(t))


class Fusion(nn.Module):
    def __init__(self, cfg: ModelConfig):
        super().__init__()
        width, heads = cfg.width, cfg.heads
        self.video_units, self.audio_units = (
            nn.ModuleList(Interaction(width, heads) for _ in range(cfg.fusion_depth)) for _ in range(2)
        )
        self.refinement = Refinement(width)
        self.video_aggregation, self.audio_aggregation = Aggregation(width, heads), Aggregation(width, heads)
        self.joint_norm, self.feedback_attn = layer_norm(width), CrossAttention(width, heads)

    def forward(self, video: Tensor, audio: Tensor, joint: Tensor) -> tuple[Tensor, Tensor]:
        videos, audios = [], []
        for video_unit, audio_unit in zip(self.video_units, self.audio_units, strict=True):
            video, audio = video_unit(video, audio), audio_unit(audio, video)
            videos.append(video)
            audios.append(audio)
            joint = self.refinement(joint, video, audio)
        joint = self.joint_norm(joint)
        return (
            self.video_aggregation(videos, joint, self.feedback_attn),
            self.audio_aggregation(audios, joint, self.feedback_attn),
        )


class ReleasedAVFMAE(nn.Module):
    """Pre-training."""

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.cfg = cfg
        self.video_encoder, self.audio_encoder = Encoder(cfg, cfg.video), Encoder(cfg, cfg.audio)
        self.fusion = Fusion(cfg)
        self.video_decoder, self.audio_decoder = Decoder(cfg, cfg.video), Decoder(cfg, cfg.audio)

    def forward(self, video: Tensor, audio: Tensor, masked_video, masked_audio, decoded_video, decoded_audio):
        """As HiCMAE's; ``decoded_*`` (B, tokens) bool: the tokens that the decoder predicts."""
        v, video_skips = self.video_encoder.encode_visible(video, masked_video)
        a, audio_skips = self.audio_encoder.encode_visible(audio, masked_audio)
        joint = torch.cat([v.mean(1, keepdim=True), a.mean(1, keepdim=True)], dim=-1)
        v, a = self.fusion(v, a, joint)
        return (
            self.video_decoder(v, video_skips, masked_video, decoded_video),
            self.audio_decoder(a, audio_skips, masked_audio, decoded_audio),
            video_skips,
            audio_skips,
        )


class ReleasedClassifier(nn.Module):
    """Fine-tuning, both modalities."""

    def __init__(self, cfg: ModelConfig, num_outputs: int):
        super().__init__()
        self.cfg = cfg
        self.video_encoder, self.audio_encoder = Encoder(cfg, cfg.video), Encoder(cfg, cfg.audio)
        self.fusion = Fusion(cfg)
        self.video_layer_weights, self.audio_layer_weights = (
            nn.Parameter(torch.full((cfg.depth,), 1 / cfg.depth)) for _ in range(2)
        )
        self.head_norm, self.head = layer_norm(2 * cfg.width), nn.Linear(2 * cfg.width, num_outputs)

    def forward(self, video: Tensor, audio: Tensor) -> Tensor:
        """Normalised clips (B, 3, T, H, W) and spectrograms -> logits."""
        v, a = self.video_encoder.encode_regions(video), self.audio_encoder.encode_regions(audio)
        joint = torch.cat(
            [
                (layers * weights.softmax(0)[:, None].type_as(layers)).sum(2)
                for layers, weights in ((v, self.video_layer_weights), (a, self.audio_layer_weights))
            ],
            dim=-1,
        )
        v, a = self.fusion(v[:, :, -1], a[:, :, -1], joint)
        return self.head(self.head_norm(torch.cat([v.mean(1), a.mean(1)], dim=-1)))
