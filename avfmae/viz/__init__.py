"""Pictures and pages of clips, runs and results."""

from avfmae.files import printable


def literal(text: str) -> str:
    """Text from elsewhere (a file's name, a class's) as matplotlib draws it: no formula, no bytes that are not UTF-8."""
    return printable(text).replace("$", r"\$")
