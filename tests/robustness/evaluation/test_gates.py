"""Rules are sentences; a verdict is passed, failed or not judged, and never passed for want of a number."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dioptra_assets.robustness.evaluation.comparison import Z
from dioptra_assets.robustness.evaluation.gates import (
    GATE_COLUMNS,
    NOTHING_BEFORE,
    Gate,
    Measured,
    Reference,
    judge,
    overall,
    parse_gate,
    said,
)
from dioptra_assets.robustness.evaluation.metrics import METRIC_COLUMNS

pytestmark = pytest.mark.quick


def evasion(*rows: dict[str, Any]) -> pd.DataFrame:
    """Rows of a metric table; what a row leaves out is of le_net itself, without a defence."""
    base = {name: math.nan for name in METRIC_COLUMNS}
    base |= {"source": "le_net", "target": "le_net", "attack": "pgd_0.3", "defence": "none", "adaptive": False}
    base |= {"n": 100, "asr_n": 90, "robust_accuracy_low": 0.0, "robust_accuracy_high": 1.0}
    return pd.DataFrame([{**base, **row} for row in rows])


def verdict(
    rule: str, metrics: pd.DataFrame | None, *, against: Reference | None = None, family: str = "evasion", **more: Any
) -> pd.Series:
    gate = parse_gate(rule)
    measured = Measured(references={gate.rule: against} if against else {}, **more)
    table = judge([gate], metrics, measured, family=family, architecture="le_net", attack="pgd_0.3")
    assert list(table.columns) == list(GATE_COLUMNS)
    (row,) = [row for _, row in table.iterrows()]
    assert bool(row["passed"]) == (row["status"] == "passed")
    return row


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("robust_accuracy >= 0.6 for pgd_0.3", {"sign": ">=", "bound": 0.6, "attack": "pgd_0.3", "defence": "none"}),
        ("asr<=0.05", {"sign": "<=", "bound": 0.05, "attack": "*"}),
        ("robust_accuracy >= 0.6 for pgd* behind jpeg", {"attack": "pgd*", "defence": "jpeg"}),
        (
            "ra no worse than last by 2 standard errors",
            {"sign": "no worse", "bound": 2.0, "by": "standard errors", "against": "last"},
        ),
        ("asr no worse than best by 0.02", {"sign": "no worse", "bound": 0.02, "by": "rate", "against": "best"}),
        ("robust_accuracy no worse than last", {"by": "chance", "bound": Z, "alias": ""}),
        ("robust_accuracy no worse than @champion for pgd*", {"alias": "champion", "attack": "pgd*"}),
    ],
)
def test_a_sentence_becomes_a_rule(rule: str, expected: dict[str, Any]) -> None:
    gate = parse_gate(rule)
    assert {name: getattr(gate, name) for name in expected} == expected
    assert gate.severity == "block"
    assert gate.name.replace("_", "").isalnum()


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("accuracy > 0.5", "cannot be read, a gate is `METRIC >= NUMBER`"),
        ("speed >= 0.5", "there is no metric 'speed', available: asr, clean_accuracy, ra, robust_accuracy"),
        ("asr <= 5", "5 is not allowed, a rate is from 0 to 1"),
        ("asr <= 1e", "'1e' is not a number"),
        ("asr <= 1e999", "'1e999' is not a number"),
        ("asr no worse than first", "cannot be read"),
        ("asr no worse than best by 2", "2 is not allowed, a rate is from 0 to 1"),
        ("asr no worse than last by -1 standard errors", "it must be 0 or more standard errors"),
    ],
)
def test_a_sentence_that_is_no_rule_is_refused_with_what_is_one(rule: str, said: str) -> None:
    with pytest.raises(ValueError, match="^" + repr(rule)[0]) as refused:
        parse_gate(rule)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("rule", "value", "passed"),
    [
        ("robust_accuracy >= 0.6", 0.6, True),
        ("robust_accuracy >= 0.6", 0.59, False),
        ("robust_accuracy <= 0.6", 0.6, True),
        ("robust_accuracy <= 0.6", 0.61, False),
    ],
)
def test_a_limit_itself_passes(rule: str, value: float, passed: bool) -> None:
    assert bool(verdict(rule, evasion({"robust_accuracy": value}))["passed"]) is passed


def test_only_the_attacked_model_itself_is_judged() -> None:
    metrics = evasion({"robust_accuracy": 0.7}, {"target": "shallow_net", "robust_accuracy": 0.1})
    assert verdict("robust_accuracy >= 0.6", metrics)["value"] == 0.7


def test_behind_a_defence_the_worse_of_oblivious_and_adaptive_counts() -> None:
    metrics = evasion(
        {"robust_accuracy": 0.2},
        {"defence": "jpeg", "robust_accuracy": 0.9},
        {"defence": "jpeg", "adaptive": True, "robust_accuracy": 0.3},
    )
    assert verdict("robust_accuracy >= 0.6 behind jpeg", metrics)["value"] == 0.3


def test_behind_a_defence_that_was_judged_one_way_alone_nothing_is_judged() -> None:
    row = verdict("robust_accuracy >= 0.6 behind jpeg", evasion({"defence": "jpeg", "robust_accuracy": 0.9}))
    assert row["status"] == "not judged" and "one of them is missing" in row["why"]


@pytest.mark.parametrize("metrics", [None, evasion({"asr": math.nan}), evasion({"asr": 0.0, "asr_n": 0})])
def test_a_rate_of_no_image_is_not_judged(metrics: pd.DataFrame | None) -> None:
    row = verdict("asr <= 1", metrics)
    assert (row["status"], row["passed"]) == ("not judged", False)
    assert row["why"] and row["why"] in said(row)


def right(*counts: tuple[bool, int], start: int = 0) -> pd.Series:
    """Whether each image is right, in runs of so many."""
    values = np.concatenate([np.full(n, value) for value, n in counts])
    return pd.Series(values, index=[f"image {i}" for i in range(start, start + len(values))])


def test_versions_are_held_against_each_other_on_the_same_images() -> None:
    rule = "robust_accuracy no worse than last"
    before = Reference("team@1", 0.5, 100, right((True, 50), (False, 50)))
    # One image fewer is chance; twelve lost and none won are not, though two rates of 100 images may differ so far.
    lost = {"robust_accuracy": right((True, 38), (False, 62))}
    row = verdict(rule, evasion({"robust_accuracy": 0.38}), against=before, right=lost)
    assert row["status"] == "failed"
    assert row["against"] == "team@1, 0.5, on the same 100 images, 12 lost and 0 won"
    apart = verdict(rule, evasion({"robust_accuracy": 0.38}), against=Reference("team@1", 0.5, 100))
    assert apart["status"] == "passed" and "not paired" in apart["against"]
    other = {"robust_accuracy": right((True, 38), (False, 62), start=1)}
    assert "not paired" in verdict(rule, evasion({"robust_accuracy": 0.38}), against=before, right=other)["against"]
    fewer = {"robust_accuracy": right((True, 49), (False, 51))}
    assert verdict(rule, evasion({"robust_accuracy": 0.49}), against=before, right=fewer)["status"] == "passed"


def test_a_version_may_be_worse_than_the_last_by_so_many_standard_errors_and_no_more() -> None:
    rule = "robust_accuracy no worse than last by 2 standard errors"
    error = math.sqrt(0.5 * 0.5 / 100 + 0.4 * 0.6 / 100)
    row = verdict(rule, evasion({"robust_accuracy": 0.4}), against=Reference("before", 0.5, 100))
    assert row["limit"] == pytest.approx(0.5 - 2 * error)
    assert row["passed"] and row["reference"] == 0.5
    assert not verdict(rule, evasion({"robust_accuracy": 0.3}), against=Reference("before", 0.5, 100))["passed"]


def test_a_floor_below_another_version_is_met_by_the_rate_itself() -> None:
    rule, before = "robust_accuracy no worse than best by 0.02", Reference("team@1", 0.57, 100)
    assert verdict(rule, evasion({"robust_accuracy": 0.55}), against=before)["status"] == "passed"
    assert verdict(rule, evasion({"robust_accuracy": 0.54}), against=before)["status"] == "failed"


def test_of_an_attack_success_rate_worse_means_larger() -> None:
    rule, before = "asr no worse than last by 1 standard error", Reference("before", 0.5, 100)
    rates = {"asr_low": 0.0, "asr_high": 1.0}
    assert verdict(rule, evasion({"asr": 0.1, **rates}), against=before)["passed"]
    assert not verdict(rule, evasion({"asr": 0.9, **rates}), against=before)["passed"]


def test_a_first_version_has_nothing_to_be_worse_than() -> None:
    row = verdict("robust_accuracy no worse than last", evasion({"robust_accuracy": 0.0}), against=NOTHING_BEFORE)
    assert row["passed"] and math.isnan(row["limit"])
    assert "no version before it has passed" in said(row)


def test_a_version_that_cannot_be_looked_up_is_not_judged() -> None:
    unknown = Reference(why="no version of team has the alias 'champion'")
    rule = "robust_accuracy no worse than @champion"
    row = verdict(rule, evasion({"robust_accuracy": 1.0}), against=unknown)
    assert (row["status"], row["why"]) == ("not judged", unknown.why)
    assert verdict(rule, evasion({"robust_accuracy": 1.0}))["status"] == "not judged"


DOUBT = {("pgd_0.3", "none"): "gradients_are_there: 97.5% of the images have a gradient of zero"}


@pytest.mark.parametrize(
    ("rule", "row", "status"),
    [
        ("robust_accuracy >= 0.9", {"robust_accuracy": 0.95}, "not judged"),
        # A better attack would leave less still.
        ("robust_accuracy >= 0.9", {"robust_accuracy": 0.85}, "failed"),
        ("asr <= 0.1", {"asr": 0.0}, "not judged"),
        ("asr <= 0.1", {"asr": 0.2}, "failed"),
        ("robust_accuracy <= 0.5", {"robust_accuracy": 0.6}, "not judged"),
        ("robust_accuracy <= 0.5", {"robust_accuracy": 0.4}, "not judged"),
        ("clean_accuracy >= 0.9", {"clean_accuracy": 0.95}, "passed"),
    ],
)
def test_numbers_that_failed_their_sanity_checks_pass_nothing(rule: str, row: dict[str, Any], status: str) -> None:
    ends = {f"{name}_{end}": 0.5 for name in row for end in ("low", "high")}
    found = verdict(rule, evasion(row | ends), doubts=DOUBT)
    assert found["status"] == status
    assert ("97.5%" in said(found)) == (status != "passed")


def test_doubts_of_another_attack_say_nothing_and_those_of_the_model_behind_a_defence_do() -> None:
    fine = evasion({"robust_accuracy": 0.95})
    assert verdict("robust_accuracy >= 0.9", fine, doubts={("fgm", "none"): "weak"})["passed"]
    assert verdict("robust_accuracy >= 0.9", fine, doubts={("pgd_0.3", "jpeg"): "weak"})["passed"]
    assert not verdict("robust_accuracy >= 0.9", fine, doubts={("", "none"): "weak"})["passed"]
    behind = evasion(*({"defence": "jpeg", "adaptive": a, "robust_accuracy": 0.95} for a in (False, True)))
    for doubted in (("pgd_0.3", "none"), ("pgd_0.3", "jpeg"), ("", "jpeg")):
        assert not verdict("robust_accuracy >= 0.9 behind jpeg", behind, doubts={doubted: "weak"})["passed"]


NUMBERS = st.one_of(st.floats(allow_nan=True, allow_infinity=True), st.floats(0, 1), st.just(math.nan))
RULES = st.sampled_from(
    [
        "robust_accuracy >= 0",
        "asr <= 1",
        "clean_accuracy >= 0 for pgd*",
        "robust_accuracy no worse than last",
        "robust_accuracy no worse than best by 1",
        "robust_accuracy no worse than @champion by 100 standard errors",
        "asr >= 0 behind jpeg",
    ]
)


@example(
    rule="robust_accuracy >= 0",
    values=[(0.0, math.nan, math.nan, 1, False), (0.0, math.nan, math.nan, 0, False)],
    wrong=set(),
    reference=None,
)
@settings(deadline=None)
@given(
    rule=RULES,
    values=st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS, st.integers(0, 3), st.booleans()), max_size=3),
    wrong=st.sets(st.sampled_from(["missing", "stale", "unchecked", "doubted"])),
    reference=st.sampled_from([None, Reference(why="unknown"), NOTHING_BEFORE, Reference("team@1", 0.5, 10)]),
)
def test_nothing_passes_for_want_of_a_number(
    rule: str, values: list[tuple[float, float, float, int, bool]], wrong: set[str], reference: Reference | None
) -> None:
    missing, stale, unchecked, doubted = (one in wrong for one in ("missing", "stale", "unchecked", "doubted"))
    gate = parse_gate(rule)
    names = ("robust_accuracy", "clean_accuracy", "asr", "n", "adaptive")
    rows = [dict(zip(names, row, strict=True)) | {"defence": gate.defence, "asr_n": row[3]} for row in values]
    rates = {f"{name}_{end}": 0.5 for name in names[:3] for end in ("low", "high")}
    found = verdict(
        rule,
        None if missing else evasion(*(row | rates for row in rows)) if rows else evasion({})[:0],
        against=reference,
        stale="edited since" if stale else "",
        unchecked="not checked" if unchecked else "",
        doubts=DOUBT if doubted else {},
    )
    known = not missing and rows and all(0 <= row[gate.metric] <= 1 and row["n"] > 0 for row in rows)
    clean = gate.metric == "clean_accuracy"
    held = gate.sign != "no worse" or (reference is not None and not reference.why)
    if found["status"] == "passed":
        assert known and not stale and held and (clean or not (unchecked or doubted))
    if not known or stale or not held:
        assert found["status"] == "not judged" and found["why"]


@pytest.mark.parametrize(
    ("rows", "verdict"),
    [
        ([], "not judged"),
        ([("block", "passed"), ("warn", "failed")], "passed"),
        ([("block", "passed"), ("warn", "not judged")], "not judged"),
        ([("block", "not judged"), ("block", "failed")], "failed"),
        ([("block", None)], "not judged"),
    ],
)
def test_one_verdict_on_many(rows: list[tuple[str, str | None]], verdict: str) -> None:
    assert overall(pd.DataFrame(rows, columns=["severity", "status"])) == verdict


def test_a_backdoor_is_judged_by_the_poisoned_model_and_not_by_its_control() -> None:
    columns = {"defence": "none", "n": 100, "asr_n": 90, "asr_low": 0.0, "asr_high": 1.0}
    metrics = pd.DataFrame(
        [columns | {"model_kind": "clean control", "asr": 0.01}, columns | {"model_kind": "poisoned", "asr": 0.99}]
    )
    row = verdict("asr <= 0.05", metrics, family="poisoning")
    assert (row["value"], row["n"], bool(row["passed"])) == (0.99, 90, False)


def test_a_rule_of_another_family_says_nothing() -> None:
    gate = parse_gate("ra >= 0.5")
    assert isinstance(gate, Gate) and gate.holds_for("poisoning", "baseline") and not gate.holds_for("evasion", "fgm")
