"""Gates of an experiment: each cell's numbers held against its rules, as asset checks that block or warn.

Why: docs/decisions/0017-gates-are-sentences.md
"""

from functools import partial
from typing import Any

import dagster as dg
import pandas as pd

from dioptra_assets.assets.boundary import cell_asset
from dioptra_assets.assets.cell_context import CellContext, CellResult, asset_key
from dioptra_assets.assets.check_events import partitioned_check
from dioptra_assets.assets.gate_evidence import GateBench, gated_families, rules_of
from dioptra_assets.assets.sanity import MODEL_SANITY
from dioptra_assets.robustness.evaluation.gates import GATE_COLUMNS, PASSED, Gate, blocks, said
from partitions.attacks import Family
from partitions.definitions import partitions_of
from partitions.entries import config_hash
from partitions.experiments import ExperimentSpec
from partitions.keys import ARCHITECTURE, ATTACK
from resources.tables import write_table


def gate_assets(spec: ExperimentSpec) -> list[dg.AssetsDefinition]:
    """`evasion_gate` and `poisoning_gate`, by architecture and attack, as far as there are gates for them."""
    return [_gate_asset(spec, family) for family in gated_families(spec)]


def _gate_asset(spec: ExperimentSpec, family: Family) -> dg.AssetsDefinition:
    name, dimensions = f"{family}_gate", (ARCHITECTURE, ATTACK)
    gates = [gate for gate in rules_of(spec) if any(gate.holds_for(family, key) for key in spec.family(family))]
    return cell_asset(
        spec,
        name,
        partial(_judge, family=family, gates=gates),
        description="Whether the results of a model meet these rules. Results that failed their sanity checks do not.\n"
        + "\n".join(f"- `{gate.rule}` ({gate.severity})" for gate in gates),
        dimensions=dimensions,
        family=family,
        deps=[f"{family}_metrics", *([MODEL_SANITY] if family == "evasion" else [])],
        kinds={"pandas"},
        columns=GATE_COLUMNS,
        code_version=f"2-{config_hash({'gates': [gate.model_dump() for gate in gates]})}",
        checks=[
            partitioned_check(
                gate.name,
                asset=asset_key(spec, name),
                description=gate.rule,
                blocking=gate.severity == "block",
                partitions_def=partitions_of(spec, dimensions, family),
            )
            for gate in gates
        ],
    )


def _judge(cell: CellContext, *, family: Family, gates: list[Gate]) -> CellResult:
    partition = cell.cell.partition
    stored_metrics = cell.read(f"{family}_metrics", **partition)
    bench = GateBench(cell.spec, cell.store, cell.registry.version_of_alias)
    table = bench.cell(family, partition[ARCHITECTURE], partition[ATTACK])
    checks = [_check(cell, f"{family}_gate", gate, table) for gate in gates if gate.rule in set(table["rule"])]
    not_passed = [row for _, row in table.iterrows() if row["status"] != PASSED]
    for row in not_passed:
        cell.log(f"{cell.cell}: {said(row)}")
    if any(blocks(row) for row in not_passed):
        # Nothing is stored: what is made from this cell stays as it was, and the last version is one that passed.
        return CellResult(None, {}, checks=checks)
    facts = {"judged": stored_metrics.manifest.data_version}
    stored = write_table(cell.destination, table, attributes=facts)
    shown = table.drop(columns=["architecture", "attack", "passed", "judged"]).to_markdown(index=False)
    counts = {"not passed": len(not_passed), "rules": len(table)}
    return CellResult(stored, {"gates": dg.MetadataValue.md(shown)}, counts, checks=checks)


def _check(cell: CellContext, name: str, gate: Gate, table: pd.DataFrame) -> dg.AssetCheckResult:
    row: Any = table[table["rule"] == gate.rule].iloc[0]
    facts = {key: row[key] for key in ("value", "low", "high", "n", "limit")}
    return dg.AssetCheckResult(
        passed=bool(row["passed"]),
        asset_key=asset_key(cell.spec, name),
        check_name=gate.name,
        severity=dg.AssetCheckSeverity.ERROR if gate.severity == "block" else dg.AssetCheckSeverity.WARN,
        description=said(row),
        metadata={"status": row["status"], "against": row["against"], "why": row["why"]}
        | {key: float(value) for key, value in facts.items() if not pd.isna(value)},
    )
