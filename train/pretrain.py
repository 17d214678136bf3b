"""For torchrun: ``torchrun --nproc-per-node 8 train/pretrain.py --recipe base ...``, as ``avfmae pretrain ...``."""

import sys

from avfmae.cli import main

if __name__ == "__main__":
    main(["pretrain", *sys.argv[1:]])
