"""AVF-MAE++: audio-visual masked autoencoders for emotion in faces and voices."""

from avfmae.checkpoints import load_released, released_gradients, released_state_dict
from avfmae.config import ModelConfig
from avfmae.masking import DualMask
from avfmae.models.finetuning import AVFMAEForFinetuning
from avfmae.models.hicmae import HiCMAEForPretraining
from avfmae.models.pretraining import AVFMAEForPretraining

__version__ = "0.1.0"
__all__ = [
    "AVFMAEForFinetuning",
    "AVFMAEForPretraining",
    "DualMask",
    "HiCMAEForPretraining",
    "ModelConfig",
    "load_released",
    "released_gradients",
    "released_state_dict",
]
