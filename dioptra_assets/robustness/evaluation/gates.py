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
    "severity": "block: the cell fails, and with it what is made from it; warn: it is but said",
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
        against: with `no worse`: `last`, the last version that passed; `best`, the one of those with the best rate; or
            `@ALIAS`, the one that an alias of the registry names.
        by: with `no worse`, what `bound` counts: `rate`, `standard errors`, or `chance`: as many standard errors as a
            95 % interval reaches.
        attack: attack keys it holds for; `*` stands for anything.
        defence: the defence the model stands behind.
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
        """What its check is called: letters, digits and `_`."""
        return re.sub(r"\W+", "_", self.rule.replace(">=", "at_least").replace("<=", "at_most")).strip("_")

    @property
    def alias(self) -> str:
        """The alias that it holds a version against, or nothing."""
        return self.against[1:] if self.against.startswith("@") else ""

    @property
    def smaller_is_better(self) -> bool:
        """Whether the value may be at most the limit."""
        return self.sign == "<=" or (self.sign == "no worse" and self.metric in SMALLER_IS_BETTER)

    @property
    def doubted(self) -> bool:
        """Whether a weak attack makes this rule easier to pass, and never harder."""
        return self.smaller_is_better == (self.metric in SMALLER_IS_BETTER)

    def holds_for(self, family: str, attack: str) -> bool:
        """Whether the rule says anything on an attack config."""
        return self.metric in METRICS.get(family, ()) and fnmatchcase(attack, self.attack)


@dataclass(frozen=True)
class Reference:
    """The version that a rule holds a model against.

    Attributes:
        name: how the verdict calls it.
        value: its rate, in [0, 1]; NaN where there is no such version.
        n: images it was measured on.
        right: image id -> whether it was right about it, bool; None where that is not kept or does not apply.
        why: why the model cannot be held against it; empty where it can.
    """

    name: str = ""
    value: float = math.nan
    n: int = 0
    right: pd.Series | None = None
    why: str = ""


NOTHING_BEFORE = Reference("no version before it has passed")


@dataclass(frozen=True)
class Measured:
    """What is known of one cell beside its metric table.

    Attributes:
        references: rule -> what it is held against, for the rules that hold against another version.
        right: rate -> image id -> whether the model was right about it, bool.
        doubts: (attack, defence) -> what the sanity checks found wrong; an empty attack concerns every one.
        unchecked: why there is nothing from the sanity checks; empty where there is.
        stale: why the numbers are not those that the experiment now asks for; empty where they are.
        version: data version of the metric table.
    """

    references: Mapping[str, Reference] = field(default_factory=dict)
    right: Mapping[str, pd.Series] = field(default_factory=dict)
    doubts: Mapping[tuple[str, str], str] = field(default_factory=dict)
    unchecked: str = ""
    stale: str = ""
    version: str = ""


def parse_gate(rule: str, severity: Severity = "block") -> Gate:
    """The rule that a sentence states.

    Raises:
        ValueError: with the forms that there are, where the sentence has none of them.
    """
    found = _RULE.fullmatch(rule.strip())
    if not found:
        raise ValueError(f"{rule!r} cannot be read, a gate is {FORMS}")
    known = sorted({metric for metrics in METRICS.values() for metric in metrics})
    if found["metric"] not in known:
        raise ValueError(f"{rule!r}: there is no metric {found['metric']!r}, available: {', '.join(known)}")
    bound = _number(rule, found["bound"] or found["less"] or str(Z))
    by = ""
    if found["against"]:
        by = "standard errors" if found["errors"] else "rate" if found["less"] else "chance"
    if by in ("", "rate") and not 0 <= bound <= 1:
        raise ValueError(f"{rule!r}: {found['bound'] or found['less']} is not allowed, a rate is from 0 to 1")
    if bound < 0:
        raise ValueError(f"{rule!r}: {found['less']} is not allowed, it must be 0 or more standard errors")
    named = {key: found[key] for key in ("attack", "defence", "against") if found[key]}
    values = {"rule": " ".join(rule.split()), "severity": severity, "metric": found["metric"], "bound": bound, "by": by}
    return Gate.model_validate({**values, **named, "sign": found["sign"] or "no worse"})


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
    """Every rule that holds for one cell, and whether it does.

    A rate is held against the limit as measured; a limit within its interval is decided by few images. Where the sanity
    checks say that the attack is weak, a rule that seems to hold is not judged, and one that fails all the same has
    failed: a better attack would only leave less.

    Args:
        gates: the rules.
        metrics: the cell's rows of `metric_table` or `poisoning_metrics`; None where it has not been made.
        measured: what else is known of the cell.
        family: evasion or poisoning.
        architecture: whose own rows are judged.
        attack: the attack key of the cell.

    Returns:
        Rows of `GATE_COLUMNS`.
    """
    rows = []
    for gate in gates:
        if not gate.holds_for(family, attack):
            continue
        found, fault = _found(gate, metrics, family, architecture)
        row = {"rule": gate.rule, "severity": gate.severity, "architecture": architecture, "attack": attack}
        row |= {"metric": gate.metric, **found, **_verdict(gate, found, fault, measured, attack)}
        rows.append(row | {"passed": row["status"] == PASSED, "judged": measured.version})
    return pd.DataFrame(rows, columns=[*GATE_COLUMNS])


def _found(gate: Gate, metrics: pd.DataFrame | None, family: str, architecture: str) -> tuple[dict[str, Any], str]:
    """Value, interval and count of the rate, of the row in which it is worst; and why it has none."""
    nothing = {"value": math.nan, "low": math.nan, "high": math.nan, "n": 0}
    if metrics is None:
        return nothing, "its numbers are missing"
    rows = _own(metrics, family, architecture, gate.defence)
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
    found = {"value": float(rates[worst]), **ends, "n": int(counts[worst])}
    # The worst of several is known only where each of them is.
    for rate in rates[(rates < 0) | (rates > 1)]:
        return found, f"{gate.metric} is {rate:g}, which is no rate"
    return found, "" if (counts > 0).all() else f"{gate.metric} was measured on no image"


def _own(metrics: pd.DataFrame, family: str, architecture: str, defence: str) -> pd.DataFrame:
    rows = metrics[metrics["defence"] == defence]
    mine = rows["target"] == architecture if family == "evasion" else rows["model_kind"] == "poisoned"
    return rows[mine]  # pyright: ignore[reportReturnType]


def _verdict(gate: Gate, found: Mapping[str, Any], fault: str, measured: Measured, attack: str) -> dict[str, Any]:
    reference = measured.references.get(gate.rule, Reference(why="what it is held against was not looked for"))
    nothing = {"limit": math.nan, "against": "", "reference": math.nan, "reference_n": 0}
    if fault or measured.stale:
        return nothing | {"status": NOT_JUDGED, "why": measured.stale or fault}
    held = nothing | {"limit": gate.bound}
    if gate.sign == "no worse":
        if reference.why:
            return nothing | {"status": NOT_JUDGED, "why": reference.why}
        held = _held_against(gate, found, reference, measured.right.get(gate.metric))
    first = gate.sign == "no worse" and math.isnan(reference.value)
    limit, value = held["limit"], found["value"]
    status = PASSED if first or (value <= limit if gate.smaller_is_better else value >= limit) else FAILED
    doubt = _doubt(gate, measured, attack)
    if doubt and (status == PASSED or not gate.doubted):
        status = NOT_JUDGED
    return held | {"status": status, "why": doubt}


def _doubt(gate: Gate, measured: Measured, attack: str) -> str:
    """What the sanity checks have against the numbers of an attack, as a sentence."""
    if gate.metric in OF_CLEAN_IMAGES:
        return ""
    if measured.unchecked:
        return measured.unchecked
    # Behind a defence stands the same model: what its own attack was blind to, that attack on both is as well.
    concerned = [(a, d) for a in (attack, "") for d in dict.fromkeys((NO_DEFENCE, gate.defence))]
    said = "; ".join(measured.doubts[one] for one in concerned if measured.doubts.get(one))
    return f"the attack is weaker than it should be: {said}" if said else ""


def _held_against(
    gate: Gate, found: Mapping[str, Any], reference: Reference, right: pd.Series | None
) -> dict[str, Any]:
    """The limit that another version sets, and how it was found."""
    rates = {"reference": reference.value, "reference_n": reference.n}
    if math.isnan(reference.value):
        return {"limit": math.nan, "against": reference.name, **rates}
    sign = 1 if gate.smaller_is_better else -1
    if gate.by == "rate":
        limit = reference.value + sign * gate.bound
        # 0.57 less 0.02 is a little more than 0.55.
        return {"limit": round(limit, 12), "against": f"{reference.name}, {reference.value:.4g}", **rates}
    paired = right is not None and reference.right is not None and set(right.index) == set(reference.right.index)
    if paired and right is not None and reference.right is not None:
        before = reference.right.loc[right.index]
        _, _, error = paired_interval(before.to_numpy(bool), right.to_numpy(bool))
        lost, won = int((before & ~right).sum()), int((~before & right).sum())
        how = f"on the same {len(right):,} images, {lost:,} lost and {won:,} won"
    else:
        # Standard error of the difference of two proportions that were measured apart from one another.
        p, q = reference.value, found["value"]
        error = math.sqrt(p * (1 - p) / max(reference.n, 1) + q * (1 - q) / max(found["n"], 1))
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
    """One verdict on some rows of `GATE_COLUMNS`, at least one.

    Failed where a rule that blocks failed; else not judged where any was not judged, whatever its severity, or there is
    no rule at all; else passed.
    """
    blocking = table["severity"] == "block"
    if (blocking & (table["status"] == FAILED)).any():
        return FAILED
    if table.empty or not table["status"].isin([PASSED, FAILED]).all():
        return NOT_JUDGED
    return PASSED


def blocks(row: Any) -> bool:
    """Whether a row of `GATE_COLUMNS` stands in the way of what is made from its cell."""
    return row["severity"] == "block" and row["status"] != PASSED
