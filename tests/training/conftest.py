"""A small data set for runs of the trainer."""

import pytest


@pytest.fixture(scope="session")
def drawn(tmp_path_factory):
    """A drawn data set of three people: 18 clips, the last person for testing."""
    from avfmae.datasets.drawn import EMOTIONS, DemoSet, make_demo_set

    folder = tmp_path_factory.mktemp("drawn")
    return make_demo_set(folder, DemoSet("faces", first=7, people=3, labels={e: e for e in EMOTIONS}), test_people=1)
