"""The notebooks run from top to bottom, as a person would run them."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


def outputs_of(notebook: nbformat.NotebookNode, mime_type: str) -> list[str]:
    return [
        output["data"][mime_type]
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if mime_type in output.get("data", {})
    ]


@pytest.mark.timeout(400)
def test_first_steps_runs_and_shows_sets_tables_curve_and_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.delenv("DIOPTRA_ASSETS_STORE", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    notebook = nbformat.read(NOTEBOOKS / "first_steps.ipynb", as_version=4)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(elsewhere)}}).execute()

    pages = outputs_of(notebook, "text/html")
    assert any("360 images of 28 x 28 x 1" in page for page in pages), "an image set shows itself"
    assert any("iframe" in page for page in pages), "the report shows itself"
    assert outputs_of(notebook, "image/png"), "the security curve is drawn"
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert "'robust_accuracy'" in printed, "MLflow's run has the metrics"


def test_committed_notebooks_hold_no_output() -> None:
    for path in NOTEBOOKS.glob("*.ipynb"):
        notebook = nbformat.read(path, as_version=4)
        assert not any(cell.get("outputs") for cell in notebook.cells), f"clear the outputs of {path.name}"
