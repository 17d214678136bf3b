"""The notebook runs from top to bottom, in a kernel of its own, and its pictures are there."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "own_video.ipynb"
MISSING = [name for name in ("nbclient", "ipykernel", "pandas") if importlib.util.find_spec(name) is None]


@pytest.mark.exhaustive
@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
def test_the_notebook_runs(tmp_path, monkeypatch):
    import nbclient
    import nbformat

    # a kernel of this environment, whatever kernels the user has installed
    kernel = tmp_path / "kernels" / "python3"
    kernel.mkdir(parents=True)
    (kernel / "kernel.json").write_text(
        f'{{"argv": ["{sys.executable}", "-m", "ipykernel_launcher", "-f", "{{connection_file}}"], "display_name": "Python 3"}}'
    )
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    notebook = nbformat.read(NOTEBOOK, 4)
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    shown = [kind for output in outputs for kind in output.get("data", {})]
    assert shown.count("image/png") == 2 and "text/html" in shown  # a timeline, a reconstruction; a table
    assert any("glad" in output.get("data", {}).get("text/html", "") for output in outputs)  # something is predicted
    assert (tmp_path / "my-model" / "model.safetensors").is_file() and (tmp_path / "reconstructed" / "drawn.mp4.mp4").is_file()


def test_the_notebook_is_kept_without_outputs():
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert len(cells) > 5 and all(not cell["outputs"] and cell["execution_count"] is None for cell in cells)
