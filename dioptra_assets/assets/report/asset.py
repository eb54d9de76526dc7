"""What the cells of an experiment say together: transfer matrix, security curves, and the report."""

import json

import dagster as dg
import pandas as pd

from dioptra_assets.assets.boundary import cell_asset
from dioptra_assets.assets.cell_context import CellContext, CellResult
from dioptra_assets.assets.gate_evidence import gated_families
from dioptra_assets.assets.metric_tables import present_metrics
from dioptra_assets.assets.pictures import picture
from dioptra_assets.assets.report.contents import declaration, has_curves, report_data
from dioptra_assets.assets.report.files_beside import report_records
from dioptra_assets.assets.report.inputs import present_inputs
from dioptra_assets.robustness.evaluation.examples import NO_DEFENCE
from dioptra_assets.robustness.evaluation.metrics import (
    METRIC_COLUMNS,
    defence_comparison,
    security_curve,
    transfer_matrix,
)
from dioptra_assets.robustness.reporting.report import render_report
from partitions.entries import edition
from partitions.experiments import ExperimentSpec
from resources.documents import write_report
from resources.tables import write_table

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
SHOWN_MISSING = 1000


def report_assets(spec: ExperimentSpec) -> list[dg.AssetsDefinition]:
    """`transfer_matrix`, `security_curves`, `defence_comparison` and `report`, over all cells that exist."""
    assets = []
    # Which cells they go over, and in which order.
    shown = edition("1", list(spec.architectures), list(spec.attacks), list(spec.defences))
    if spec.attacks:
        assets.append(
            cell_asset(
                spec,
                "transfer_matrix",
                _transfer_matrix,
                description="Robust accuracy of every model on the adversarial images made on every model, per attack.",
                deps=["evasion_metrics"],
                kinds={"pandas"},
                columns={name: METRIC_COLUMNS[name] for name in _transfer_columns()},
                params=lambda _: {},
                code_version=shown,
            )
        )
    if has_curves(spec):
        assets.append(
            cell_asset(
                spec,
                "security_curves",
                _security_curves,
                description="Robust accuracy against eps, starting with the clean set.",
                deps=["evasion_metrics"],
                kinds={"pandas"},
                columns=CURVE_COLUMNS,
                params=lambda _: {},
                code_version=shown,
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
                code_version=shown,
            )
        )
    tables = {
        "transfer_matrix": bool(spec.attacks),
        "security_curves": has_curves(spec),
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
        description="One self-contained page: threat models, results with intervals, pictures, and how to reproduce"
        " them. The same is stored beside it as JSON, with a CycloneDX model card and a Croissant record.",
        deps=[
            *(name for name, exists in tables.items() if exists),
            *(f"{family}_gate" for family in gated_families(spec)),
            "clean_predictions",
            "model",
        ],
        kinds={"html"},
        params=lambda _: {},
        # All that the file declares is on it; numbers of an entry that was edited come when they have been measured.
        code_version=edition("4", json.dumps(declaration(spec))),
        edits=False,
    )
    return [*assets, report]


def _transfer_columns() -> list[str]:
    return TRANSFER_COLUMNS + [f"{rate}{end}" for rate in TRANSFER_RATES for end in ("", "_low", "_high")]


def _missing(missing: list[str]) -> dict[str, object]:
    if not missing:
        return {}
    listed = [f"- {path}" for path in missing[:SHOWN_MISSING]]
    more = [f"- and {len(missing) - SHOWN_MISSING:,} more"] if len(missing) > SHOWN_MISSING else []
    return {"missing cells": dg.MetadataValue.md("\n".join(listed + more))}


def _transfer_matrix(cell: CellContext) -> CellResult:
    from dioptra_assets.robustness.reporting.plots import transfer_heat_map

    metrics, missing = present_metrics(cell, [*_transfer_columns(), "adaptive"])
    metrics = metrics[metrics["defence"] == NO_DEFENCE]
    table = metrics[_transfer_columns()]
    stored = write_table(cell.destination, table, attributes={"missing": missing})
    attacks = list(dict.fromkeys(metrics["attack"]))
    heat_maps: dict[str, object] = {
        f"{attack}": picture(
            transfer_heat_map(transfer_matrix(metrics, attack), title=attack), f"robust accuracy under {attack}"
        )
        for attack in attacks[-SHOWN_MATRICES:]
    }
    if len(attacks) > SHOWN_MATRICES:
        said = f"The last {SHOWN_MATRICES} of {len(attacks)} attacks; the table has them all, the report the strongest."
        heat_maps["shown"] = dg.MetadataValue.text(said)
    return CellResult(stored, heat_maps | _missing(missing), {"cells": len(table), "missing": len(missing)})


def _security_curves(cell: CellContext) -> CellResult:
    from dioptra_assets.robustness.reporting.plots import security_curves

    metrics, missing = present_metrics(cell, [*_transfer_columns(), "adaptive"])
    curve = security_curve(metrics, cell.spec.attacks)
    stored = write_table(cell.destination, curve, attributes={"missing": missing})
    classes = len(cell.read("testing_set").manifest.attributes["class_names"])
    curves = picture(security_curves(curve, class_count=classes), "robust accuracy against eps")
    return CellResult(stored, {"curves": curves, **_missing(missing)}, {"points": len(curve)})


def _defence_comparison(cell: CellContext) -> CellResult:
    metrics, missing = present_metrics(cell)
    table = defence_comparison(metrics)
    stored = write_table(cell.destination, table, attributes={"missing": missing})
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
    inputs = present_inputs(cell)
    data = report_data(cell, inputs)
    page, records = render_report(data), report_records(cell, data, inputs)
    stored = write_report(cell.destination, page, records)
    path = f"{cell.store.url}/{stored.prefix}/report.html"
    with cell.mlflow_run() as run:
        if run:
            run.log_text("report.html", page)
            for name, content in records.items():
                run.log_bytes(name, content)
    metrics = data.metrics
    worst = data.headline["robust_accuracy"] if len(data.headline) else []
    return CellResult(
        stored,
        {"report": dg.MetadataValue.path(path), **_missing(list(data.missing))},
        {"cells": len(metrics), "missing": len(data.missing)}
        | ({"lowest robust accuracy": min(worst)} if len(worst) else {}),
    )
