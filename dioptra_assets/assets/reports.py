"""What the cells of an experiment say together: transfer matrix, security curves, and the report."""

import importlib.metadata
import platform
from collections.abc import Mapping
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd

from dioptra_assets.assets.adversarial_sets import shown_rows
from dioptra_assets.assets.cells import CellContext, CellResult, cell_asset
from dioptra_assets.assets.gates import gated_families
from dioptra_assets.assets.metric_tables import present_metrics
from dioptra_assets.assets.pictures import picture
from dioptra_assets.assets.report_sections import report_sections
from dioptra_assets.robustness.examples import NO_DEFENCE
from dioptra_assets.robustness.image_set import ImageSet
from dioptra_assets.robustness.metrics import (
    METRIC_COLUMNS,
    defence_comparison,
    proportion,
    security_curve,
    transfer_matrix,
)
from dioptra_assets.robustness.report import ReportData, render_report
from partitions.attacks import attack_document
from partitions.experiments import ExperimentSpec
from partitions.keys import ARCHITECTURE, ATTACK, partition_key_of
from resources.cells import StoredCell
from resources.documents import write_report
from resources.image_store import read_image_set
from resources.models import read_history
from resources.tables import read_table, write_table

TRANSFER_COLUMNS = ["attack", "source", "target", "defence", "n", "seed"]
TRANSFER_RATES = ["clean_accuracy", "robust_accuracy", "asr"]
CURVE_COLUMNS = {
    "source": "architecture whose model the attack was computed on",
    "target": "architecture whose model is evaluated",
    "family": "attack configs that differ in eps alone",
    "eps": "budget, in the units of the attack's norm; 0 is the untouched set",
    "robust_accuracy": "share of all n images classified as their true label",
    "low": "lower end of its 95 % interval (Wilson)",
    "high": "upper end of its 95 % interval (Wilson)",
    "n": "images",
    "seed": "seed of the cell",
}
COMPARISON_COLUMNS = {
    "architecture": "architecture of the attacked model",
    "attack": "attack config",
    "defence": "name of the defence",
    "clean_accuracy": "share of the untouched images classified right behind the defence",
    "robust_accuracy": "robust accuracy of the model without the defence",
    "oblivious": "robust accuracy behind the defence, the attack not knowing of it",
    "adaptive": "robust accuracy behind the defence, the attack computed on model and defence together",
}
# A metadata entry holds one picture; more than these are on the report.
SHOWN_MATRICES = 6
PACKAGES = ("dioptra-assets", "dagster", "tensorflow", "keras", "adversarial-robustness-toolbox", "mlflow", "numpy")


def report_assets(spec: ExperimentSpec) -> list[dg.AssetsDefinition]:
    """`transfer_matrix`, `security_curves`, `defence_comparison` and `report`, over all cells that exist."""
    assets = []
    if spec.attacks:
        assets.append(
            cell_asset(
                spec,
                "transfer_matrix",
                _transfer_matrix,
                description="Every model on the images that were made on every model, attack by attack.",
                deps=["evasion_metrics"],
                kinds={"pandas"},
                columns={name: METRIC_COLUMNS[name] for name in _transfer_columns()},
                params=lambda _: {},
            )
        )
    if _has_curves(spec):
        assets.append(
            cell_asset(
                spec,
                "security_curves",
                _security_curves,
                description="Robust accuracy against eps, from the untouched set upwards.",
                deps=["evasion_metrics"],
                kinds={"pandas"},
                columns=CURVE_COLUMNS,
                params=lambda _: {},
            )
        )
    if spec.attacks and spec.defences:
        assets.append(
            cell_asset(
                spec,
                "defence_comparison",
                _defence_comparison,
                description="What each defence is worth: robust accuracy without it, against an attack that does not"
                " know of it (oblivious), and against one that does (adaptive).",
                deps=["evasion_metrics"],
                kinds={"pandas"},
                columns=COMPARISON_COLUMNS,
                params=lambda _: {},
            )
        )
    tables = {
        "transfer_matrix": bool(spec.attacks),
        "security_curves": _has_curves(spec),
        "defence_comparison": bool(spec.attacks and spec.defences),
        "sanity": bool(spec.attacks),
        "evasion_metrics": bool(spec.attacks),
        "poison_curve": bool(spec.poisonings),
        "poisoning_metrics": bool(spec.poisonings),
        "inversion_metrics": bool(spec.inversions),
    }
    report = cell_asset(
        spec,
        "report",
        _report,
        description="One self-contained page: threat models, results with intervals, pictures, how to repeat it.",
        deps=[
            *(name for name, exists in tables.items() if exists),
            *(f"{family}_gate" for family in gated_families(spec)),
            "clean_predictions",
            "model",
        ],
        kinds={"html"},
        params=lambda _: {},
    )
    return [*assets, report]


def _has_curves(spec: ExperimentSpec) -> bool:
    return any(hasattr(attack, "eps") for attack in spec.attacks.values())


def _transfer_columns() -> list[str]:
    return TRANSFER_COLUMNS + [f"{rate}{end}" for rate in TRANSFER_RATES for end in ("", "_low", "_high")]


def _missing(missing: list[str]) -> dict[str, object]:
    return {"missing cells": dg.MetadataValue.md("\n".join(f"- {path}" for path in missing))} if missing else {}


def _transfer_matrix(cell: CellContext) -> CellResult:
    from dioptra_assets.robustness.plots import transfer_heat_map

    metrics, missing = present_metrics(cell)
    metrics = metrics[metrics["defence"] == NO_DEFENCE]
    table = metrics[_transfer_columns()]
    stored = write_table(cell.store, cell.cell, table, attributes={"missing": missing}, **cell.publishing)
    attacks = list(dict.fromkeys(metrics["attack"]))
    heat_maps = {
        f"{attack}": picture(
            transfer_heat_map(transfer_matrix(metrics, attack), title=attack), f"robust accuracy under {attack}"
        )
        for attack in attacks[-SHOWN_MATRICES:]
    }
    return CellResult(stored, heat_maps | _missing(missing), {"cells": len(table), "missing": len(missing)})


def _security_curves(cell: CellContext) -> CellResult:
    from dioptra_assets.robustness.plots import security_curves

    metrics, missing = present_metrics(cell)
    curve = security_curve(metrics, cell.spec.attacks)
    stored = write_table(cell.store, cell.cell, curve, attributes={"missing": missing}, **cell.publishing)
    classes = len(cell.read("testing_set").manifest.attributes["class_names"])
    curves = picture(security_curves(curve, class_count=classes), "robust accuracy against eps")
    return CellResult(stored, {"curves": curves, **_missing(missing)}, {"points": len(curve)})


def _defence_comparison(cell: CellContext) -> CellResult:
    metrics, missing = present_metrics(cell)
    table = defence_comparison(metrics)
    stored = write_table(cell.store, cell.cell, table, attributes={"missing": missing}, **cell.publishing)
    return CellResult(stored, {"defences": dg.MetadataValue.md(_comparison_text(table))} | _missing(missing))


def _comparison_text(table: pd.DataFrame) -> str:
    def percent(row: pd.Series, rate: str) -> str:
        if pd.isna(row[rate]):
            return "missing"
        return f"{row[rate]:.1%} [{row[f'{rate}_low']:.1%}, {row[f'{rate}_high']:.1%}]"

    rows = [
        {name: row[name] for name in ("architecture", "attack", "defence")}
        | {"clean": percent(row, "clean_accuracy"), "no defence": percent(row, "robust_accuracy")}
        | {name: percent(row, name) for name in ("oblivious", "adaptive")}
        for _, row in table.iterrows()
    ]
    return pd.DataFrame(rows).to_markdown(index=False)


def _report(cell: CellContext) -> CellResult:
    data = report_data(cell)
    page = render_report(data)
    stored = write_report(cell.store, cell.cell, page, **cell.publishing)
    path = f"{cell.store.url}/{stored.prefix}/report.html"
    with cell.mlflow_run() as run:
        if run:
            run.log_text("report.html", page)
    metrics = data.metrics
    white_box = metrics.loc[metrics["source"] == metrics["target"], "robust_accuracy"] if len(metrics) else []
    return CellResult(
        stored,
        {"report": dg.MetadataValue.path(path), **_missing(list(data.missing))},
        {"cells": len(metrics), "missing": len(data.missing)}
        | ({"lowest robust accuracy": min(white_box)} if len(white_box) else {}),
    )


def report_data(cell: CellContext) -> ReportData:
    """Everything that the report of an experiment shows, read from its stored cells."""
    from dioptra_assets.robustness.plots import loss_curves, security_curves, transfer_heat_map

    spec = cell.spec
    metrics, missing = present_metrics(cell) if spec.attacks else (pd.DataFrame(), [])
    sets = [cell.read(name) for name in (*(["training_set"] if spec.trains else []), "testing_set")]
    architectures = [{ARCHITECTURE: architecture} for architecture in spec.architectures]
    models, _ = cell.present("model", architectures)
    predictions, _ = cell.present("clean_predictions", architectures)
    classes = len(sets[-1].manifest.attributes["class_names"])
    attacks = list(dict.fromkeys(metrics["attack"])) if len(metrics) else []
    matrices = {attack: transfer_matrix(metrics, attack) for attack in attacks}
    figures = {}
    if _has_curves(spec):
        figures["security_curves"] = security_curves(security_curve(metrics, spec.attacks), class_count=classes)
    figures |= {f"transfer_matrix/{a}": transfer_heat_map(matrix, title=a) for a, matrix in matrices.items()}
    histories = {model.cell.partition[ARCHITECTURE]: read_history(model) for model in models}
    figures |= {f"loss_curves/{name}": loss_curves(history) for name, history in histories.items() if len(history)}
    adversarial_sets, _ = cell.present(
        "adversarial_set", [{ARCHITECTURE: a, ATTACK: attacks[-1]} for a in spec.architectures] if attacks else []
    )
    testing_set = read_image_set(sets[-1])
    sections, measured, absent = report_sections(cell, metrics)
    missing = [*missing, *absent]
    metric_cells, _ = cell.present(
        "evasion_metrics", [{ARCHITECTURE: a, ATTACK: k} for k in attacks for a in spec.architectures]
    )
    return ReportData(
        experiment=spec.name,
        description=spec.description,
        data=pd.DataFrame([_set_row(stored) for stored in sets]),
        models=_model_rows(models, predictions),
        attacks=[
            _attack_entry(key, config)
            for configs in (spec.attacks, spec.poisonings, spec.inversions)
            for key, config in configs.items()
        ],
        metrics=metrics,
        transfer_matrices=matrices,
        figures=figures,
        grids=[
            (partition_key_of(stored.cell.partition) or "", _comparison(cell, testing_set, stored))
            for stored in adversarial_sets
        ],
        provenance=pd.DataFrame([_provenance_row(stored) for stored in (*sets, *models, *metric_cells, *measured)]),
        versions=_versions(),
        missing=missing,
        commands=[f"dioptra-assets materialize {spec.name}", f"dioptra-assets report {spec.name}"],
        sections=sections,
    )


def _comparison(cell: CellContext, testing_set: ImageSet, adversarial: StoredCell) -> bytes:
    """Clean, adversarial and difference, each image with what the attacked model makes of it."""
    from dioptra_assets.robustness.plots import comparison_grid

    rows = shown_rows(testing_set)
    examples = read_table(cell.read("evasion_examples", **adversarial.cell.partition))
    undefended = (examples["target"] == adversarial.cell.partition[ARCHITECTURE]) & (examples["defence"] == NO_DEFENCE)
    own = examples[undefended].reset_index(drop=True)
    names = testing_set.class_names
    titles = [
        f"{names[row['label']]} → {names[row['adversarial_prediction']]}\n({row['adversarial_confidence']:.1%})"
        for _, row in own.loc[rows].iterrows()
    ]
    return comparison_grid(testing_set.images(rows), read_image_set(adversarial).images(rows), titles)


def _set_row(stored: StoredCell) -> dict[str, object]:
    facts = stored.manifest.attributes
    return {
        "set": stored.cell.asset.rsplit("/", 1)[-1],
        "n": facts["n"],
        "classes": len(facts["class_names"]),
        "size": " x ".join(map(str, facts["image_shape"])),
        "data_version": stored.manifest.data_version,
    }


def _model_rows(models: list[StoredCell], predictions: list[StoredCell]) -> pd.DataFrame:
    clean = {stored.cell.partition[ARCHITECTURE]: read_table(stored) for stored in predictions}
    rows = []
    for stored in models:
        architecture, facts = stored.cell.partition[ARCHITECTURE], stored.manifest.attributes
        table = clean.get(architecture)
        right = np.array([]) if table is None else (table["prediction"] == table["label"]).to_numpy()
        accuracy, low, high = proportion(int(right.sum()), len(right))
        rows.append(
            {"architecture": architecture, "parameters": facts["parameters"], "epochs": facts["epochs"]}
            | {"clean_accuracy": accuracy, "low": low, "high": high, "data_version": stored.manifest.data_version}
        )
    return pd.DataFrame(rows)


def _attack_entry(key: str, attack: Any) -> Mapping[str, object]:
    return {
        "attack": key,
        "method": attack.method,
        "description": (type(attack).__doc__ or "").split("\n\n")[0].replace("\n", " ").replace("`", ""),
        "parameters": {name: value for name, value in attack_document(attack).items() if name != "method"},
        "threat_model": vars(attack.threat_model()),
    }


def _provenance_row(stored: StoredCell) -> dict[str, object]:
    return {
        "asset": stored.cell.asset,
        "partition": partition_key_of(stored.cell.partition) or "",
        "data_version": stored.manifest.data_version,
        "seed": stored.manifest.attributes.get("seed"),
    }


def _versions() -> dict[str, str]:
    return {"Python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}
