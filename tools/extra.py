"""Prints the packages of an extra of pyproject.toml, for an environment that needs these alone: python tools/extra.py docs."""

import sys
import tomllib
from pathlib import Path

with open(Path(__file__).parents[1] / "pyproject.toml", "rb") as file:
    print(*tomllib.load(file)["project"]["optional-dependencies"][sys.argv[1]])
