"""What the models ask of an encoder and of a fusion.

Shapes: B batch, N tokens, C width, L blocks.
"""

import re
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

# (pattern, replacement): a regular expression in one of our names, and what stands there in the released files. With two
# replacements the tensor is stored as two: the first third of its rows, and the rest.
NameRule = tuple[str, str] | tuple[str, str, str]


@dataclass
class Features:
    """What an encoder gives fine-tuning of one modality.

    Attributes:
        tokens: (B, N, C) of the last block, normalised. The fusion reads them, and their mean is the modality's feature.
        levels: (B, J, L, C) of every block, normalised, for what is made of all blocks; None where that is nothing.
    """

    tokens: Tensor
    levels: Tensor | None = None


class Encoder(nn.Module):
    """One modality's encoder, built from a ModelConfig and the modality's ModalityConfig.

    Attributes:
        RELEASED_NAMES: rules for names inside the encoder, applied in this order.
        norm: of the last block's tokens; a fine-tuning model that has none there sets it to None.
        needs_levels: whether a fine-tuning model reads ``Features.levels``.
        regions: J of these.
    """

    RELEASED_NAMES: ClassVar[tuple[NameRule, ...]] = ()
    norm: nn.LayerNorm | None
    needs_levels = True
    regions = 1

    def encode_visible(self, clip: Tensor, visible: Tensor, boxes: Tensor | None = None) -> tuple[Tensor, list[Tensor], Tensor]:
        """Pre-training: encodes the visible tokens only.

        Args:
            clip: as the model takes it. visible: (B, N) int64, ascending. boxes: (B, 4), what is seen of each clip, or None.

        Returns:
            The last block's tokens (B, N, C), normalised; the same of ``cfg.skip_blocks``, shallowest first; and the index
            (B, N) of these tokens, which may stand in another order than ``visible``.
        """
        raise NotImplementedError

    def encode_all(self, clip: Tensor) -> Features:
        """Fine-tuning: encodes all tokens."""
        raise NotImplementedError

    @classmethod
    def layer_of(cls, name: str) -> int | None:
        """The layer of a parameter for layer decay: embeddings and tokens 0, block i is i + 1; None: the model's last."""
        if name.startswith("embed.") or name.endswith("tokens"):
            return 0
        match = re.match(r"blocks\.(\d+)\.", name)
        return int(match[1]) + 1 if match else None


class Fusion(nn.Module):
    """What lets the modalities read each other, built from a ModelConfig.

    Attributes:
        RELEASED_NAMES: rules for names inside the fusion, applied in this order.
        reads_joint: whether it reads a joint feature, of all blocks of both encoders.
        beside_unimodal: whether fine-tuning puts each modality's own feature, of all blocks, beside the fused ones.
    """

    RELEASED_NAMES: ClassVar[tuple[NameRule, ...]] = ()
    reads_joint: ClassVar[bool] = False
    beside_unimodal: ClassVar[bool] = False

    def forward(self, video: Tensor, audio: Tensor, joint: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Fuses tokens.

        Args:
            video: (B, N, C). audio: (B, M, C).
            joint: (B, J, 2C), a joint feature for those fusions that refine one; None in pre-training.

        Returns:
            Tokens of the shapes of video and audio.
        """
        raise NotImplementedError

    @classmethod
    def layer_of(cls, name: str) -> int | None:
        """The layer of a parameter, counted from the encoder's last: unit i is i + 1; None: the model's last."""
        match = re.match(r"(?:video|audio)_(?:units|blocks)\.(\d+)\.", name)
        return int(match[1]) + 1 if match else None
