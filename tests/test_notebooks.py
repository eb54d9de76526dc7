"""The notebooks run from top to bottom, as a person would run them."""

import ast
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import nbformat
import pytest
from nbclient import NotebookClient

from dioptra_assets.assets.cell_context import DIMENSIONS
from dioptra_assets.definitions import defs
from dioptra_assets.runs.launch import materialize_experiment
from partitions.keys import partition_of
from tests.conftest import Lab, enter, skeleton
from tests.dagster_internals import AssetGraph

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
DATA = {"source": "digits", "image_size": [12, 12], "test_fraction": 0.05}
# The second is there for its name, and for transfer: a shallow network is trained in a fraction of LeNet's time.
TWO_MODELS = {"shallow_net": {"epochs": 1}, "le_net": {"architecture": "shallow_net", "epochs": 1}}
# What the shipped experiments do, small enough for a test, under the names of architectures and attacks they use.
SMALL: Mapping[str, Mapping[str, Any]] = {
    "evasion": {
        "data": DATA,
        "architectures": TWO_MODELS,
        "attacks": {"fgm": {"eps": [0.1, 0.3]}},
        "defences": {"jpeg": {"method": "jpeg_compression", "quality": 50}},
    },
    "search": {
        "data": DATA,
        "architectures": {"shallow_net": {"epochs": 1}},
        "attacks": {"pixel": {"th": [1, 3], "es": 1, "max_iter": 2}, "threshold": {"th": 60, "es": 0, "max_iter": 2}},
    },
    "specimens": {
        "data": {**DATA, "test_fraction": 0.8},
        "architectures": TWO_MODELS,
        "poisonings": {"baseline": {"target_class": 1, "poison_fraction": [0.33]}},
        "inversions": {start: {"method": "miface", "start": start, "max_iter": 5} for start in ("noise", "mean")},
        "defences": {"smoothing": {"method": "spatial_smoothing", "window_size": 3}},
        "log_sets": True,
    },
}
# Notebook of a shipped experiment -> the small experiment it runs on here, and what it shows of it.
SHIPPED = {
    "mnist": ("evasion", ["robust_accuracy_low", "le_net"], 2),
    "imagenet_fgm": ("evasion", ["oblivious", "adaptive", "jpeg"], 2),
    "pixel_threshold": ("search", ["pixel_3", "threshold"], 1),
    "imagenet_pixel_threshold": ("search", ["linf_max", "queries"], 1),
    "backdoor": ("specimens", ["clean control", "smoothing", "asr_high"], 2),
    "inversion": ("specimens", ["ssim_to_class_mean", "prediction_shallow_net"], 1),
}


def outputs_of(notebook: nbformat.NotebookNode, mime_type: str) -> list[str]:
    return [
        output["data"][mime_type]
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if mime_type in output.get("data", {})
    ]


@pytest.mark.slow
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
    assert any("360 images of 8 x 8 x 1" in page for page in pages), "an image set shows itself"
    assert any("iframe" in page for page in pages), "the report shows itself"
    assert outputs_of(notebook, "image/png"), "the security curve is drawn"
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert "'robust_accuracy'" in printed, "MLflow's run has the metrics"


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_three_registered_models_get_three_verdicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.delenv("DIOPTRA_ASSETS_STORE", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    notebook = nbformat.read(NOTEBOOKS / "watched.ipynb", as_version=4)

    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()

    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    rows = [line.split(" | ") for line in printed.splitlines() if line.count(" | ") == 2]
    said = {name: status for name, status, _ in rows}
    assert said["good"] == "passed" and said["worse"] == "failed" and said["masked"] == "not judged"


@pytest.fixture(scope="module")
def small_experiments(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """The small experiments, materialized once for all notebooks, in a home that this process keeps meanwhile."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        lab = skeleton(tmp_path_factory.mktemp("notebooks") / "project")
        enter(monkeypatch, lab)
        for name, attributes in SMALL.items():
            lab.write({"seed": 7, **attributes}, name)
        with lab.instance() as instance:
            for name in SMALL:
                launched = materialize_experiment(lab.defs(), name, instance=instance, store=lab.store)
                assert not launched.failed and not launched.skipped, launched
        yield lab


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", SHIPPED)
def test_a_notebook_of_a_shipped_experiment_runs_on_a_small_one(
    name: str, small_experiments: Lab, tmp_path: Path
) -> None:
    experiment, shown, pictures = SHIPPED[name]
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    left_out = [cell for cell in notebook.cells if "materialize" in cell.metadata.get("tags", [])]
    assert [cell.source for cell in left_out] == ["da.materialize(EXPERIMENT)"]
    notebook.cells = [cell for cell in notebook.cells if cell not in left_out]
    (setup,) = [cell for cell in notebook.cells if f'EXPERIMENT = "{name}"' in cell.source]
    setup.source = setup.source.replace(f'"{name}"', f'"{experiment}"')

    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()

    pages = outputs_of(notebook, "text/html")
    assert any("images of 12 x 12 x 1" in page for page in pages), "an image set shows itself"
    assert any("iframe" in page for page in pages), "the report shows itself"
    assert len(outputs_of(notebook, "image/png")) == pictures
    tables = " ".join(page for page in [*pages, *outputs_of(notebook, "text/plain")] if "iframe" not in page)
    assert [text for text in shown if text not in tables] == []
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert "|" in printed and "{'" in printed, "MLflow's runs give partitions and metrics"


@pytest.fixture(scope="module")
def shipped() -> AssetGraph:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return defs().resolve_asset_graph()


@pytest.mark.parametrize("name", SHIPPED)
def test_a_notebook_names_what_its_shipped_experiment_has(name: str, shipped: AssetGraph) -> None:
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    source = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    loaded = list(loads(source.replace("{EXPERIMENT}", name)))

    assert loaded
    for asset, partition in loaded:
        key = dg.AssetKey(asset.split("/"))
        assert shipped.has(key), asset
        definition, dimensions = shipped.get(key).partitions_def, tuple(shipped.get(key).metadata[DIMENSIONS])
        cells = [partition_of(dimensions, one) for one in definition.get_partition_keys()] if definition else [{}]
        assert any(partition.items() <= cell.items() for cell in cells), f"{asset} has no cell {partition}"


def loads(source: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Asset and partition of every `da.load` and `da.cells` in a source, as far as they are written out."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("da.load", "da.cells"):
            written = [word for word in node.keywords if word.arg and isinstance(word.value, ast.Constant)]
            asset = ast.literal_eval(ast.unparse(node.args[0]).removeprefix("f"))
            yield asset, {str(word.arg): ast.literal_eval(word.value) for word in written}


def test_committed_notebooks_hold_no_output() -> None:
    for path in NOTEBOOKS.glob("*.ipynb"):
        notebook = nbformat.read(path, as_version=4)
        assert not any(cell.get("outputs") for cell in notebook.cells), f"clear the outputs of {path.name}"
