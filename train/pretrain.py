"""For torchrun: ``torchrun --nproc-per-node 8 train/pretrain.py --config train/configs/base_pretrain.toml ...``, as ``avfmae pretrain ...``."""

import sys

from avfmae.cli import main

if __name__ == "__main__":
    main(["pretrain", *sys.argv[1:]])
