"""Encoders and fusions by the names that ``ModelConfig.encoder`` and ``ModelConfig.fusion`` give.

To add one, write its file and a line here; code outside this package assigns ``ENCODERS["name"] = MyEncoder``.
"""

from avfmae.models.cross import CrossModalFusion, NoFusion
from avfmae.models.iavcl import HAFE, IAVCL, DiER
from avfmae.models.interfaces import Encoder, Fusion
from avfmae.models.lgi import LGI4Encoder, LGIEncoder
from avfmae.models.tpsbt import TPSBTEncoder
from avfmae.models.vit import ViTEncoder

ENCODERS: dict[str, type[Encoder]] = {
    "lgi4": LGI4Encoder, "lgi": LGIEncoder, "vit": ViTEncoder, "tpsbt": TPSBTEncoder,
}  # fmt: skip
FUSIONS: dict[str, type[Fusion]] = {
    "iavcl": IAVCL, "dier": DiER, "hafe": HAFE, "cross": CrossModalFusion, "none": NoFusion,
}  # fmt: skip


def encoder_class(name: str) -> type[Encoder]:
    return _find("encoder", ENCODERS, name)


def fusion_class(name: str) -> type[Fusion]:
    return _find("fusion", FUSIONS, name)


def _find(setting: str, registered: dict[str, type], name: str) -> type:
    """Raises ValueError for a name that is not registered."""
    if name not in registered:
        raise ValueError(f"{setting}: got {name!r}, expected one of {', '.join(registered)}")
    return registered[name]
