"""Gates as a user meets them: a rule in the file, a verdict on every cell, a run and a command that fail."""

import shutil
from collections.abc import Callable
from typing import Any

import dagster as dg
import pytest
from click.testing import Result
from typer.testing import CliRunner

from dioptra_assets import definitions
from dioptra_assets.command_line import app
from partitions.entries import ExperimentError
from partitions.experiments import parse_experiment
from resources.tables import read_table
from tests.conftest import EXPERIMENT, Lab

EASY = "robust_accuracy >= 0 for fgm*"
HARD = "robust_accuracy >= 1 for fgm_0.3"
STEADY = "clean_accuracy no worse than last by 1 standard error"


def gated(lab: Lab, *gates: Any) -> Lab:
    lab.write({**EXPERIMENT, "gates": list(gates)})
    return lab


def asked(lab: Lab, monkeypatch: pytest.MonkeyPatch, *options: str) -> Result:
    """What `dioptra-assets gate tiny` says, of the lab's project."""
    return of_lab(lab, lambda: CliRunner().invoke(app.app, ["gate", "tiny", *options]))


def of_lab(lab: Lab, ask: Callable[[], Any]) -> Any:
    """An answer of the client on the lab's project in place of this repository."""
    spec, defs = definitions.experiment_spec, definitions.defs
    try:
        definitions.experiment_spec = lambda name: spec(name, lab.folder / lab.module)
        definitions.defs = lab.defs
        return ask()
    finally:
        definitions.experiment_spec, definitions.defs = spec, defs


def evaluations(lab: Lab) -> dict[tuple[str, str | None], bool]:
    """(check, partition) -> whether it passed, of the latest evaluation."""
    with lab.instance() as instance:
        records = instance.get_event_records(dg.EventRecordsFilter(dg.DagsterEventType.ASSET_CHECK_EVALUATION))
    found: dict[tuple[str, str | None], bool] = {}
    for record in reversed(records):
        event = record.event_log_entry.dagster_event
        assert event is not None
        evaluation = event.asset_check_evaluation_data
        if evaluation.asset_key.path[-1] == "evasion_gate":
            found[evaluation.check_name, evaluation.partition] = evaluation.passed
    return found


def test_gates_that_hold_are_checks_of_every_cell_and_part_of_the_report(lab: Lab) -> None:
    launched = gated(lab, EASY, STEADY).materialize()

    assert not launched.failed and not launched.skipped
    assert {cell.asset for cell in launched.computed} == {"tiny/evasion_gate", "tiny/report"}
    verdicts = evaluations(lab)
    names = {name for name, _ in verdicts}
    assert names == {"robust_accuracy_at_least_0_for_fgm", "clean_accuracy_no_worse_than_last_by_1_standard_error"}
    assert verdicts["robust_accuracy_at_least_0_for_fgm", "le_net|fgm_0.1"] is True
    assert ("robust_accuracy_at_least_0_for_fgm", "le_net|weak") not in verdicts
    assert len(verdicts) == 4 + 6
    assert EASY.replace(">", "&gt;") in lab.find("report").read("report.html").decode()


def test_dagster_shows_the_verdict_of_each_cell_as_one_of_its_last_materialization(lab: Lab) -> None:
    gated(lab, {"rule": "robust_accuracy >= 1 for fgm_0.3", "severity": "warn"}, EASY).materialize()
    gate = dg.AssetKey(["tiny", "evasion_gate"])
    names = ("robust_accuracy_at_least_1_for_fgm_0_3", "robust_accuracy_at_least_0_for_fgm")
    with lab.instance() as instance:
        infos = instance.event_log_storage.get_asset_check_partition_info([dg.AssetCheckKey(gate, n) for n in names])
    shown = {
        (info.check_key.name, info.partition_key): info.latest_execution_status.value
        for info in infos
        if info.latest_materialization_storage_id == info.latest_target_materialization_storage_id
    }
    assert shown[names[0], "le_net|fgm_0.3"] == "FAILED"
    assert shown[names[1], "le_net|fgm_0.1"] == "SUCCEEDED"
    assert len(shown) == 2 + 4


def test_a_gate_that_blocks_fails_its_cell_alone_and_keeps_the_report_back_every_time(lab: Lab) -> None:
    gated(lab, HARD)
    shutil.rmtree(lab.home / "store" / "tiny" / "report")
    for _ in range(2):
        launched = lab.materialize()
        said = {cell.path: why for cell, why in launched.failed.items()}
        withheld = said.pop("tiny/report")
        assert set(said) == {"tiny/evasion_gate/shallow_net/fgm_0.3", "tiny/evasion_gate/le_net/fgm_0.3"}
        assert all("gate `robust_accuracy >= 1 for fgm_0.3` does not hold" in why for why in said.values())
        assert "withheld" in withheld and "tiny/evasion_metrics/le_net/fgm_0.3" in withheld
    assert lab.find("evasion_gate", architecture="le_net", attack="weak") is not None
    assert evaluations(lab)["robust_accuracy_at_least_1_for_fgm_0_3", "le_net|fgm_0.3"] is False


def test_a_gate_that_warns_fails_nothing(lab: Lab) -> None:
    launched = gated(lab, {"rule": HARD, "severity": "warn"}).materialize()
    assert not launched.failed and not launched.skipped
    assert evaluations(lab)["robust_accuracy_at_least_1_for_fgm_0_3", "le_net|fgm_0.3"] is False


def test_editing_a_gate_makes_its_verdicts_stale_and_nothing_before_them(lab: Lab) -> None:
    gated(lab, EASY).materialize()
    gated(lab, "robust_accuracy >= 0.001 for fgm*")
    stale = {path.split("/")[1] for path, status in lab.statuses().items() if status == "STALE"}
    assert stale == {"evasion_gate", "report"}


def test_the_same_numbers_again_are_held_against_the_version_before_them(lab: Lab) -> None:
    gated(lab, STEADY).materialize()
    before = lab.bytes()
    assert lab.run("evasion_gate", "le_net|fgm_0.1").success
    verdict = lab.find("evasion_gate", architecture="le_net", attack="fgm_0.1")
    assert list(read_table(verdict)["against"]) == ["no version before it has passed"]
    assert {path: digest for path, digest in lab.bytes().items() if path in before} == before


@pytest.mark.parametrize(
    ("gate", "code", "said"),
    [
        (EASY, 0, "pass  le_net fgm_0.3: gate `robust_accuracy >= 0 for fgm*` holds: robust_accuracy"),
        (HARD, 1, "FAIL  le_net fgm_0.3: gate `robust_accuracy >= 1 for fgm_0.3` does not hold: robust_accuracy"),
        ({"rule": HARD, "severity": "warn"}, 0, "warn  le_net fgm_0.3: gate"),
    ],
)
def test_the_command_ends_with_a_code_that_ci_can_use(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, gate: Any, code: int, said: str
) -> None:
    result = asked(gated(lab, gate), monkeypatch)
    assert result.exit_code == code, result.output
    assert said in result.output


def test_the_command_does_not_pass_what_was_not_measured(blank: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    result = asked(gated(blank, EASY), monkeypatch)
    assert result.exit_code == 3
    assert (
        "not judged  le_net fgm_0.1: gate `robust_accuracy >= 0 for fgm*` is not judged; its numbers are stale or"
        in (result.output)
    )


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        ({"attacks": {"fgm": {"eps": [0.1, 0.3], "norm": 2}}}, "tiny/attack_config/fgm_0.1 was edited"),
        ({"architectures": {"le_net": {"epochs": 2}}}, "tiny/architecture_config/le_net was edited"),
        ({"data": {"source": "digits", "image_size": [16, 16], "test_fraction": 0.2}}, "tiny/testing_set was edited"),
    ],
)
def test_the_command_does_not_pass_numbers_of_what_the_file_said_before(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, edit: dict[str, Any], said: str
) -> None:
    assert gated(lab, EASY) and asked(lab, monkeypatch).exit_code == 0
    lab.write({**EXPERIMENT, **edit, "gates": [EASY]})
    result = asked(lab, monkeypatch)
    assert result.exit_code == 3 and said in result.output


def test_the_command_says_what_is_not_an_experiment_and_what_asks_nothing(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert asked(lab, monkeypatch).exit_code == 2
    assert "has no gates" in asked(lab, monkeypatch).output
    lab_without = asked(gated(lab, EASY), monkeypatch, "--version", "team@1")
    assert lab_without.exit_code == 2 and "has not met a registered model team@1" in lab_without.output


@pytest.mark.parametrize(
    ("gates", "said"),
    [
        (["robust_accuracy > 1"], "cannot be read, a gate is"),
        ([EASY, EASY], "the rule is given twice"),
        (
            ["robust_accuracy >= 0.5 for pgd"],
            "no attack 'pgd' has the metric 'robust_accuracy', available: fgm_",
        ),
        (["ra >= 0.5"], "no attack '*' has the metric 'ra', available: none"),
        (["asr <= 0.5 behind jpeg"], "there is no defence 'jpeg'"),
        ([{"rule": EASY, "severity": "stop"}], "'stop' is not allowed, it must be one of block, warn"),
        (["asr no worse than @champion"], "'@champion' is an alias, which only registered models have: say `watch`"),
        (["robust_accuracy >= 0.5 for pgd*"], "no attack 'pgd*' has the metric"),
        ([{"role": EASY}], "write a sentence, or `{rule: SENTENCE, severity: warn}`"),
    ],
)
def test_a_gate_that_could_never_hold_is_refused_when_the_file_is_read(gates: list[Any], said: str) -> None:
    with pytest.raises(ExperimentError) as refused:
        parse_experiment("tiny", {**EXPERIMENT, "gates": gates})
    assert str(refused.value).startswith("experiment 'tiny', gates entry ")
    assert said in str(refused.value)
