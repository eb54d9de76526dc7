"""What the report of an experiment shows, read from its stored cells."""

import importlib.metadata
import platform
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from dioptra_assets.assets.adversarial_sets import shown_rows
from dioptra_assets.assets.cell_context import CellContext
from dioptra_assets.assets.metric_tables import present_metrics
from dioptra_assets.assets.report.inputs import ReportInputs, by_architecture
from dioptra_assets.assets.report.sections import report_sections
from dioptra_assets.robustness.evaluation.examples import NO_DEFENCE
from dioptra_assets.robustness.evaluation.metrics import proportion, security_curve, transfer_matrix
from dioptra_assets.robustness.evaluation.worst_case import WORST_CASE_INPUTS, WorstCase
from dioptra_assets.robustness.image_set import ImageSet
from dioptra_assets.robustness.reporting.report import METRICS_FILE, MOST_ROWS, SHOWN_MODELS, ReportData
from partitions.attacks import SECTIONS, attack_document
from partitions.experiments import ExperimentFile, ExperimentSpec
from partitions.keys import ARCHITECTURE, ATTACK, partition_key_of
from resources.image_store import read_image_set
from resources.models import read_history
from resources.store import StoredCell
from resources.tables import read_table, read_tables

PACKAGES = (
    *("dioptra-assets", "dagster", "tensorflow", "keras", "adversarial-robustness-toolbox", "mlflow"),
    *("numpy", "scipy", "scikit-learn", "opencv-python-headless", "pillow"),
)
# Of more attacks than this no page is read to its end; the asset `transfer_matrix` has them all.
SHOWN_MATRICES = 12
# What an experiment file says that it is.
COMPONENT = "dioptra_assets.experiment.Experiment"
# The files beside the page of an experiment, by what they are; named by it, so that pages can lie in one folder.
FILES = {
    "{}.report.json": "JSON",
    "{}.model_card.cdx.json": "CycloneDX model card",
    "{}.croissant.json": "Croissant record of the image sets",
}


def has_curves(spec: ExperimentSpec) -> bool:
    """Whether an attack of the experiment has an eps to draw a security curve over."""
    return any(hasattr(attack, "eps") for attack in spec.attacks.values())


def report_data(cell: CellContext, inputs: ReportInputs) -> ReportData:
    """Everything that the report of an experiment shows, read from its stored cells."""
    from dioptra_assets.robustness.reporting.plots import loss_curves, security_curves, transfer_heat_map

    spec = cell.spec
    _refuse_older_attacks(cell, inputs)
    metrics, missing = present_metrics(cell) if spec.attacks else (pd.DataFrame(), [])
    sets = [cell.read(name) for name in (*(["training_set"] if spec.trains else []), "testing_set")]
    models, _ = cell.present("model", by_architecture(cell))
    predictions, _ = cell.present("clean_predictions", by_architecture(cell))
    classes = len(sets[-1].manifest.attributes["class_names"])
    attacks = list(dict.fromkeys(metrics["attack"])) if len(metrics) else []
    matrices = {attack: transfer_matrix(metrics, attack) for attack in _strongest(metrics, attacks)}
    figures = {}
    if has_curves(spec):
        figures["security_curves"] = security_curves(security_curve(metrics, spec.attacks), class_count=classes)
    figures |= {f"transfer_matrix/{a}": transfer_heat_map(matrix, title=a) for a, matrix in matrices.items()}
    histories = {model.cell.partition[ARCHITECTURE]: read_history(model) for model in models[:SHOWN_MODELS]}
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
    headline = _worst_case(cell, attacks)
    return ReportData(
        headline=headline,
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
            for stored in adversarial_sets[:SHOWN_MODELS]
        ],
        provenance=_provenance(
            [
                *inputs.configs,
                *inputs.sets,
                *(stored for stored, _ in inputs.models),
                *metric_cells,
                *measured,
            ]
        ),
        versions=_versions(),
        missing=missing,
        commands=[f"dioptra-assets materialize {spec.name}", f"dioptra-assets report {spec.name}"],
        sections=sections,
        seed=spec.seed,
        declaration=declaration(spec),
        files=[
            *((name.format(spec.name), what) for name, what in FILES.items()),
            *([(METRICS_FILE.format(spec.name), "metric table")] if len(metrics) > MOST_ROWS else []),
        ],
    )


def _refuse_older_attacks(cell: CellContext, inputs: ReportInputs) -> None:
    """A page that says one eps above the numbers of another would be worse than none."""
    older = [
        stored.cell.path
        for stored in inputs.sets
        if stored.cell.asset == f"{cell.spec.name}/adversarial_set"
        and stored.manifest.attributes["attack"] != attack_document(cell.spec.attacks[stored.cell.partition[ATTACK]])
    ]
    if older:
        raise LookupError(
            f"{cell.cell} is withheld: the file has been edited since {', '.join(older[:5])}"
            f"{' and others' if len(older) > 5 else ''} were made; materialize them first,"
            f" `dioptra-assets materialize {cell.spec.name}`"
        )


def _worst_case(cell: CellContext, attacks: list[str]) -> pd.DataFrame:
    """The worst case over all attacks that exist, from one cell of examples after the other."""
    worst = WorstCase(cell.spec.attacks)
    partitions = [{ARCHITECTURE: a, ATTACK: k} for k in attacks for a in cell.spec.architectures]
    for stored in cell.present("evasion_examples", partitions)[0] if partitions else []:
        worst.add(read_tables([stored], WORST_CASE_INPUTS))
    return worst.table()


def _strongest(metrics: pd.DataFrame, attacks: list[str]) -> list[str]:
    """The attacks whose transfer matrices are shown: all, or those that leave the models the least on average."""
    if len(attacks) <= SHOWN_MATRICES:
        return attacks
    undefended = metrics[metrics["defence"] == NO_DEFENCE]
    left: Any = undefended.groupby("attack")["robust_accuracy"].mean()
    chosen = set(left.nsmallest(SHOWN_MATRICES).index)
    return [attack for attack in attacks if attack in chosen]


def _comparison(cell: CellContext, testing_set: ImageSet, adversarial: StoredCell) -> bytes:
    """Clean, adversarial and difference, each image with what the attacked model makes of it."""
    from dioptra_assets.robustness.reporting.plots import comparison_grid

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


def _provenance(cells: list[StoredCell]) -> pd.DataFrame:
    """Where every number comes from; the column `device` is there where any cell knows its own."""
    table = pd.DataFrame(
        [
            {
                "asset": stored.cell.asset,
                "partition": partition_key_of(stored.cell.partition) or "",
                "data_version": stored.manifest.data_version,
                "seed": stored.manifest.attributes.get("seed"),
                "device": stored.manifest.attributes.get("device"),
            }
            for stored in cells
        ]
    )
    return table if table["device"].notna().any() else table.drop(columns="device")


def declaration(spec: ExperimentSpec) -> dict[str, Any]:
    """An experiment file that declares this experiment, with sweeps written out and defaults left out."""

    def configs(entries: Mapping[str, Any], kind: str) -> dict[str, Any]:
        return {
            key: {kind: getattr(entry, kind)} | entry.model_dump(mode="json", exclude_defaults=True)
            for key, entry in entries.items()
        }

    fields: dict[str, Any] = {
        "description": spec.description,
        "seed": spec.seed,
        "owners": list(spec.owners),
        "data": {"source": spec.source.model_dump()["source"]}
        | spec.source.model_dump(mode="json", exclude_defaults=True),
        "architectures": configs(spec.architectures, "architecture"),
        **{section: configs(spec.family(family), "method") for family, section in SECTIONS.items()},
        "defences": configs(spec.defences, "method"),
        "gates": [{"rule": gate.rule, "severity": gate.severity} for gate in spec.gates],
        "watch": spec.watch.model_dump(mode="json") if spec.watch else None,
    }
    fields |= {name: getattr(spec, name) for name in ExperimentFile.model_fields if name not in fields}
    defaults = ExperimentFile(data={}).model_dump(mode="json")
    attributes = {name: value for name, value in fields.items() if value != defaults[name]}
    return {"type": COMPONENT, "attributes": attributes}


def _versions() -> dict[str, str]:
    return {"Python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}
