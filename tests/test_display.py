"""What a launch says while it works: in a terminal and without one."""

import io
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from dioptra_assets import progress
from dioptra_assets.display import line, showing
from dioptra_assets.launch import materialize_experiment
from resources import home
from resources.cells import CellStore
from tests import made_up_cells as made_up
from tests.conftest import ROOT, SETTINGS


def board(**expected: int) -> progress.Board:
    return progress.Board(expected={f"made_up/{asset}": cells for asset, cells in expected.items()})


def test_the_line_counts_what_is_done_and_not_what_is_to_do() -> None:
    shown = board(model=2, adversarial_set=4)
    shown.remembered = {"made_up/model": 10.0, "made_up/adversarial_set": 2.0}
    shown.begin("made_up/model", 2)
    assert line(shown) == "made_up/model: computing 2 cells; 0 of 6 cells done in all, about 28 s left"
    shown.said("made_up/model/le_net", "epoch 2 of 4", 0.5)
    assert line(shown).startswith("made_up/model: le_net epoch 2 of 4, 0 of 2 cells; 0 of 6 cells done in all, about ")
    shown.ended()
    assert line(shown).startswith("made_up/model: 1 of 2 cells; 1 of 6 cells done in all, about ")


def test_the_time_left_is_unknown_until_every_kind_of_cell_is_known() -> None:
    shown = board(model=1, adversarial_set=4)
    shown.begin("made_up/model", 1)
    assert line(shown).endswith("0 of 5 cells done in all, time left not known yet")
    shown.remembered = {"made_up/model": 1.0, "made_up/adversarial_set": 1.0}
    assert line(shown).endswith("about 5 s left")


def test_cells_that_fail_are_not_done() -> None:
    shown = board()
    shown.begin("made_up/model", 2)
    shown.ended(failed=True)
    assert (shown.computed, shown.left) == (0, 1)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (None, "time left not known yet"),
        (0.2, "about 1 s left"),
        (89, "about 89 s left"),
        (100, "about 1 min 40 s left"),
        (3000, "about 50 min left"),
        (7200, "about 2 h left"),
        (8000, "about 2 h 10 min left"),
    ],
)
def test_a_time_is_said_as_people_say_it(seconds: float | None, said: str) -> None:
    assert progress.clock(seconds) == said


def shown(monkeypatch: pytest.MonkeyPatch, folder: Path, *, terminal: bool) -> str:
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DAGSTER_HOME", str(folder))
    shutil.copy(ROOT / "dagster.yaml", folder)
    file = io.StringIO()
    with showing(Console(file=file, force_terminal=terminal, width=100)), home.instance() as instance:
        materialize_experiment(made_up.defs(), "made_up", instance=instance, store=CellStore(home.store_url()))
    return file.getvalue()


def test_without_a_terminal_there_is_a_plain_line_for_each_asset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    said = shown(monkeypatch, tmp_path, terminal=False)
    assert "\r" not in said and "\x1b" not in said
    assert [text.split(";")[0] for text in said.splitlines()] == [
        "made_up/testing_set: computing 1 cell",
        "made_up/training_set: computing 1 cell",
        "made_up/model: computing 2 cells",
        "made_up/adversarial_set: computing 4 cells",
    ]
    assert "; 4 of 8 cells done in all, " in said.splitlines()[-1]
    out, err = capfd.readouterr()
    assert (out, err) == ("", ""), "what steps write is in the log of their run"
    logs = [path.read_text() for path in (tmp_path / "storage").rglob("*.out")]
    assert any("what made_up/model/le_net writes to stdout" in text for text in logs)


def test_in_a_terminal_it_is_shown_live_and_each_asset_leaves_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = shown(monkeypatch, tmp_path, terminal=True)
    assert "made_up/model: 2 cells in " in said
    assert "made_up/adversarial_set: 4 cells in " in said
    assert said.rstrip().endswith("\x1b[?25h") or "\x1b[?25h" in said, "the cursor is shown again"
