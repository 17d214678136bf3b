"""For torchrun: ``torchrun --nproc-per-node 8 train/psi.py --recipe base ...``, as ``avfmae psi ...``."""

import sys

from avfmae.cli import main

if __name__ == "__main__":
    main(["psi", *sys.argv[1:]])
