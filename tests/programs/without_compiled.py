"""A model, ``explain`` and the doctor where nothing was compiled, as after AVFMAE_BUILD=none."""

import importlib.util

find_spec = importlib.util.find_spec


def find_no_compiled(name, *args):
    return None if name.startswith("avfmae_kernels._") else find_spec(name, *args)


if __name__ == "__main__":
    importlib.util.find_spec = find_no_compiled
    import torch

    import avfmae
    import avfmae_kernels as K
    from avfmae.cli import main

    cfg = avfmae.ModelConfig.preset("tiny")
    video = torch.zeros(2, *cfg.video.size, 3, dtype=torch.uint8)
    avfmae.AVFMAEForPretraining(cfg)(video, torch.randn(2, 1, 256, 128), avfmae.DualMask.sample(cfg, 2))
    states = K.explain()
    assert states["gather_patches"]["reference"] == states["sample_masks"]["reference"] == "runs", states
    assert "is missing" in states["gather_patches"]["cpp"]
    main(["doctor"])
