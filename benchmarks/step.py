import torch
from torch import Tensor
from avfmae_kernels.gather_patches import IMAGENET_MEAN, IMAGENET_STD

def published_clip(video: Tensor) -> Tensor:
    """uint8 (B, T, H, W, 3) -> what the published loaders give: normalised float32 (B, 3, T, H, W)."""
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    return ((video / 255 - mean) / std).permute(0, 4, 1, 2, 3).contiguous()
