"""Gates: what a model's numbers must reach, one sentence a rule, judged on a metric table."""

import math
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict

from dioptra_assets.robustness.examples import NO_DEFENCE

Severity = Literal["block", "warn"]
# Rates of the metric tables by the family of attacks they judge; the larger the better, or the smaller.
METRICS = {
    "evasion": ("robust_accuracy", "clean_accuracy", "asr"),
    "poisoning": ("ra", "clean_accuracy", "asr"),
}
SMALLER_IS_BETTER = frozenset({"asr"})
FORMS = (
    "`METRIC >= NUMBER`, `METRIC <= NUMBER`, or `METRIC no worse than last by K standard errors`, then"
    " `for ATTACK` (`*` stands for anything) and `behind DEFENCE` where it is not to hold for all or is behind one"
)
_RULE = re.compile(
    r"(?P<metric>\w+)\s*(?:(?P<sign>>=|<=)\s*(?P<bound>[0-9.eE+-]+)"
    r"|\s+no\s+worse\s+than\s+last\s+by\s+(?P<errors>[0-9.]+)\s+standard\s+errors?)"
    r"(?:\s+for\s+(?P<attack>\S+))?(?:\s+behind\s+(?P<defence>\w+))?"
)
GATE_COLUMNS = {
    "rule": "what must hold",
    "severity": "block: the cell fails, and with it what is made from it; warn: it is but said",
    "architecture": "the model that is judged",
    "attack": "the attack config",
    "metric": "the rate",
    "value": "of the model, the worst where a defence has an oblivious and an adaptive one",
    "low": "lower end of its 95 % interval",
    "high": "upper end of its 95 % interval",
    "n": "images it was measured on",
    "limit": "what it is held against; empty where there is no last version yet",
    "passed": "whether it holds",
}


class Gate(BaseModel):
    """One rule on the numbers of every model.

    Attributes:
        rule: the sentence it was written as.
        severity: block or warn.
        metric: a rate of the metric tables.
        sign: `>=`, `<=`, or `last`: no worse than the version before it.
        bound: the limit in [0, 1]; with `last`, the standard errors it may be worse by.
        attack: attack keys it holds for; `*` stands for anything.
        defence: the defence the model stands behind.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rule: str
    severity: Severity = "block"
    metric: str
    sign: Literal[">=", "<=", "last"]
    bound: float
    attack: str = "*"
    defence: str = NO_DEFENCE

    @property
    def name(self) -> str:
        """What its check is called: letters, digits and `_`."""
        return re.sub(r"\W+", "_", self.rule.replace(">=", "at_least").replace("<=", "at_most")).strip("_")

    def holds_for(self, family: str, attack: str) -> bool:
        """Whether the rule says anything on an attack config."""
        return self.metric in METRICS.get(family, ()) and fnmatchcase(attack, self.attack)


def parse_gate(rule: str, severity: Severity = "block") -> Gate:
    """The rule that a sentence states.

    Raises:
        ValueError: with the forms that there are, where the sentence has none of them.
    """
    found = _RULE.fullmatch(rule.strip())
    if not found:
        raise ValueError(f"{rule!r} is not understood, a gate is {FORMS}")
    known = sorted({metric for metrics in METRICS.values() for metric in metrics})
    if found["metric"] not in known:
        raise ValueError(f"{rule!r}: there is no metric {found['metric']!r}, there are {', '.join(known)}")
    sign, text = (found["sign"], found["bound"]) if found["sign"] else ("last", found["errors"])
    try:
        bound = float(text)
    except ValueError:
        raise ValueError(f"{rule!r}: {text!r} is no number") from None
    if sign != "last" and not 0 <= bound <= 1:
        raise ValueError(f"{rule!r}: {text} is not allowed, a rate is from 0 to 1")
    values = {"rule": " ".join(rule.split()), "severity": severity, "metric": found["metric"], "bound": bound}
    named = {key: found[key] for key in ("attack", "defence") if found[key]}
    return Gate.model_validate({**values, **named, "sign": sign})


def judge(
    gates: Sequence[Gate], metrics: pd.DataFrame, *, family: str, architecture: str, attack: str, last: pd.DataFrame
) -> pd.DataFrame:
    """Every rule that holds for one cell, and whether it does.

    A rate is held against the limit as measured; a limit within its interval is decided by few images. A rate without
    a value (no image counts in it) does not pass.

    Args:
        gates: the rules.
        metrics: the cell's rows of `metric_table` or `poisoning_metrics`.
        family: evasion or poisoning.
        architecture: whose own rows are judged.
        attack: the attack key of the cell.
        last: what this gave for the version before; empty where there is none.

    Returns:
        Rows of `GATE_COLUMNS`.
    """
    rows = []
    for gate in gates:
        if not gate.holds_for(family, attack):
            continue
        found = _worst(gate, _own(metrics, family, architecture, gate.defence))
        row = {"rule": gate.rule, "severity": gate.severity, "architecture": architecture, "attack": attack}
        limit = _limit(gate, found, last)
        row |= {"metric": gate.metric, **found, "limit": limit, "passed": _passed(gate, found["value"], limit)}
        rows.append(row)
    return pd.DataFrame(rows, columns=[*GATE_COLUMNS])


def _own(metrics: pd.DataFrame, family: str, architecture: str, defence: str) -> pd.DataFrame:
    rows = metrics[metrics["defence"] == defence]
    mine = rows["target"] == architecture if family == "evasion" else rows["model_kind"] == "poisoned"
    return rows[mine]  # pyright: ignore[reportReturnType]


def _worst(gate: Gate, rows: pd.DataFrame) -> dict[str, Any]:
    """Value, interval and count of the rate, of the row in which it is worst."""
    rates = rows[gate.metric].astype(float)
    if rates.isna().all():
        return {"value": math.nan, "low": math.nan, "high": math.nan, "n": 0}
    largest = gate.sign == "<=" or gate.metric in SMALLER_IS_BETTER
    row: Any = rows.iloc[int(np.nanargmax(rates) if largest else np.nanargmin(rates))]
    count = row["asr_n"] if gate.metric in ("asr", "ra") else row["n"]
    ends = {end: float(row[f"{gate.metric}_{end}"]) for end in ("low", "high")}
    return {"value": float(row[gate.metric]), **ends, "n": int(count)}


def _limit(gate: Gate, found: Mapping[str, Any], last: pd.DataFrame) -> float:
    if gate.sign != "last":
        return gate.bound
    before = last[last["rule"] == gate.rule] if len(last) else last
    if not len(before) or not found["n"]:
        return math.nan
    value, count = float(before["value"].iloc[0]), int(before["n"].iloc[0])
    # Standard error of the difference of two proportions that were measured apart from one another.
    error = math.sqrt(value * (1 - value) / max(count, 1) + found["value"] * (1 - found["value"]) / max(found["n"], 1))
    return value + gate.bound * error if gate.metric in SMALLER_IS_BETTER else value - gate.bound * error


def _passed(gate: Gate, value: float, limit: float) -> bool:
    if gate.sign == "last" and math.isnan(limit):
        return not math.isnan(value)
    at_most = gate.sign == "<=" or (gate.sign == "last" and gate.metric in SMALLER_IS_BETTER)
    return value <= limit if at_most else value >= limit
