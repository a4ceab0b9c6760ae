"""The notebook in examples, executed as a user does."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "examples" / "own_network" / "spots.ipynb"


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("inline", [True, pytest.param(False, marks=[pytest.mark.ray, pytest.mark.slow])])
def test_the_notebook_of_an_own_network_runs(inline: bool, tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    settings = notebook.cells[1]
    assert {"inline = False", "options = {}"} <= {line.partition("  #")[0] for line in settings.source.split("\n")}
    settings.source += f"\ninline = {inline}\noptions = {{'search.candidates': 1}}"
    NotebookClient(notebook, timeout=400, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    pages = [output["data"] for output in shown if output["output_type"] in ("execute_result", "display_data")]
    texts = "".join(output["text"] for output in shown if output["output_type"] == "stream")
    assert "candidates so far, " in texts, "progress is shown in a notebook by default"
    assert any("winner" in page.get("text/html", "") for page in pages)
    assert any("image/png" in page for page in pages)
