"""Gates of an experiment file <-> typed rules."""

from collections.abc import Iterable, Mapping
from typing import Any, TypeGuard, cast

from dioptra_assets.robustness.evaluation.gates import METRICS, Gate, parse_gate
from partitions.attacks import Family
from partitions.entries import ExperimentError, one_of


def gate_rules(
    experiment: str,
    entries: Iterable[Any],
    families: Mapping[Family, Iterable[str]],
    defences: Iterable[str],
    *,
    watches: bool = False,
) -> tuple[Gate, ...]:
    """The gates of an experiment.

    Args:
        experiment: its name, for messages.
        entries: sentences, or `{rule: SENTENCE, severity: warn}`.
        families: family -> its attack keys.
        defences: names of the defences.
        watches: whether the experiment watches registered models, which alone have aliases.

    Raises:
        ExperimentError: naming experiment and rule, and what is allowed.
    """
    gates: dict[str, Gate] = {}
    for entry in entries:
        where = f"experiment {experiment!r}, gates entry {entry!r}"
        given: Any = {"rule": entry} if isinstance(entry, str) else entry
        if not _is_rule(given):
            raise ExperimentError(f"{where}: write a sentence, or `{{rule: SENTENCE, severity: warn}}`")
        severity: Any = given.get("severity", "block")
        if severity not in ("block", "warn"):
            raise ExperimentError(
                f"{where}, field 'severity': {severity!r} is not allowed, {one_of(('block', 'warn'))}"
            )
        try:
            gate = parse_gate(given["rule"], severity)
        except ValueError as error:
            raise ExperimentError(f"{where}: {error}") from error
        if gate.name in gates:
            raise ExperimentError(f"{where}: the rule is given twice")
        if gate.defence not in ("none", *defences):
            raise ExperimentError(
                f"{where}: there is no defence {gate.defence!r}, available: {', '.join(defences) or 'none'}"
            )
        if gate.alias and not watches:
            raise ExperimentError(
                f"{where}: {gate.against!r} is an alias, which only registered models have: say `watch` in the file, or"
                " write `last` or `best`"
            )
        if gate.alias and gate.defence != "none":
            raise ExperimentError(f"{where}: registered models stand behind no defence, take `behind` or the alias out")
        if not any(gate.holds_for(family, key) for family, keys in families.items() for key in keys):
            judged = [
                key for family, keys in families.items() if gate.metric in METRICS.get(family, ()) for key in keys
            ]
            raise ExperimentError(
                f"{where}: no attack {gate.attack!r} has the metric {gate.metric!r}, "
                f"available: {', '.join(judged) or 'none'}"
            )
        gates[gate.name] = gate
    return tuple(gates.values())


def _is_rule(given: Any) -> TypeGuard[Mapping[str, Any]]:
    if not isinstance(given, Mapping):
        return False
    fields = cast("Mapping[Any, Any]", given)
    return not set(fields) - {"rule", "severity"} and isinstance(fields.get("rule"), str)
