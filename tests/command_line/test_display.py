"""What a launch says while it works: in a terminal and without one."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from dioptra_assets import progress
from dioptra_assets.command_line import display
from dioptra_assets.command_line.display import line, showing
from dioptra_assets.definitions import defs
from dioptra_assets.runs.launch import materialize_experiment
from dioptra_assets.runs.selection import Selection
from resources import settings
from resources.instance import home_instance
from resources.store import CellStore
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


def test_the_demo_says_how_long_it_takes_before_anything_was_measured() -> None:
    assets = {key.to_user_string() for key in defs().resolve_all_asset_keys() if key.path[0] == "digits"}
    assert assets == set(progress.FIRST_GUESSES)


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


def shown(*, terminal: bool) -> str:
    file = io.StringIO()
    with showing(Console(file=file, force_terminal=terminal, width=100)), progress.board() as shown:
        shown.expected = {"made_up/training_set": 1, "made_up/model": 2, "made_up/report": 0}
        for asset, cells in shown.expected.copy().items():
            progress.begin(asset, cells)
            for _ in range(cells):
                progress.said(f"{asset}/le_net", "epoch 1 of 2", 0.5)
                progress.ended()
    return file.getvalue()


def test_without_a_terminal_there_is_a_plain_line_for_each_asset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(display, "LINE_SECONDS", 1e9)
    said = shown(terminal=False)
    assert "\r" not in said and "\x1b" not in said
    assert [text.split(", ")[0] for text in said.splitlines()] == [
        "made_up/training_set: computing 1 cell; 0 of 3 cells done in all",
        "made_up/model: computing 2 cells; 1 of 3 cells done in all",
    ]


def test_in_a_terminal_it_is_shown_live_and_each_asset_leaves_a_line() -> None:
    said = shown(terminal=True)
    assert "made_up/training_set: 1 cell in " in said
    assert "made_up/model: 2 cells in " in said
    assert said.index("\x1b[?25l") < said.rindex("\x1b[?25h"), "the cursor is hidden, and shown again"


def test_what_a_step_writes_is_in_the_log_of_its_run_and_not_in_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    with home_instance() as instance:
        launched = materialize_experiment(
            made_up.defs(),
            "made_up",
            instance=instance,
            store=CellStore(settings.store_url()),
            only=Selection(["training_set"]),
        )
    assert [cell.path for cell in launched.computed] == ["made_up/training_set"]
    assert capfd.readouterr() == ("", "")
    written = [path.read_text() for path in (tmp_path / "storage").rglob("*.out")]
    assert any("what made_up/training_set writes to stdout" in text for text in written)
    assert (tmp_path / "dagster.yaml").read_text() == (ROOT / "dagster.yaml").read_text(), "the project's settings"
