"""Gates: what a model's numbers must reach, one sentence a rule, judged on a metric table.

A verdict is `passed`, `failed`, or `not judged`: where a number is missing, is no number, or is too good to be believed
because the attack that it comes from failed its sanity checks. What was not judged has not passed.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict

from dioptra_assets.robustness.evaluation.comparison import Z, paired_interval
from dioptra_assets.robustness.evaluation.examples import NO_DEFENCE

Severity = Literal["block", "warn"]
Status = Literal["passed", "failed", "not judged"]
PASSED, FAILED, NOT_JUDGED = "passed", "failed", "not judged"
# Rates of the metric tables by the family of attacks they judge; the larger the better, or the smaller.
METRICS = {
    "evasion": ("robust_accuracy", "clean_accuracy", "asr"),
    "poisoning": ("ra", "clean_accuracy", "asr"),
}
SMALLER_IS_BETTER = frozenset({"asr"})
# Rates of the untouched images: an attack that does not work changes nothing about them.
OF_CLEAN_IMAGES = frozenset({"clean_accuracy"})
FORMS = (
    "`METRIC >= NUMBER`, `METRIC <= NUMBER`, or `METRIC no worse than last` (or `best`, or `@ALIAS`), which may be"
    " followed by `by NUMBER` or `by K standard errors`; then `for ATTACK` (`*` stands for anything) and"
    " `behind DEFENCE` where it is not to hold for all or is behind one"
)
_NUMBER = r"[0-9.eE+-]+"
_RULE = re.compile(
    rf"(?P<metric>\w+)\s*(?:(?P<sign>>=|<=)\s*(?P<bound>{_NUMBER})"
    rf"|\s+no\s+worse\s+than\s+(?P<against>last|best|@[\w.-]+)"
    rf"(?:\s+by\s+(?P<less>{_NUMBER})(?P<errors>\s+standard\s+errors?)?)?)"
    r"(?:\s+for\s+(?P<attack>\S+))?(?:\s+behind\s+(?P<defence>\w+))?"
)
GATE_COLUMNS = {
    "rule": "what must hold",
    "severity": "block: the cell fails, and with it everything downstream; warn: it only warns",
    "architecture": "the model that is judged",
    "attack": "the attack config",
    "metric": "the rate",
    "value": "of the model, the worst where a defence has an oblivious and an adaptive one",
    "low": "lower end of its 95 % interval",
    "high": "upper end of its 95 % interval",
    "n": "images it was measured on",
    "limit": "what it is held against; empty where there is nothing to be worse than, or it was not judged",
    "against": "the version it is held against, and how the two were compared; empty for a number in the rule",
    "reference": "the rate of that version",
    "reference_n": "images that was measured on",
    "status": "passed, failed, or not judged",
    "why": "why it was not judged, or what its sanity checks said",
    "passed": "whether the status is passed",
    "judged": "data version of the metric table that was judged",
}


class Gate(BaseModel):
    """One rule on the numbers of every model.

    Attributes:
        rule: the sentence it was written as.
        severity: block or warn.
        metric: a rate of the metric tables.
        sign: `>=`, `<=`, or `no worse` than another version.
        bound: the limit in [0, 1]; with `no worse`, what it may be worse by.
        against: with `no worse`: `last`, the last version that passed; `best`, the version that passed with the best
            rate; or `@ALIAS`, the version with this alias in the registry.
        by: with `no worse`, the unit of `bound`: `rate`, `standard errors`, or `chance` (the number of standard errors
            in a 95 % interval).
        attack: attack keys it applies to; `*` matches anything.
        defence: the defence in front of the model.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rule: str
    severity: Severity = "block"
    metric: str
    sign: Literal[">=", "<=", "no worse"]
    bound: float
    against: str = ""
    by: Literal["", "rate", "standard errors", "chance"] = ""
    attack: str = "*"
    defence: str = NO_DEFENCE

    @property
    def name(self) -> str:
        """Name of its check: letters, digits and `_`."""
        return re.sub(r"\W+", "_", self.rule.replace(">=", "at_least").replace("<=", "at_most")).strip("_")

    @property
    def alias(self) -> str:
        """The alias of the version to compare with, or empty."""
        return self.against[1:] if self.against.startswith("@") else ""

    @property
    def smaller_is_better(self) -> bool:
        """Whether the limit is an upper bound."""
        return self.sign == "<=" or (self.sign == "no worse" and self.metric in SMALLER_IS_BETTER)

    @property
    def doubted(self) -> bool:
        """Whether a weak attack can only make this rule easier to pass."""
        return self.smaller_is_better == (self.metric in SMALLER_IS_BETTER)

    def holds_for(self, family: str, attack: str) -> bool:
        """Whether the rule applies to an attack config."""
        return self.metric in METRICS.get(family, ()) and fnmatchcase(attack, self.attack)


@dataclass(frozen=True)
class Reference:
    """The version that a rule compares a model with.

    Attributes:
        name: its name in the verdict.
        value: its rate, in [0, 1]; NaN if there is no such version.
        n: number of images it was measured on.
        right: whether it was right, by image id; None if that is not kept or does not apply.
        why: why the model cannot be compared with it; empty if it can.
    """

    name: str = ""
    value: float = math.nan
    n: int = 0
    right: pd.Series | None = None
    why: str = ""


NOTHING_BEFORE = Reference("no version before it has passed")


@dataclass(frozen=True)
class Measured:
    """What is known about one cell besides its metric table.

    Attributes:
        references: rule -> the version to compare with, for rules that compare.
        right: rate -> image id -> whether the model was right.
        doubts: (attack, defence) -> what the sanity checks found wrong; an empty attack stands for every attack.
        unchecked: why there are no sanity checks; empty if there are.
        stale: why the results are out of date; empty if they are not.
        version: data version of the metric table.
    """

    references: Mapping[str, Reference] = field(default_factory=dict)
    right: Mapping[str, pd.Series] = field(default_factory=dict)
    doubts: Mapping[tuple[str, str], str] = field(default_factory=dict)
    unchecked: str = ""
    stale: str = ""
    version: str = ""


def parse_gate(rule: str, severity: Severity = "block") -> Gate:
    """Parse the sentence of a rule.

    Raises:
        ValueError: the sentence has none of the allowed forms. The message lists them.
    """
    parts = _RULE.fullmatch(rule.strip())
    if not parts:
        raise ValueError(f"{rule!r} cannot be read, a gate is {FORMS}")
    known = sorted({metric for metrics in METRICS.values() for metric in metrics})
    if parts["metric"] not in known:
        raise ValueError(f"{rule!r}: there is no metric {parts['metric']!r}, available: {', '.join(known)}")
    bound = _number(rule, parts["bound"] or parts["less"] or str(Z))
    by = ""
    if parts["against"]:
        by = "standard errors" if parts["errors"] else "rate" if parts["less"] else "chance"
    if by in ("", "rate") and not 0 <= bound <= 1:
        raise ValueError(f"{rule!r}: {parts['bound'] or parts['less']} is not allowed, a rate is from 0 to 1")
    if bound < 0:
        raise ValueError(f"{rule!r}: {parts['less']} is not allowed, it must be 0 or more standard errors")
    named = {key: parts[key] for key in ("attack", "defence", "against") if parts[key]}
    values = {"rule": " ".join(rule.split()), "severity": severity, "metric": parts["metric"], "bound": bound, "by": by}
    return Gate.model_validate({**values, **named, "sign": parts["sign"] or "no worse"})


def _number(rule: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"{rule!r}: {text!r} is not a number") from None
    if not math.isfinite(number):
        raise ValueError(f"{rule!r}: {text!r} is not a number")
    return number


def judge(
    gates: Sequence[Gate],
    metrics: pd.DataFrame | None,
    measured: Measured,
    *,
    family: str,
    architecture: str,
    attack: str,
) -> pd.DataFrame:
    """Judge one cell by every rule that applies to it.

    The measured rate is compared with the limit; if the limit lies within the interval of the rate, few images decide.
    If the sanity checks say that the attack is weak, a rule that seems to hold is not judged. A rule that fails anyway
    has failed: a stronger attack would only make the result worse.

    Args:
        gates: the rules.
        metrics: the cell's rows of `metric_table` or `poisoning_metrics`; None if they have not been made.
        measured: what else is known about the cell.
        family: evasion or poisoning.
        architecture: the architecture whose rows are judged.
        attack: the attack key of the cell.

    Returns:
        Rows of `GATE_COLUMNS`.
    """
    rows = []
    for gate in gates:
        if not gate.holds_for(family, attack):
            continue
        measurement, fault = _measurement(gate, metrics, family, architecture)
        row = {"rule": gate.rule, "severity": gate.severity, "architecture": architecture, "attack": attack}
        row |= {"metric": gate.metric, **measurement, **_verdict(gate, measurement, fault, measured, attack)}
        rows.append(row | {"passed": row["status"] == PASSED, "judged": measured.version})
    return pd.DataFrame(rows, columns=[*GATE_COLUMNS])


def _measurement(
    gate: Gate, metrics: pd.DataFrame | None, family: str, architecture: str
) -> tuple[dict[str, Any], str]:
    """Value, interval and count of the rate in its worst row; and why there is none, if so."""
    nothing = {"value": math.nan, "low": math.nan, "high": math.nan, "n": 0}
    if metrics is None:
        return nothing, "its numbers are missing"
    rows = _rows_of(metrics, family, architecture, gate.defence)
    if rows.empty:
        behind = "" if gate.defence == NO_DEFENCE else f" behind {gate.defence}"
        return nothing, f"its numbers{behind} are missing"
    if family == "evasion" and gate.defence != NO_DEFENCE and set(rows["adaptive"]) != {False, True}:
        return nothing, f"behind {gate.defence} it takes an oblivious and an adaptive result, one of them is missing"
    rates = rows[gate.metric].astype(float).to_numpy()
    if np.isnan(rates).any():
        return nothing, f"{gate.metric} has no value: no image counts in it"
    counts = rows["asr_n" if gate.metric in ("asr", "ra") else "n"].fillna(0).to_numpy(np.int64)
    worst = int(rates.argmax() if gate.smaller_is_better else rates.argmin())
    row: Any = rows.iloc[worst]
    ends = {end: float(row[f"{gate.metric}_{end}"]) for end in ("low", "high")}
    measurement = {"value": float(rates[worst]), **ends, "n": int(counts[worst])}
    # The worst of several rates is known only if all of them are.
    for rate in rates[(rates < 0) | (rates > 1)]:
        return measurement, f"{gate.metric} is {rate:g}, which is no rate"
    return measurement, "" if (counts > 0).all() else f"{gate.metric} was measured on no image"


def _rows_of(metrics: pd.DataFrame, family: str, architecture: str, defence: str) -> pd.DataFrame:
    rows = metrics[metrics["defence"] == defence]
    mine = rows["target"] == architecture if family == "evasion" else rows["model_kind"] == "poisoned"
    return rows[mine]  # pyright: ignore[reportReturnType]


def _verdict(gate: Gate, measurement: Mapping[str, Any], fault: str, measured: Measured, attack: str) -> dict[str, Any]:
    reference = measured.references.get(gate.rule, Reference(why="what it is held against was not looked for"))
    nothing = {"limit": math.nan, "against": "", "reference": math.nan, "reference_n": 0}
    if fault or measured.stale:
        return nothing | {"status": NOT_JUDGED, "why": measured.stale or fault}
    limited = nothing | {"limit": gate.bound}
    if gate.sign == "no worse":
        if reference.why:
            return nothing | {"status": NOT_JUDGED, "why": reference.why}
        limited = _limit_from(gate, measurement, reference, measured.right.get(gate.metric))
    first = gate.sign == "no worse" and math.isnan(reference.value)
    limit, value = limited["limit"], measurement["value"]
    status = PASSED if first or (value <= limit if gate.smaller_is_better else value >= limit) else FAILED
    doubt = _doubt(gate, measured, attack)
    if doubt and (status == PASSED or not gate.doubted):
        status = NOT_JUDGED
    return limited | {"status": status, "why": doubt}


def _doubt(gate: Gate, measured: Measured, attack: str) -> str:
    """What the sanity checks found wrong with an attack, as a sentence."""
    if gate.metric in OF_CLEAN_IMAGES:
        return ""
    if measured.unchecked:
        return measured.unchecked
    # The model behind a defence is the same: what the attack on it misses, the attack on both misses as well.
    concerned = [(a, d) for a in (attack, "") for d in dict.fromkeys((NO_DEFENCE, gate.defence))]
    doubts = "; ".join(measured.doubts[key] for key in concerned if measured.doubts.get(key))
    return f"the attack is weaker than it should be: {doubts}" if doubts else ""


def _limit_from(
    gate: Gate, measurement: Mapping[str, Any], reference: Reference, right: pd.Series | None
) -> dict[str, Any]:
    """The limit set by another version, and how the two were compared."""
    rates = {"reference": reference.value, "reference_n": reference.n}
    if math.isnan(reference.value):
        return {"limit": math.nan, "against": reference.name, **rates}
    sign = 1 if gate.smaller_is_better else -1
    if gate.by == "rate":
        limit = reference.value + sign * gate.bound
        # In floating point, 0.57 - 0.02 is a little more than 0.55.
        return {"limit": round(limit, 12), "against": f"{reference.name}, {reference.value:.4g}", **rates}
    paired = right is not None and reference.right is not None and set(right.index) == set(reference.right.index)
    if paired and right is not None and reference.right is not None:
        before = reference.right.loc[right.index]
        _, _, error = paired_interval(before.to_numpy(bool), right.to_numpy(bool))
        lost, won = int((before & ~right).sum()), int((~before & right).sum())
        how = f"on the same {len(right):,} images, {lost:,} lost and {won:,} won"
    else:
        # Standard error of the difference of two proportions measured independently.
        p, q = reference.value, measurement["value"]
        error = math.sqrt(p * (1 - p) / max(reference.n, 1) + q * (1 - q) / max(measurement["n"], 1))
        how = f"as if measured on other images (not paired), n {reference.n:,}"
    limit = reference.value + sign * gate.bound * error
    return {"limit": limit, "against": f"{reference.name}, {reference.value:.4g}, {how}", **rates}


def said(row: Any) -> str:
    """One row of `GATE_COLUMNS` as a sentence."""
    verdict = {PASSED: "holds", FAILED: "does not hold", NOT_JUDGED: "is not judged"}[row["status"]]
    parts = [f"gate `{row['rule']}` {verdict}"]
    if not pd.isna(row["value"]):
        interval = f"[{row['low']:.4g}, {row['high']:.4g}]"
        parts.append(f": {row['metric']} {row['value']:.4g} {interval}, n {row['n']:,}")
    if row["status"] != NOT_JUDGED and not pd.isna(row["limit"]):
        parts.append(f", limit {row['limit']:.4g}")
    if row["against"]:
        parts.append(f" ({row['against']})")
    if row["why"]:
        parts.append(f"; {row['why']}")
    return "".join(parts)


def overall(table: pd.DataFrame) -> Status:
    """One verdict on rows of `GATE_COLUMNS`.

    Failed if a blocking rule failed; otherwise not judged if any rule was not judged, whatever its severity, or if
    there is no rule; otherwise passed.
    """
    blocking = table["severity"] == "block"
    if (blocking & (table["status"] == FAILED)).any():
        return FAILED
    if table.empty or not table["status"].isin([PASSED, FAILED]).all():
        return NOT_JUDGED
    return PASSED


def blocks(row: Any) -> bool:
    """Whether a row of `GATE_COLUMNS` blocks everything downstream of its cell."""
    return row["severity"] == "block" and row["status"] != PASSED
