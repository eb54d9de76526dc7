"""What the cells of an experiment say together: transfer matrix, security curves, and the report."""

import importlib.metadata
import platform
from collections.abc import Mapping

import dagster as dg
import numpy as np
import pandas as pd

from dioptra_assets.assets.adversarial_sets import shown_rows
from dioptra_assets.assets.cells import CellContext, CellResult, cell_asset
from dioptra_assets.assets.pictures import picture
from dioptra_assets.robustness.image_set import ImageSet
from dioptra_assets.robustness.metrics import METRIC_COLUMNS, proportion, security_curve, transfer_matrix
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
# A metadata entry holds one picture; more than these are on the report.
SHOWN_MATRICES = 6
PACKAGES = ("dioptra-assets", "dagster", "tensorflow", "keras", "adversarial-robustness-toolbox", "mlflow", "numpy")


def report_assets(spec: ExperimentSpec) -> list[dg.AssetsDefinition]:
    """`transfer_matrix`, `security_curves` and `report`, over all cells that exist."""
    return [
        cell_asset(
            spec,
            "transfer_matrix",
            _transfer_matrix,
            description="Every model on the images that were made on every model, attack by attack.",
            deps=["evasion_metrics"],
            kinds={"pandas"},
            columns={name: METRIC_COLUMNS[name] for name in _transfer_columns()},
            params=lambda _: {},
        ),
        cell_asset(
            spec,
            "security_curves",
            _security_curves,
            description="Robust accuracy against eps, from the untouched set upwards.",
            deps=["evasion_metrics"],
            kinds={"pandas"},
            columns=CURVE_COLUMNS,
            params=lambda _: {},
        ),
        cell_asset(
            spec,
            "report",
            _report,
            description="One self-contained page: threat models, results with intervals, pictures, how to repeat it.",
            deps=["transfer_matrix", "security_curves", "evasion_metrics", "clean_predictions", "model"],
            kinds={"html"},
            params=lambda _: {},
        ),
    ]


def _transfer_columns() -> list[str]:
    return TRANSFER_COLUMNS + [f"{rate}{end}" for rate in TRANSFER_RATES for end in ("", "_low", "_high")]


def _present_metrics(cell: CellContext) -> tuple[pd.DataFrame, list[str]]:
    """The metric tables of all cells that exist as one, and the cells that are missing."""
    partitions = [
        {ARCHITECTURE: architecture, ATTACK: attack}
        for attack in cell.spec.attacks
        for architecture in cell.spec.architectures
    ]
    stored, missing = cell.present("evasion_metrics", partitions)
    if not stored:
        raise LookupError(f"{cell.cell}: no cell of {cell.spec.name}/evasion_metrics has been materialized yet")
    for one in stored:
        missing += [f"{one.cell.path} without {target}" for target in one.manifest.attributes["missing"]]
    return pd.concat([read_table(one) for one in stored], ignore_index=True), missing


def _missing(missing: list[str]) -> dict[str, object]:
    return {"missing cells": dg.MetadataValue.md("\n".join(f"- {path}" for path in missing))} if missing else {}


def _transfer_matrix(cell: CellContext) -> CellResult:
    from dioptra_assets.robustness.plots import transfer_heat_map

    metrics, missing = _present_metrics(cell)
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

    metrics, missing = _present_metrics(cell)
    curve = security_curve(metrics, cell.spec.attacks)
    stored = write_table(cell.store, cell.cell, curve, attributes={"missing": missing}, **cell.publishing)
    classes = len(cell.read("testing_set").manifest.attributes["class_names"])
    curves = picture(security_curves(curve, class_count=classes), "robust accuracy against eps")
    return CellResult(stored, {"curves": curves, **_missing(missing)}, {"points": len(curve)})


def _report(cell: CellContext) -> CellResult:
    metrics, missing = _present_metrics(cell)
    page = render_report(report_data(cell, metrics, missing))
    stored = write_report(cell.store, cell.cell, page, **cell.publishing)
    path = f"{cell.store.url}/{stored.prefix}/report.html"
    with cell.mlflow_run() as run:
        if run:
            run.log_text("report.html", page)
    white_box = metrics.loc[metrics["source"] == metrics["target"], "robust_accuracy"]
    return CellResult(
        stored,
        {"report": dg.MetadataValue.path(path), **_missing(missing)},
        {"cells": len(metrics), "missing": len(missing)}
        | ({"lowest robust accuracy": white_box.min()} if len(white_box) else {}),
    )


def report_data(cell: CellContext, metrics: pd.DataFrame, missing: list[str]) -> ReportData:
    """Everything that the report of an experiment shows, read from its stored cells."""
    from dioptra_assets.robustness.plots import loss_curves, security_curves, transfer_heat_map

    spec = cell.spec
    sets = [cell.read(name) for name in ("training_set", "testing_set")]
    architectures = [{ARCHITECTURE: architecture} for architecture in spec.architectures]
    models, _ = cell.present("model", architectures)
    predictions, _ = cell.present("clean_predictions", architectures)
    curve = security_curve(metrics, spec.attacks)
    attacks = list(dict.fromkeys(metrics["attack"]))
    matrices = {attack: transfer_matrix(metrics, attack) for attack in attacks}
    figures = {"security_curves": security_curves(curve, class_count=len(sets[1].manifest.attributes["class_names"]))}
    figures |= {f"transfer_matrix/{a}": transfer_heat_map(matrix, title=a) for a, matrix in matrices.items()}
    histories = {model.cell.partition[ARCHITECTURE]: read_history(model) for model in models}
    figures |= {f"loss_curves/{name}": loss_curves(history) for name, history in histories.items() if len(history)}
    adversarial_sets, _ = cell.present(
        "adversarial_set", [{ARCHITECTURE: a, ATTACK: attacks[-1]} for a in spec.architectures]
    )
    testing_set = read_image_set(sets[1])
    metric_cells, _ = cell.present(
        "evasion_metrics", [{ARCHITECTURE: a, ATTACK: k} for k in attacks for a in spec.architectures]
    )
    return ReportData(
        experiment=spec.name,
        description=spec.description,
        data=pd.DataFrame([_set_row(stored) for stored in sets]),
        models=_model_rows(models, predictions),
        attacks=[_attack_entry(spec, key) for key in attacks],
        metrics=metrics,
        transfer_matrices=matrices,
        figures=figures,
        grids=[
            (partition_key_of(stored.cell.partition) or "", _comparison(cell, testing_set, stored))
            for stored in adversarial_sets
        ],
        provenance=pd.DataFrame([_provenance_row(stored) for stored in (*sets, *models, *metric_cells)]),
        versions=_versions(),
        missing=missing,
        commands=[f"dioptra-assets materialize {spec.name}", f"dioptra-assets report {spec.name}"],
    )


def _comparison(cell: CellContext, testing_set: ImageSet, adversarial: StoredCell) -> bytes:
    """Clean, adversarial and difference, each image with what the attacked model makes of it."""
    from dioptra_assets.robustness.plots import comparison_grid

    rows = shown_rows(testing_set)
    examples = read_table(cell.read("evasion_examples", **adversarial.cell.partition))
    own = examples[examples["target"] == adversarial.cell.partition[ARCHITECTURE]].reset_index(drop=True)
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


def _attack_entry(spec: ExperimentSpec, key: str) -> Mapping[str, object]:
    attack = spec.attacks[key]
    return {
        "attack": key,
        "method": attack.method,
        "description": (type(attack).__doc__ or "").split("\n\n")[0].replace("\n", " "),
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
