"""From adversarial sets to numbers: one row per image and target model, then rates and distances."""

import math

import dagster as dg
import pandas as pd

from dioptra_assets.assets.cells import CellContext, CellResult, cell_asset
from dioptra_assets.assets.models import GPU_POOL
from dioptra_assets.robustness.attacks import Attack
from dioptra_assets.robustness.distances import set_distances
from dioptra_assets.robustness.examples import EXAMPLE_COLUMNS, example_table
from dioptra_assets.robustness.image_set import ImageSet
from dioptra_assets.robustness.metrics import METRIC_COLUMNS, metric_table
from dioptra_assets.robustness.predictions import predict
from partitions.attacks import attack_of
from partitions.experiments import ExperimentSpec
from partitions.keys import ARCHITECTURE, ATTACK
from resources.compute import prepare_device
from resources.image_store import read_image_set
from resources.models import read_model
from resources.tables import read_table, write_table

HEADLINES = ("clean_accuracy", "robust_accuracy", "asr", "precision", "recall", "auc")


def metric_table_assets(spec: ExperimentSpec) -> list[dg.AssetsDefinition]:
    """`evasion_examples` and `evasion_metrics`, by architecture and attack."""
    every_model = [
        dg.AssetDep([spec.name, name], partition_mapping=dg.AllPartitionMapping())
        for name in ("clean_predictions", "model")
    ]
    return [
        cell_asset(
            spec,
            "evasion_examples",
            _examples,
            description="One row per image and target model: what the attack on this architecture did to each image, as"
            " every model of the experiment sees it. Every number is computed from these rows.",
            dimensions=(ARCHITECTURE, ATTACK),
            deps=["adversarial_set", "testing_set", *every_model],
            kinds={"pandas"},
            columns=EXAMPLE_COLUMNS,
            pool=GPU_POOL,
            params=dict,
        ),
        cell_asset(
            spec,
            "evasion_metrics",
            _metrics,
            description="Accuracy, attack success and distances of one attack on one architecture, for every target"
            " model, each rate with its 95 % interval.",
            dimensions=(ARCHITECTURE, ATTACK),
            deps=["evasion_examples"],
            kinds={"pandas"},
            columns=METRIC_COLUMNS,
            params=dict,
        ),
    ]


def _examples(cell: CellContext) -> CellResult:
    source, key = cell.cell.partition[ARCHITECTURE], cell.cell.partition[ATTACK]
    testing_set = read_image_set(cell.read("testing_set"))
    stored_set = cell.read("adversarial_set", **cell.cell.partition)
    adversarial_set = read_image_set(stored_set)
    targets = [{ARCHITECTURE: architecture} for architecture in cell.spec.architectures]
    models, missing_models = cell.present("model", targets)
    _, missing_predictions = cell.present("clean_predictions", targets)
    missing = missing_models + missing_predictions
    absent = {path.rsplit("/", 1)[-1] for path in missing}
    models = [model for model in models if model.cell.partition[ARCHITECTURE] not in absent]
    if not models:
        raise LookupError(f"{cell.cell}: there is no model to evaluate, missing are {', '.join(missing)}")
    prepare_device()
    distances = set_distances(testing_set, adversarial_set)
    attack = attack_of(stored_set.manifest.attributes["attack"])
    tables = []
    for model in models:
        target = model.cell.partition[ARCHITECTURE]
        tables.append(
            example_table(
                clean=read_table(cell.read("clean_predictions", **{ARCHITECTURE: target})),
                adversarial=predict(read_model(model), adversarial_set),
                distances=distances,
                source=source,
                attack=key,
                target=target,
                target_class=_target_classes(attack, adversarial_set),
            )
        )
    table = pd.concat(tables, ignore_index=True)
    facts = {
        "seed": stored_set.manifest.attributes["seed"],
        "class_names": list(testing_set.class_names),
        "missing": missing,
    }
    stored = write_table(cell.store, cell.cell, table, attributes=facts, **cell.publishing)
    metadata: dict[str, object] = {"preview": dg.MetadataValue.md(_preview(table))}
    if missing:
        metadata["missing"] = dg.MetadataValue.text(f"not evaluated, because not materialized: {', '.join(missing)}")
    return CellResult(stored, metadata, {"target models": len(models), "n": len(testing_set)})


def _target_classes(attack: Attack, adversarial_set: ImageSet) -> pd.Series | None:
    if not attack.targeted:
        return None
    return adversarial_set.index.set_index("image_id")["target_class"]


def _preview(table: pd.DataFrame) -> str:
    shown = table.drop(columns=["adversarial_probabilities", "source", "attack"]).head(8)
    return shown.round(3).to_markdown(index=False)


def _metrics(cell: CellContext) -> CellResult:
    stored_examples = cell.read("evasion_examples", **cell.cell.partition)
    facts = stored_examples.manifest.attributes
    table = metric_table(read_table(stored_examples), class_names=facts["class_names"], seed=facts["seed"])
    stored = write_table(cell.store, cell.cell, table, attributes={"missing": facts["missing"]}, **cell.publishing)
    own = table[table["target"] == cell.cell.partition[ARCHITECTURE]]
    metrics = {}
    for _, row in own.iterrows():
        metrics |= {name: float(row[name]) for name in (*HEADLINES, "n", "l2_mean", "linf_max")}
    for _, row in table.iterrows():
        metrics |= {f"{row['target']}/{name}": float(row[name]) for name in HEADLINES}
    return CellResult(
        stored,
        {"rates": dg.MetadataValue.md(rates_table(table))},
        {name: value for name, value in metrics.items() if math.isfinite(value)},
    )


def rates_table(metrics: pd.DataFrame) -> str:
    """The rates of a metric table as Markdown, in percent with their intervals."""
    rows = [
        {"target": row["target"], "n": f"{row['n']:,}"}
        | {
            name.replace("_", " "): f"{row[name]:.1%} [{row[f'{name}_low']:.1%}, {row[f'{name}_high']:.1%}]"
            for name in HEADLINES
        }
        for _, row in metrics.iterrows()
    ]
    return pd.DataFrame(rows).to_markdown(index=False)
