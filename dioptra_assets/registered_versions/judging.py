"""Whether the numbers of a registered version reach what is asked of them, and whether that can be told yet."""

import re
from collections.abc import Collection

import pandas as pd

from dioptra_assets.assets.gate_evidence import SEPARATOR, GateBench
from dioptra_assets.registered_versions.registry import Seen
from dioptra_assets.registered_versions.verdicts import Status, shortened
from dioptra_assets.robustness.evaluation.gates import FAILED, NOT_JUDGED, PASSED, overall, said
from partitions.experiments import ExperimentSpec
from resources.store import CellStore
from resources.tracking.resource import Tracking, TrackingUnavailable

# Versions are held against those before them; one that has failed so often is not waited for any longer.
WAITED_FOR = 4


def gate_bench(
    branch: ExperimentSpec, store: CellStore, tracking: Tracking, seen: Seen, ready: Collection[str]
) -> GateBench:
    """Judges registered versions.

    Args:
        branch: the experiment as its branch of registered models sees it.
        store: where cells are.
        tracking: MLflow, asked for aliases.
        seen: what is known of every version.
        ready: of those that wait, the ones whose numbers are up to date.
    """

    def version_of_alias(name: str, alias: str) -> str:
        try:
            return tracking.version_of_alias(name, alias)
        except LookupError as error:
            if isinstance(error.__cause__, TrackingUnavailable):
                raise error.__cause__ from None  # nothing is concluded from that
            raise

    waiting = [key for key, one in seen.verdicts.items() if one.status == "waiting" and key not in ready]
    outdated = {(key, attack): "its numbers are stale or missing" for key in waiting for attack in branch.attacks}
    return GateBench(branch, store, version_of_alias, outdated)


def judged(bench: GateBench, version: str) -> tuple[Status, str, pd.DataFrame]:
    """Whether the stored numbers of a version reach what the gates ask for: status, why, and the rows of every gate.

    Args:
        bench: judges the branch of registered models.
        version: `NAME@VERSION`; its metric tables and sanity checks are up to date.
    """
    table = bench.model(version)
    if table.empty:
        return NOT_JUDGED, "the experiment has no gates", table
    status = overall(table)
    # A rule that fails and does not block is said of a version that passed.
    blocking = table["severity"] == "block"
    shown = {
        PASSED: table["status"] != PASSED,
        FAILED: blocking & (table["status"] == FAILED),
        NOT_JUDGED: table["status"] == NOT_JUDGED,
    }[status]
    why = "; ".join(f"{row['attack']}: {said(row)}" for _, row in table[shown].iterrows())
    return status, shortened(why), table


def held_up(branch: ExperimentSpec, seen: Seen, key: str, table: pd.DataFrame) -> str:
    """Why a version whose numbers are up to date cannot be judged yet; empty where it can.

    Args:
        branch: the experiment as its branch of registered models sees it.
        seen: what is known of every version.
        key: `NAME@VERSION`.
        table: of :func:`judged`.
    """
    rows = table[table["status"] == NOT_JUDGED]
    if (unread := rows[rows["judged"] == ""]).size:
        return shortened(str(unread["why"].iloc[0]))
    name, _, number = key.rpartition(SEPARATOR)
    relative = any(gate.against for gate in branch.gates)
    for other, one in seen.verdicts.items() if relative else ():
        theirs, _, before = other.rpartition(SEPARATOR)
        if theirs != name or other == key or one.status != "waiting":
            continue
        named = re.compile(rf"{re.escape(other)}(?!\d)")
        if (int(before) < int(number) and one.tries < WAITED_FOR) or any(map(named.match, rows["why"])):
            return f"{other}, which it may be held against, has not been judged yet"
    return ""


def shown_gates(table: pd.DataFrame) -> str:
    """The rows of every gate as Markdown: rates to four digits, and what they are held against where there is any."""
    rates = ["value", "low", "high", "limit"]
    columns = ["status", "attack", "rule", "value", "low", "high", "n", "limit"]
    columns += ["against"] if table["against"].astype(bool).any() else []
    rows = table.assign(**{name: ["" if pd.isna(rate) else f"{rate:.4g}" for rate in table[name]] for name in rates})
    return rows[columns].to_markdown(index=False, disable_numparse=True)
