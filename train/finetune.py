"""For torchrun: ``torchrun --nproc-per-node 8 train/finetune.py --recipe base ...``, as ``avfmae finetune ...``."""

import sys

from avfmae.cli import main

if __name__ == "__main__":
    main(["finetune", *sys.argv[1:]])
