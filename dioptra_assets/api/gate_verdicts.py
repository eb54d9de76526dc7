"""The verdicts of an experiment as a whole: every gate on every model, judged on numbers that are what is asked for.

Why: docs/decisions/0017-gates-are-sentences.md
"""

from collections.abc import Iterable, Mapping
from typing import Any

import dagster as dg
import pandas as pd

from dioptra_assets.assets.cell_context import DIMENSIONS, asset_key
from dioptra_assets.assets.gate_evidence import SEPARATOR, GateBench, gated_families, rules_of
from dioptra_assets.assets.sanity import MODEL_SANITY
from dioptra_assets.dagster_internals import partition_loading_context
from dioptra_assets.robustness.evaluation.gates import GATE_COLUMNS
from dioptra_assets.runs.staleness import stale_cells
from partitions.definitions import dynamic_dimension
from partitions.experiments import ExperimentSpec, branch_of
from partitions.keys import ARCHITECTURE, ATTACK, partition_of
from resources.store import Cell, CellStore
from resources.tracking.resource import tracking_of


def verdicts(
    spec: ExperimentSpec,
    defs: dg.Definitions,
    *,
    instance: dg.DagsterInstance,
    store: CellStore,
    version: str | None = None,
) -> pd.DataFrame:
    """Judge every gate on every model of an experiment and on every registered version that it has attacked.

    Args:
        spec: the experiment.
        defs: the code location that it is part of.
        instance: where materializations are recorded.
        store: where the numbers are.
        version: `NAME@VERSION`, to judge only that version.

    Returns:
        Rows of `GATE_COLUMNS`.

    Raises:
        LookupError: when the experiment has not met the version.
    """
    graph = defs.resolve_asset_graph()
    aliases = _aliases(defs)
    known = registered(spec, instance) if spec.watch else []
    if version is not None and version not in known:
        available = ", ".join(known) or "none"
        raise LookupError(f"{spec.name} has not met a registered model {version}, available: {available}")
    # An earlier version that one is held against is looked at as closely as those that are asked for.
    parts = [(spec, list(spec.architectures), list(spec.architectures))] if version is None else []
    parts += [(branch_of(spec), known if version is None else [version], known)] if spec.watch else []
    tables = [pd.DataFrame(columns=[*GATE_COLUMNS])]
    for part, wanted, looked_at in parts:
        if wanted and gated_families(part):
            bench = GateBench(part, store, aliases, _stale(part, graph, instance, looked_at))
            tables += [bench.model(architecture) for architecture in wanted]
    return pd.concat([table for table in tables if len(table)] or tables, ignore_index=True)


def registered(spec: ExperimentSpec, instance: dg.DagsterInstance) -> list[str]:
    """`NAME@VERSION` of the registered versions that an experiment has met, by name and version."""
    branch = branch_of(spec)

    def order(key: str) -> tuple[str, int]:
        name, _, number = key.rpartition(SEPARATOR)
        return name, int(number) if number.isdigit() else 0

    return sorted(instance.get_dynamic_partitions(dynamic_dimension(branch.name, branch.branch)), key=order)


def _aliases(defs: dg.Definitions) -> Any:
    return tracking_of(defs.resources or {}).version_of_alias


def _stale(
    spec: ExperimentSpec, graph: Any, instance: dg.DagsterInstance, architectures: Iterable[str]
) -> dict[tuple[str, str], str]:
    """(architecture, attack) -> why the numbers are not those that the experiment asks for now.

    Numbers are stale when anything upstream is stale, however far up. Dagster calls a cell stale only when a direct
    input has changed.
    """
    why: dict[tuple[str, str], str] = {}
    for family in gated_families(spec):
        attacks = [key for key in spec.family(family) if any(gate.holds_for(family, key) for gate in rules_of(spec))]
        judged = {asset_key(spec, f"{family}_metrics")}
        if family == "evasion":
            judged.add(asset_key(spec, MODEL_SANITY))
        above = judged.union(*(graph.get_ancestor_asset_keys(key) for key in judged))
        stale: list[Cell] = []
        with partition_loading_context(dynamic_partitions_store=instance):
            for key in sorted(above):
                cells = _cells(graph, key, architectures)
                stale += [cells[partition] for partition in stale_cells(graph, key, list(cells), instance)]
        for architecture in architectures:
            for attack in attacks:
                judged_cell: Mapping[str, str] = {ARCHITECTURE: architecture, ATTACK: attack}
                # An asset over all cells counts only when it is stale itself.
                reasons = [cell for cell in stale if cell.partition.items() <= judged_cell.items()]
                if reasons:
                    why[architecture, attack] = (
                        f"its numbers are stale or missing: {min(reasons, key=lambda cell: cell.path)} was edited, or"
                        f" computed anew, or never; `dioptra-assets materialize {spec.name}`"
                    )
    return why


def _cells(graph: Any, asset_key: dg.AssetKey, architectures: Iterable[str]) -> dict[str | None, Cell]:
    """The cells of an asset, of some architectures where it has the dimension, by partition key."""
    node = graph.get(asset_key)
    dimensions, asset = tuple(node.metadata[DIMENSIONS]), asset_key.to_user_string()
    if node.partitions_def is None:
        return {None: Cell(asset)}
    keys = node.partitions_def.get_partition_keys()
    wanted = set(architectures)
    cells = {key: Cell(asset, partition_of(dimensions, key)) for key in keys}
    return {
        key: cell
        for key, cell in cells.items()
        if ARCHITECTURE not in cell.partition or cell.partition[ARCHITECTURE] in wanted
    }
