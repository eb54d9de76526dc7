"""Gates of an experiment: each cell's numbers held against its rules, as asset checks that block or warn."""

from functools import partial
from typing import Any

import dagster as dg
import pandas as pd

from dioptra_assets.assets.cells import CellContext, CellResult, asset_key, cell_asset, partitions_of
from dioptra_assets.assets.partitioned_checks import partitioned_check
from dioptra_assets.robustness.gates import GATE_COLUMNS, Gate, judge
from partitions.attacks import Family
from partitions.configs import config_hash
from partitions.experiments import ExperimentSpec
from partitions.keys import ARCHITECTURE, ATTACK
from resources.cells import Cell, CellStore, MissingCellError, StoredCell
from resources.tables import read_table, write_table

JUDGED: tuple[Family, ...] = ("evasion", "poisoning")


def gated_families(spec: ExperimentSpec) -> list[Family]:
    """The families of attacks that a gate of the experiment says anything on."""
    return [
        family
        for family in JUDGED
        if any(gate.holds_for(family, key) for gate in spec.gates for key in spec.family(family))
    ]


def gate_assets(spec: ExperimentSpec) -> list[dg.AssetsDefinition]:
    """`evasion_gate` and `poisoning_gate`, by architecture and attack, as far as there are gates for them."""
    return [_gate_asset(spec, family) for family in gated_families(spec)]


def _gate_asset(spec: ExperimentSpec, family: Family) -> dg.AssetsDefinition:
    name, dimensions = f"{family}_gate", (ARCHITECTURE, ATTACK)
    gates = [gate for gate in spec.gates if any(gate.holds_for(family, key) for key in spec.family(family))]
    return cell_asset(
        spec,
        name,
        partial(_judge, family=family, gates=gates),
        description="Whether the numbers of a model reach what was asked of them:\n"
        + "\n".join(f"- `{gate.rule}` ({gate.severity})" for gate in gates),
        dimensions=dimensions,
        family=family,
        deps=[f"{family}_metrics"],
        kinds={"pandas"},
        columns=GATE_COLUMNS,
        code_version=config_hash({"gates": [gate.model_dump() for gate in gates]}),
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


def judged_cell(spec: ExperimentSpec, store: CellStore, stored_metrics: StoredCell, family: Family) -> pd.DataFrame:
    """The verdict on one cell of a metric table: rows of `GATE_COLUMNS`.

    The version before it is the last one that passed its blocking gates and had other numbers.
    """
    partition = stored_metrics.cell.partition
    return judge(
        spec.gates,
        read_table(stored_metrics),
        family=family,
        architecture=partition[ARCHITECTURE],
        attack=partition[ATTACK],
        last=_last(spec, store, stored_metrics, family),
    )


def verdicts(spec: ExperimentSpec, store: CellStore) -> tuple[pd.DataFrame, list[str]]:
    """Every gate on every cell of an experiment as it is stored, and the paths of the metric cells that are missing."""
    tables, missing = [pd.DataFrame(columns=[*GATE_COLUMNS])], []
    for family in gated_families(spec):
        for architecture in spec.architectures:
            for key in spec.family(family):
                if not any(gate.holds_for(family, key) for gate in spec.gates):
                    continue
                cell = Cell(f"{spec.name}/{family}_metrics", {ARCHITECTURE: architecture, ATTACK: key})
                try:
                    tables.append(judged_cell(spec, store, store.open(cell), family))
                except MissingCellError:
                    missing.append(cell.path)
    return pd.concat([table for table in tables if len(table)] or tables, ignore_index=True), missing


def _last(spec: ExperimentSpec, store: CellStore, stored_metrics: StoredCell, family: Family) -> pd.DataFrame:
    partition = stored_metrics.cell.partition
    before = store.find(Cell("/".join(asset_key(spec, f"{family}_gate").path), partition))
    if before is None:
        return pd.DataFrame(columns=[*GATE_COLUMNS])
    if before.manifest.attributes["judged"] != stored_metrics.manifest.data_version:
        return read_table(before)
    # The same numbers again: they are held against what they were held against.
    return pd.DataFrame(before.manifest.attributes["last"], columns=[*GATE_COLUMNS])


def _judge(cell: CellContext, *, family: Family, gates: list[Gate]) -> CellResult:
    stored_metrics = cell.read(f"{family}_metrics", **cell.cell.partition)
    table = judged_cell(cell.spec, cell.store, stored_metrics, family)
    last = _last(cell.spec, cell.store, stored_metrics, family)
    checks = [_check(cell, f"{family}_gate", gate, table) for gate in gates if gate.rule in set(table["rule"])]
    failed = table[~table["passed"].astype(bool)]
    for _, row in failed.iterrows():
        cell.log(f"{cell.cell}: {said(row)}")
    if (failed["severity"] == "block").any():
        # Nothing is stored: what is made from this cell stays as it was, and the last version is one that passed.
        return CellResult(None, {}, checks=checks)
    facts = {
        "judged": stored_metrics.manifest.data_version,
        "last": last.astype(object).where(last.notna(), None).to_dict(orient="records"),
    }
    stored = write_table(cell.store, cell.cell, table, attributes=facts, **cell.publishing)
    shown = dg.MetadataValue.md(table.drop(columns=["architecture", "attack"]).to_markdown(index=False))
    return CellResult(stored, {"gates": shown}, {"failed": len(failed), "rules": len(table)}, checks=checks)


def said(row: Any) -> str:
    """One row of `GATE_COLUMNS` as a sentence."""
    verdict = "holds" if row["passed"] else "does not hold"
    limit = "no version before it" if pd.isna(row["limit"]) else f"limit {row['limit']:.4g}"
    return (
        f"gate `{row['rule']}` {verdict}: {row['metric']} {row['value']:.4g} [{row['low']:.4g}, {row['high']:.4g}],"
        f" n {row['n']:,}, {limit}"
    )


def _check(cell: CellContext, name: str, gate: Gate, table: pd.DataFrame) -> dg.AssetCheckResult:
    row: Any = table[table["rule"] == gate.rule].iloc[0]
    facts = {key: row[key] for key in ("value", "low", "high", "n", "limit")}
    return dg.AssetCheckResult(
        passed=bool(row["passed"]),
        asset_key=asset_key(cell.spec, name),
        check_name=gate.name,
        severity=dg.AssetCheckSeverity.ERROR if gate.severity == "block" else dg.AssetCheckSeverity.WARN,
        description=said(row),
        metadata={key: float(value) for key, value in facts.items() if not pd.isna(value)},
    )
