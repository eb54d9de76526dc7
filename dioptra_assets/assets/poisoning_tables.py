"""From poisoned models to numbers: what each says of clean and triggered images, beside a clean control."""

import math

import dagster as dg
import pandas as pd

from dioptra_assets.assets.boundary import cell_asset
from dioptra_assets.assets.cell_context import CellContext, CellResult
from dioptra_assets.assets.config_assets import POISONING_CONFIG, read_attack
from dioptra_assets.assets.models import GPU_POOL
from dioptra_assets.assets.pictures import picture
from dioptra_assets.robustness.evaluation.examples import NO_DEFENCE
from dioptra_assets.robustness.evaluation.predictions import predict
from dioptra_assets.robustness.poisoning import (
    POISONING_EXAMPLE_COLUMNS,
    POISONING_METRIC_COLUMNS,
    poison_curve,
    poisoning_examples,
    poisoning_metrics,
)
from dioptra_assets.robustness.poisoning.metrics import CLEAN_CONTROL, ModelKind
from partitions.entries import edition
from partitions.experiments import ExperimentSpec
from partitions.keys import ARCHITECTURE, ATTACK
from resources.compute import prepare_device
from resources.image_store import read_image_set
from resources.models import read_model
from resources.store import StoredCell
from resources.tables import read_table, write_table

CURVE_COLUMNS = {
    "architecture": "architecture of the poisoned model",
    "family": "poisoning configs that differ in poison_fraction alone",
    "poison_fraction": "share of the eligible training rows that are poisoned; 0 is the clean control",
    "asr": "attack success rate, with the ends of its 95 % interval in _low and _high",
    "clean_accuracy": "C-ACC, with the ends of its 95 % interval in _low and _high",
}
RATES = ("clean_accuracy", "asr", "ra")


def poisoning_table_assets(spec: ExperimentSpec) -> list[dg.AssetsDefinition]:
    """`poisoning_examples` and `poisoning_metrics` by architecture and attack, and `poison_curve`."""
    behind = [
        f"{asset}/{name}"
        for name, defence in spec.defences.items()
        for asset in ("defended_testing_set", "defended_triggered_set")
        if defence.apply_predict
    ]
    cells = (ARCHITECTURE, ATTACK)
    tables = [
        cell_asset(
            spec,
            "poisoning_examples",
            _examples,
            description="One row per testing image, model and defence: predictions of the poisoned model and of the"
            " clean control, without and with the trigger.",
            dimensions=cells,
            family="poisoning",
            deps=[POISONING_CONFIG, "poisoned_model", "model", "testing_set", "triggered_testing_set", *behind],
            kinds={"pandas"},
            columns=POISONING_EXAMPLE_COLUMNS,
            pool=GPU_POOL,
            params=dict,
            code_version=edition("1", list(spec.defences)),
        ),
        cell_asset(
            spec,
            "poisoning_metrics",
            _metrics,
            description="C-ACC, ASR and RA of a poisoned model and of the clean control, each with its 95 % interval.",
            dimensions=cells,
            family="poisoning",
            deps=["poisoning_examples"],
            kinds={"pandas"},
            columns=POISONING_METRIC_COLUMNS,
            params=dict,
        ),
    ]
    if spec.dynamic:
        return tables
    curve = cell_asset(
        spec,
        "poison_curve",
        _curve,
        description="Attack success rate and clean accuracy against the poisoned fraction.",
        deps=["poisoning_metrics"],
        kinds={"pandas"},
        columns=CURVE_COLUMNS,
        params=lambda _: {},
        code_version=edition("1", list(spec.architectures), list(spec.poisonings)),
    )
    return [*tables, curve]


def _examples(cell: CellContext) -> CellResult:
    partition = cell.cell.partition
    own, attack = {ARCHITECTURE: partition[ARCHITECTURE]}, {ATTACK: partition[ATTACK]}
    config = read_attack(cell, partition[ATTACK], "poisoning")
    poisoned = cell.read("poisoned_model", **partition)
    models: dict[ModelKind, StoredCell] = {"poisoned": poisoned}
    # Without its control a poisoned model's numbers say little, but they stand; what was missing is said.
    control, missing = cell.present("model", [own])
    if control:
        models[CLEAN_CONTROL] = control[0]
    pairs = {NO_DEFENCE: (cell.read("testing_set"), cell.read("triggered_testing_set", **attack))}
    for name, defence in cell.spec.defences.items():
        if not defence.apply_predict:
            continue
        clean, no_clean = cell.present(f"defended_testing_set/{name}", [{}])
        triggered, no_triggered = cell.present(f"defended_triggered_set/{name}", [attack])
        missing += no_clean + no_triggered
        if clean and triggered:
            pairs[name] = (clean[0], triggered[0])
    prepare_device()
    table = pd.concat(
        [
            poisoning_examples(
                clean=predict(read_model(stored), read_image_set(clean)),
                triggered=predict(read_model(stored), read_image_set(triggered)),
                config=config,
                architecture=partition[ARCHITECTURE],
                attack=partition[ATTACK],
                model_kind=kind,
                defence=name,
            )
            for name, (clean, triggered) in pairs.items()
            for kind, stored in models.items()
        ],
        ignore_index=True,
    )
    facts = {"seed": poisoned.manifest.attributes["seed"], "missing": missing}
    stored = write_table(cell.destination, table, attributes=facts)
    shown = table.drop(columns=["architecture", "attack"]).head(8).round(3).to_markdown(index=False)
    metadata: dict[str, object] = {"preview": dg.MetadataValue.md(shown)}
    if missing:
        metadata["missing"] = dg.MetadataValue.text(f"not evaluated, because not materialized: {', '.join(missing)}")
    return CellResult(stored, metadata, {"n": table["image_id"].nunique()})


def _metrics(cell: CellContext) -> CellResult:
    stored_examples = cell.read("poisoning_examples", **cell.cell.partition)
    facts = stored_examples.manifest.attributes
    table = poisoning_metrics(read_table(stored_examples), seed=facts["seed"])
    stored = write_table(cell.destination, table, attributes={"missing": facts["missing"]})
    metrics: dict[str, float] = {}
    for _, row in table.iterrows():
        kind = "" if row["model_kind"] == "poisoned" else f"{row['model_kind']}/"
        behind = "" if row["defence"] == NO_DEFENCE else f"{row['defence']}/"
        metrics |= {f"{kind}{behind}{rate}": float(row[rate]) for rate in RATES}
    return CellResult(
        stored,
        {"rates": dg.MetadataValue.md(poisoning_rates(table))},
        {name: value for name, value in metrics.items() if math.isfinite(value)},
    )


def poisoning_rates(metrics: pd.DataFrame) -> str:
    """The rates of a poisoning metric table as Markdown, in percent with their intervals."""
    rows = [
        {"model": row["model_kind"], "defence": row["defence"]}
        | {
            name: f"{row[rate]:.1%} [{row[f'{rate}_low']:.1%}, {row[f'{rate}_high']:.1%}]"
            for name, rate in zip(("C-ACC", "ASR", "RA"), RATES, strict=True)
        }
        for _, row in metrics.iterrows()
    ]
    return pd.DataFrame(rows).to_markdown(index=False)


def present_poisoning_metrics(cell: CellContext) -> tuple[pd.DataFrame, list[str]]:
    """The poisoning metrics of all cells that exist as one table, and the cells that are missing."""
    partitions = [
        {ARCHITECTURE: architecture, ATTACK: attack}
        for attack in cell.spec.poisonings
        for architecture in cell.spec.architectures
    ]
    stored, missing = cell.present("poisoning_metrics", partitions)
    if not stored:
        raise LookupError(f"{cell.cell}: no cell of {cell.spec.name}/poisoning_metrics has been materialized yet")
    for one in stored:
        missing += [f"{one.cell.path} without {path}" for path in one.manifest.attributes["missing"]]
    return pd.concat([read_table(one) for one in stored], ignore_index=True), missing


def _curve(cell: CellContext) -> CellResult:
    from dioptra_assets.robustness.reporting.plots import poison_curves

    metrics, missing = present_poisoning_metrics(cell)
    curve = poison_curve(metrics, cell.spec.poisonings)
    stored = write_table(cell.destination, curve, attributes={"missing": missing})
    shown: dict[str, object] = {"curves": picture(poison_curves(curve), "ASR and C-ACC against the poisoned fraction")}
    if missing:
        shown["missing cells"] = dg.MetadataValue.md("\n".join(f"- {path}" for path in missing))
    return CellResult(stored, shown, {"points": len(curve)})
