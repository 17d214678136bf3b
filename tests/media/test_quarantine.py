"""The list of bad clips grows by its new rows, and goes on where a run is continued."""

from avfmae.data import quarantine
from avfmae.data.batch import Bad
from avfmae.data.quarantine import Quarantine, read_quarantine


def test_a_bad_clip_adds_a_row_and_rewrites_none(tmp_path, monkeypatch):
    bad = [Bad(i, f"/v/{i}, \udcff.mp4", "is empty") for i in range(6)]
    found = Quarantine(tmp_path, 100, 1.0, True, resumed=False)
    found.add(bad[:1])
    monkeypatch.setattr(quarantine, "write_table", None)
    for clip in bad[1:4]:
        found.add([clip, bad[0]])
    monkeypatch.undo()
    assert read_quarantine(found.path) == bad[:4]
    resumed = Quarantine(tmp_path, 100, 1.0, True, resumed=True)
    resumed.add([bad[0], *bad[4:]])
    assert read_quarantine(found.path) == bad
    Quarantine(tmp_path, 100, 1.0, False, resumed=False)
    assert read_quarantine(found.path) == bad
    anew = Quarantine(tmp_path, 100, 1.0, True, resumed=False)
    assert read_quarantine(found.path) == []
    anew.add(bad[5:])
    assert read_quarantine(found.path) == bad[5:]
