import math
from typing import Any

import pandas as pd
import pytest

from dioptra_assets.robustness.gates import GATE_COLUMNS, Gate, judge, parse_gate
from dioptra_assets.robustness.metrics import METRIC_COLUMNS

NO_LAST = pd.DataFrame(columns=[*GATE_COLUMNS])


def evasion(*rows: dict[str, Any]) -> pd.DataFrame:
    """Rows of a metric table; what a row leaves out is of le_net itself, without a defence."""
    base = {name: math.nan for name in METRIC_COLUMNS}
    base |= {"source": "le_net", "target": "le_net", "attack": "pgd_0.3", "defence": "none", "adaptive": False}
    base |= {"n": 100, "asr_n": 90, "robust_accuracy_low": 0.0, "robust_accuracy_high": 1.0}
    return pd.DataFrame([{**base, **row} for row in rows])


def verdict(rule: str, metrics: pd.DataFrame, *, last: pd.DataFrame = NO_LAST, family: str = "evasion") -> pd.Series:
    table = judge([parse_gate(rule)], metrics, family=family, architecture="le_net", attack="pgd_0.3", last=last)
    assert list(table.columns) == list(GATE_COLUMNS)
    (row,) = [row for _, row in table.iterrows()]
    return row


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("robust_accuracy >= 0.6 for pgd_0.3", {"sign": ">=", "bound": 0.6, "attack": "pgd_0.3", "defence": "none"}),
        ("asr<=0.05", {"sign": "<=", "bound": 0.05, "attack": "*"}),
        ("robust_accuracy >= 0.6 for pgd* behind jpeg", {"attack": "pgd*", "defence": "jpeg"}),
        ("ra no worse than last by 2 standard errors", {"sign": "last", "bound": 2.0}),
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
        ("accuracy > 0.5", "is not understood, a gate is `METRIC >= NUMBER`"),
        ("speed >= 0.5", "there is no metric 'speed', there are asr, clean_accuracy, ra, robust_accuracy"),
        ("asr <= 5", "5 is not allowed, a rate is from 0 to 1"),
        ("asr <= 1e", "'1e' is no number"),
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


def test_a_rate_of_no_image_does_not_pass() -> None:
    assert not verdict("asr <= 1", evasion({"asr": math.nan}))["passed"]


def last(rule: str, value: float, n: int = 100) -> pd.DataFrame:
    return pd.DataFrame([{**dict.fromkeys(GATE_COLUMNS), "rule": rule, "value": value, "n": n}])


def test_a_version_may_be_worse_than_the_last_by_so_many_standard_errors_and_no_more() -> None:
    rule = "robust_accuracy no worse than last by 2 standard errors"
    error = math.sqrt(0.5 * 0.5 / 100 + 0.4 * 0.6 / 100)
    row = verdict(rule, evasion({"robust_accuracy": 0.4}), last=last(rule, 0.5))
    assert row["limit"] == pytest.approx(0.5 - 2 * error)
    assert row["passed"]
    assert not verdict(rule, evasion({"robust_accuracy": 0.3}), last=last(rule, 0.5))["passed"]


def test_of_an_attack_success_rate_worse_means_larger() -> None:
    rule = "asr no worse than last by 1 standard error"
    rates = {"asr_low": 0.0, "asr_high": 1.0}
    assert verdict(rule, evasion({"asr": 0.1, **rates}), last=last(rule, 0.5))["passed"]
    assert not verdict(rule, evasion({"asr": 0.9, **rates}), last=last(rule, 0.5))["passed"]


def test_a_first_version_has_nothing_to_be_worse_than() -> None:
    row = verdict("robust_accuracy no worse than last by 2 standard errors", evasion({"robust_accuracy": 0.0}))
    assert row["passed"] and math.isnan(row["limit"])


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
