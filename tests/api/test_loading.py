"""Loading in Python: by key and dimensions, from anywhere, and a sentence where there is nothing to load."""

import pkgutil
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.main import get_command

import dioptra_assets as da
from dioptra_assets import definitions
from dioptra_assets.api import loading
from dioptra_assets.command_line import app as cli
from dioptra_assets.robustness.evaluation.metrics import METRIC_COLUMNS
from dioptra_assets.robustness.image_set import ImageSet
from dioptra_assets.runs.launch import Launched
from dioptra_assets.runs.selection import Selection, select
from resources.store import Cell, DamagedCellError, MissingCellError
from resources.tables import write_table
from tests.conftest import ARCHITECTURES, ATTACKS, CELLS, Lab

OUTSIDE = """
import sys
import dioptra_assets as da
table = da.load("tiny/evasion_metrics")
print(len(table), len(da.cells("tiny")), len(da.catalog()))
print([name for name in ("tensorflow", "keras", "art", "mlflow", "matplotlib", "sklearn") if name in sys.modules])
"""


def test_a_table_loads_in_a_plain_process_in_any_folder_without_machine_learning_libraries(
    looking: Lab, tmp_path: Path
) -> None:
    done = subprocess.run([sys.executable, "-c", OUTSIDE], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = len(ARCHITECTURES) ** 2 * len(ATTACKS)
    assert done.stdout.splitlines() == [f"{rows} {CELLS} 14", "[]"]
    assert list(tmp_path.iterdir()) == [], "nothing is left where one works"


def test_a_cell_is_loaded_by_its_dimensions(looking: Lab) -> None:
    adversarial_set = da.load("tiny/adversarial_set", architecture="le_net", attack="fgm_0.3")
    testing_set = da.load("tiny/testing_set")
    assert isinstance(adversarial_set, ImageSet) and isinstance(testing_set, ImageSet)
    assert list(adversarial_set.index["image_id"]) == list(testing_set.index["image_id"])
    difference = np.abs(adversarial_set.to_numpy()[0] - testing_set.to_numpy()[0])
    assert difference.max() == pytest.approx(0.3, abs=1e-6)


def test_a_model_a_config_and_a_report_are_what_they_are(looking: Lab) -> None:
    model = da.load("tiny/model", architecture="le_net")
    assert model(np.zeros((2, 16, 16, 1), np.float32)).shape == (2, 10)
    attack = da.load("tiny/attack_config", attack="weak")
    assert (attack.method, attack.eps) == ("fgm", 0.05)
    recipe = da.load("tiny/architecture_config", architecture="le_net")
    assert (recipe.architecture, recipe.epochs, recipe.model_tag) == ("le_net", 1, "small")


def test_all_cells_of_a_table_are_one_table_with_a_column_for_each_dimension(looking: Lab) -> None:
    metrics = da.load("tiny/evasion_metrics")
    assert len(metrics) == len(ARCHITECTURES) ** 2 * len(ATTACKS)
    pairs = metrics[["architecture", "attack"]].drop_duplicates().itertuples(index=False, name=None)
    assert sorted(pairs) == sorted((architecture, attack) for architecture in ARCHITECTURES for attack in ATTACKS)
    assert set(metrics["target"]) == set(ARCHITECTURES)
    assert isinstance(metrics.index, pd.RangeIndex)

    of_le_net = da.load("tiny/evasion_metrics", architecture="le_net")
    pd.testing.assert_frame_equal(of_le_net, metrics[metrics["architecture"] == "le_net"].reset_index(drop=True))
    one = da.load("tiny/evasion_metrics", architecture="le_net", attack="weak")
    expected = metrics.query("architecture == 'le_net' and attack == 'weak'").reset_index(drop=True)
    pd.testing.assert_frame_equal(one, expected[one.columns])


def test_clean_predictions_of_all_models_tell_the_models_apart(looking: Lab) -> None:
    predictions = da.load("tiny/clean_predictions")
    assert predictions.groupby("architecture").size().to_dict() == dict.fromkeys(ARCHITECTURES, 180)


def test_several_cells_that_are_no_tables_are_not_chosen_between(looking: Lab) -> None:
    with pytest.raises(LookupError, match=r"tiny/adversarial_set has 3 cells, name one: attack= of \['tiny/adv"):
        da.load("tiny/adversarial_set", architecture="le_net")


def test_cells_and_catalog_list_what_there_is(looking: Lab) -> None:
    cells = da.cells("tiny/adversarial_set")
    assert list(cells.columns) == [
        "asset",
        "architecture",
        "attack",
        "kind",
        "data_version",
        "created",
        "bytes",
        "run_id",
    ]
    assert len(cells) == len(ARCHITECTURES) * len(ATTACKS)
    assert len(da.cells("tiny")) == CELLS
    catalog = da.catalog().set_index("asset")
    assert catalog.loc["tiny/adversarial_set"].to_dict() == {
        "kind": "image_set",
        "dimensions": "architecture, attack",
        "cells": len(cells),
    }
    assert catalog["cells"].sum() == CELLS


def test_an_empty_home_lists_nothing(blank: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(definitions, "defs", blank.defs)
    assert da.catalog().empty and da.cells("tiny").empty
    assert "data_version" in da.cells("tiny") and "cells" in da.catalog()


def test_cells_of_an_unknown_name_are_no_empty_table(blank: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(definitions, "defs", blank.defs)
    with pytest.raises(LookupError, match=r"there is no experiment and no asset 'tinny', available: tiny$"):
        da.cells("tinny")
    with pytest.raises(LookupError, match=r"no asset 'tiny/evasion_metric', available: tiny/evasion_metrics, "):
        da.cells("tiny/evasion_metric")
    with pytest.raises(MissingCellError, match=r"^there is no experiment 'tinny', available: tiny$"):
        da.load("tinny/transfer_matrix")


def test_what_was_launched_is_told_in_counts_and_reasons() -> None:
    cells = [Cell("tiny/model", {"architecture": f"m{number}"}) for number in range(40)]
    launched = Launched(computed=cells[:38], failed={cells[38]: "no <space>"}, skipped=cells[39:], fresh=2)
    assert repr(launched) == ("38 cells computed, 2 were up to date, 1 failed, 1 not tried\ntiny/model/m38: no <space>")
    assert "<td>tiny/model</td><td>38</td><td>1</td><td>1</td>" in launched._repr_html_()
    assert "no &lt;space&gt;" in launched._repr_html_()


def test_completion_offers_what_the_package_has() -> None:
    assert {"load", "cells", "metrics", "show"} <= set(dir(da)) and "Any" not in dir(da)
    assert all(hasattr(da, name) for name in dir(da))


def test_no_room_of_the_package_has_the_name_of_what_it_offers() -> None:
    rooms = {module.name for module in pkgutil.iter_modules(da.__path__)}
    assert not rooms & set(da.__all__), "once it is imported, the module would be what da.NAME gives"


def test_metrics_are_told_in_the_columns_that_are_read_first(blank: Lab) -> None:
    full = pd.DataFrame([dict.fromkeys(METRIC_COLUMNS, 0.5) | {"attack": "weak", "source": "le_net", "n": 180}])
    cell = Cell("tiny/evasion_metrics", {"architecture": "le_net", "attack": "weak"})
    write_table(blank.store.at(cell), full)
    short = da.metrics("tiny", attack="weak")
    assert len(short) == 1 and len(short.columns) < 20 < len(full.columns)
    assert {"attack", "source", "target", "n", "robust_accuracy", "robust_accuracy_low"} <= set(short)


def test_a_report_shows_itself_and_can_be_saved(looking: Lab, tmp_path: Path) -> None:
    report = da.load("tiny/report")
    assert isinstance(report, da.Report)
    assert report._repr_html_().startswith('<iframe srcdoc="&lt;!')
    assert "<script" not in report._repr_html_(), "what stands in the page stays in its frame"
    page = report.save(tmp_path / "report.html").read_text()
    assert page == report.html
    assert "fgm_0.3" in page and "le_net" in page


@pytest.fixture
def declared(looking: Lab, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """The lab's experiment as the one of the project."""
    monkeypatch.setattr(definitions, "defs", looking.defs)
    return looking


def missing(asset: str, **partition: str) -> str:
    with pytest.raises(MissingCellError) as raised:
        da.load(asset, **partition)
    return str(raised.value)


def test_a_missing_cell_names_itself_and_a_command_that_makes_it(blank: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(definitions, "defs", blank.defs)
    for asset, partition, name in (
        ("tiny/adversarial_set", {"architecture": "le_net", "attack": "fgm_0.3"}, "le_net/fgm_0.3"),
        ("tiny/report", {}, ""),
    ):
        message = missing(asset, **partition)
        assert message.startswith(
            "/".join(filter(None, [asset, name])) + " has not been materialized: `dioptra-assets "
        )
        command = shlex.split(re.findall("`(.+)`", message)[0])
        assert command[:3] == ["dioptra-assets", "materialize", "tiny"]
        options = get_command(cli.app).commands["materialize"].make_context("materialize", command[2:]).params  # type: ignore[attr-defined]
        graph = blank.defs().resolve_asset_graph()
        keys = [key for level in graph.toposorted_asset_keys_by_level for key in level]
        selected = select(graph, keys, Selection(options["asset"] or (), options["cell"] or ()))
        wanted = "|".join(partition[name] for name in sorted(partition))
        assert selected[client_key(asset)] == ({wanted} if wanted else None)


def client_key(asset: str) -> Any:
    import dagster as dg

    return dg.AssetKey(asset.split("/"))


def test_missing_cells_of_an_asset_name_the_command_that_makes_them_all(
    blank: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.main import get_command

    from dioptra_assets.command_line.app import app

    monkeypatch.setattr(definitions, "defs", blank.defs)
    message = missing("tiny/evasion_metrics", attack="weak")
    assert message == (
        "no cell of tiny/evasion_metrics/weak has been materialized: `dioptra-assets materialize tiny` makes them"
    )
    assert "materialize" in get_command(app).commands  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("asset", "partition", "sentence"),
    [
        ("tinny/report", {}, "there is no experiment 'tinny', available: tiny"),
        (
            "tiny/evasion_metric",
            {},
            "no experiment has an asset 'tiny/evasion_metric', available: tiny/evasion_metrics",
        ),
        ("tiny/model", {"arch": "le_net"}, "tiny/model has no dimension 'arch', available: architecture"),
        (
            "tiny/model",
            {"architecture": "lenet"},
            "tiny/model has no architecture 'lenet', available: shallow_net, le_net",
        ),
        ("tiny/report", {"attack": "weak"}, "tiny/report has no dimension 'attack', available: none"),
        (
            "tiny/adversarial_set",
            {"a": "le_net", "b": "weak"},
            "tiny/adversarial_set has no dimension 'a', available: architecture, attack",
        ),
    ],
)
def test_a_wrong_name_is_told_from_a_missing_cell(
    declared: Lab, asset: str, partition: dict[str, str], sentence: str
) -> None:
    assert missing(asset, **partition).startswith(sentence)


def test_a_wrong_experiment_file_does_not_hide_that_a_cell_is_missing(
    blank: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    blank.write_text("type: dioptra_assets.experiment.Experiment\nattributes: {}\n")
    monkeypatch.setattr(definitions, "defs", blank.defs)
    assert missing("tiny/report") == (
        "tiny/report has not been materialized, and its experiment cannot be loaded: experiment 'tiny', field 'data': a"
        " value is required"
    )
    assert len(da.cells("tiny")) == 0, "its name is no wrong one"


def test_a_damaged_cell_is_an_error_and_not_a_missing_one(lab: Lab) -> None:
    lab.break_model("le_net")
    with pytest.raises(DamagedCellError, match="tiny/model/le_net is damaged"):
        da.load("tiny/model", architecture="le_net")


def test_materialize_in_python_makes_its_home_where_there_is_none(
    blank: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "new" / "home"))
    monkeypatch.setattr(definitions, "defs", blank.defs)
    with pytest.raises(LookupError, match="there is no experiment 'other', available: tiny"):
        loading.materialize("other", log=print)
    assert (tmp_path / "new" / "home").is_dir()
