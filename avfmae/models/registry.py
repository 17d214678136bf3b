"""Encoders and fusions by the names that ``ModelConfig.encoder`` and ``ModelConfig.fusion`` give.

To add one, write its file and a line here; code outside this package assigns ``ENCODERS["name"] = MyEncoder``.
"""

from avfmae.models.cross import CrossModalFusion
from avfmae.models.iavcl import IAVCL
from avfmae.models.interfaces import Encoder, Fusion
from avfmae.models.lgi import LGIEncoder
from avfmae.models.vit import ViTEncoder

ENCODERS: dict[str, type[Encoder]] = {"lgi": LGIEncoder, "vit": ViTEncoder}
FUSIONS: dict[str, type[Fusion]] = {"iavcl": IAVCL, "cross": CrossModalFusion}


def encoder_class(name: str) -> type[Encoder]:
    return _find("encoder", ENCODERS, name)


def fusion_class(name: str) -> type[Fusion]:
    return _find("fusion", FUSIONS, name)


def _find(setting: str, registered: dict[str, type], name: str) -> type:
    """Raises ValueError for a name that is not registered."""
    if name not in registered:
        raise ValueError(f"{setting}: got {name!r}, expected one of {', '.join(registered)}")
    return registered[name]
