"""A plain file, of which tests make odd ones."""

import pytest


@pytest.fixture(scope="session")
def plain(tmp_path_factory) -> str:
    """64 clocks with their bursts."""
    import streams

    path = tmp_path_factory.mktemp("field") / "plain.mp4"
    streams.write(path, *streams.H264, sound="aac")
    return str(path)
