"""What settings may be at least and at most: told of before any work, by name."""

import math


def check_least(options: object, **least: float) -> None:
    """Raises ValueError where a setting that is given is less than it may be, or no number."""
    for name, low in least.items():
        value = getattr(options, name)
        if value is not None and not low <= value < math.inf:
            raise ValueError(f"{name}: got {value}, expected at least {low}")


def check_shares(options: object, *names: str) -> None:
    """Raises ValueError where a setting that is given is no share or probability, from 0 to 1."""
    for name in names:
        value = getattr(options, name)
        if value is not None and not 0 <= value <= 1:
            raise ValueError(f"{name}: got {value}, expected 0 to 1")


def check_some(options: object, name: str) -> None:
    """Raises ValueError where none is given of what one at least is needed of."""
    if not getattr(options, name):
        raise ValueError(f"{name}: got none, expected at least one")
