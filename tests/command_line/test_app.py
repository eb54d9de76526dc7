"""The command line: results on stdout, an expected failure as one line on stderr, and an exit code."""

import sys
from functools import partial
from pathlib import Path

import pytest

import dioptra_assets as da
from dioptra_assets import definitions
from dioptra_assets.command_line import app, overview
from tests.conftest import ARCHITECTURES, ATTACKS, CELLS, EXPERIMENT, Lab, skeleton


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal in which a long line would be folded."""
    monkeypatch.setattr(app.console, "width", 80)
    monkeypatch.setattr(app.errors, "width", 40)


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Call `dioptra-assets` with arguments: exit code, lines on stdout, lines on stderr."""

    def run(*arguments: str) -> tuple[int, list[str], list[str]]:
        monkeypatch.setattr(sys, "argv", ["dioptra-assets", *arguments])
        with pytest.raises(SystemExit) as ended:
            app.main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out.splitlines(), printed.err.splitlines()

    return run


def test_materialize_computes_a_cell_that_was_lost_and_says_what_was_up_to_date(
    lab: Lab, call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(definitions, "defs", lab.defs)
    (lab.home / "store/tiny/evasion_metrics/le_net/weak/CURRENT").unlink()
    code, out, _ = call("materialize", "tiny")
    assert code == 0
    first, last = out
    assert first.startswith("tiny/evasion_metrics: computing 1 cell; 0 of ")
    assert last == f"1 cell computed, {CELLS - 1} were up to date"


def test_materialize_of_an_unknown_experiment_is_one_line(looking: Lab, call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(definitions, "defs", looking.defs)
    assert call("materialize", "tyni") == (2, [], ["there is no experiment 'tyni', available: tiny"])


def test_materialize_says_of_each_failed_cell_why_and_counts_what_was_not_tried(
    blank: Lab, call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setattr(definitions, "defs", blank.defs)
    blank.write({**EXPERIMENT, "data": {"source": "mnist", "directory": str(tmp_path / "nowhere")}})
    code, out, err = call("materialize", "tiny")
    assert code == 1
    assert out[-1] == "5 cells computed, 0 were up to date", "the configs need no data"
    expected = "failed: dioptra_assets.robustness.data.base.DataError: "
    assert [line.split(expected)[0] for line in err[:-1]] == ["tiny/testing_set ", "tiny/training_set "]
    assert all("nowhere" in line and "DIOPTRA_ASSETS_DATA" in line for line in err[:-1])
    assert err[-1] == f"{CELLS - 7} cells not tried, because their inputs failed"


def test_a_wrong_experiment_file_is_its_sentence(blank: Lab, call, monkeypatch: pytest.MonkeyPatch) -> None:
    blank.write({**EXPERIMENT, "attacks": {"fgm": {"eps": -1}}})
    monkeypatch.setattr(definitions, "defs", blank.defs)
    sentence = "experiment 'tiny', attacks entry 'fgm', field 'eps': -1 is not allowed, it must be greater than 0"
    assert call("materialize", "tiny") == (1, [], [sentence])


@pytest.fixture
def one_wrong(looking: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """A project whose experiment `tiny` is materialized, and whose experiment `wrong` has a mistake."""
    project = skeleton(tmp_path / "with_a_mistake")
    project.write(EXPERIMENT)
    project.write({**EXPERIMENT, "attacks": {"fgm": {"eps": -1}}}, "wrong")
    package = project.folder / project.module
    monkeypatch.syspath_prepend(str(project.folder))
    monkeypatch.setattr(definitions, "defs", project.defs)
    monkeypatch.setattr(definitions, "mistakes", partial(definitions.mistakes, package=package))
    monkeypatch.setattr(overview, "defs", project.defs)
    return project


SENTENCE = "experiment 'wrong', attacks entry 'fgm', field 'eps': -1 is not allowed, it must be greater than 0"


def test_a_mistake_in_another_experiment_is_listed_and_does_not_stop_this_one(one_wrong: Lab, call) -> None:
    code, out, _ = call("materialize", "tiny")
    assert (code, out[-1]) == (0, f"0 cells computed, {CELLS} were up to date")
    code, out, err = call("list")
    assert (code, err) == (0, [SENTENCE])
    assert any("wrong" in line and "broken" in line for line in out)
    assert any("tiny" in line and str(CELLS) in line for line in out)


@pytest.mark.parametrize("command", ["materialize", "list", "check"])
def test_the_broken_experiment_itself_is_its_sentence(one_wrong: Lab, call, command: str) -> None:
    assert call(command, "wrong") == (1, [], [SENTENCE])


def test_check_says_each_mistake_and_nothing_else(one_wrong: Lab, call) -> None:
    assert call("check") == (1, [], [SENTENCE])
    assert call("check", "tiny") == (0, ["tiny: no mistakes found"], [])
    assert call("check", "tyni") == (2, [], ["there is no experiment 'tyni', available: tiny, wrong"])
    one_wrong.write(EXPERIMENT, "wrong")
    assert call("check") == (0, ["all experiments: no mistakes found"], [])


def test_transfer_prints_every_model_on_the_images_made_on_every_model(looking: Lab, call) -> None:
    code, out, err = call("transfer", "tiny")
    assert (code, err) == (0, [])
    text = "\n".join(out)
    assert "robust accuracy in %, [95 % interval]" in text
    rows = [line for line in out if any(f" {attack} " in line for attack in ATTACKS)]
    assert len(rows) == len(ARCHITECTURES) * len(ATTACKS)
    matrix = da.load("tiny/transfer_matrix")
    value = matrix.query("attack == 'fgm_0.3' and source == 'le_net' and target == 'le_net'")["robust_accuracy"].item()
    (row,) = (line for line in rows if "fgm_0.3" in line and line.split("│")[2].strip() == "le_net")
    assert f"{100 * value:.1f} " in row


@pytest.mark.parametrize(("command", "asset"), [("transfer", "transfer_matrix"), ("report", "report")])
def test_what_has_not_been_materialized_is_one_line_with_the_command(
    blank: Lab, call, monkeypatch: pytest.MonkeyPatch, command: str, asset: str
) -> None:
    monkeypatch.setattr(definitions, "defs", blank.defs)
    code, out, err = call(command, "tiny")
    assert (code, out) == (1, [])
    makes = f"dioptra-assets materialize tiny --asset '{asset}'"
    assert err == [f"tiny/{asset} has not been materialized: `{makes}` makes it"]
    assert call(command, "tyni")[0] == 1


def test_report_writes_the_page_and_says_where(lab: Lab, call, tmp_path: Path) -> None:
    target = lab.home / "reports" / "tiny.html"
    assert call("report", "tiny") == (0, [f"report: {target}"], [])
    assert target.read_text() == da.load("tiny/report").html
    elsewhere = tmp_path / "deep" / "page.html"
    assert call("report", "tiny", "--output", str(elsewhere)) == (0, [f"report: {elsewhere}"], [])
    assert elsewhere.exists()


def test_the_page_follows_the_experiment(blank: Lab, call, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (definitions, overview):
        monkeypatch.setattr(module, "defs", blank.defs)
    page = blank.home / "reports" / "tiny.html"
    small = {**EXPERIMENT, "architectures": {"shallow_net": {"epochs": 1}}, "attacks": {"fgm": {"eps": 0.1}}}
    blank.write(small)
    code, out, _ = call("materialize", "tiny")
    assert (code, out[-1]) == (0, f"report: {page}")
    blank.write({**small, "description": "Another title of the same numbers."})
    assert call("report", "tiny")[2] == [
        "the report is out of date, tiny has changed since: run `dioptra-assets materialize tiny`"
    ]
    assert "Another title" not in page.read_text()
    assert call("materialize", "tiny")[0] == 0
    assert "Another title" in page.read_text()
    assert call("report", "tiny") == (0, [f"report: {page}"], [])


def test_a_store_that_cannot_be_opened_is_one_line_naming_the_setting(
    blank: Lab, call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("DIOPTRA_ASSETS_STORE", str(tmp_path / "file" / "store"))
    code, out, err = call("report", "tiny")
    assert (code, out, len(err)) == (1, [], 1)
    assert "DIOPTRA_ASSETS_STORE" in err[0]


def test_without_arguments_the_commands_are_shown(call) -> None:
    _, out, err = call()
    text = "\n".join(out + err)
    for command in ("demo", "materialize", "transfer", "report"):
        assert command in text
