# The public names. lazy_loader imports them from here on first use, and type checkers and editors read them.
from . import checkpoints, config, data, losses, masking, metrics, models
from .checkpoints import load_released, released_gradients, released_state_dict
from .config import ModelConfig
from .inference.features import FeatureExtractor
from .inference.predictor import Prediction, Predictor
from .masking import DualMask
from .models.finetuning import AVFMAEForFinetuning
from .models.pretraining import AVFMAEForPretraining

__version__: str
__all__ = [
    "AVFMAEForFinetuning", "AVFMAEForPretraining", "DualMask", "FeatureExtractor", "ModelConfig", "Prediction",
    "Predictor", "checkpoints", "config", "data", "load_released", "losses", "masking", "metrics", "models",
    "released_gradients", "released_state_dict",
]  # fmt: skip
