"""From adversarial sets to numbers: one row per image and target model, then rates and distances."""

import math
from collections.abc import Sequence
from typing import Any

import dagster as dg
import pandas as pd

from dioptra_assets.assets.boundary import cell_asset
from dioptra_assets.assets.cell_context import CellContext, CellResult, every
from dioptra_assets.assets.models import GPU_POOL
from dioptra_assets.assets.one_pass import held
from dioptra_assets.assets.pictures import markdown_table
from dioptra_assets.robustness.attacks import Attack
from dioptra_assets.robustness.defences import defended
from dioptra_assets.robustness.evaluation.distances import set_distances
from dioptra_assets.robustness.evaluation.examples import EXAMPLE_COLUMNS, NO_DEFENCE, RowKey, example_table
from dioptra_assets.robustness.evaluation.metrics import METRIC_COLUMNS, metric_table
from dioptra_assets.robustness.evaluation.predictions import predict
from dioptra_assets.robustness.image_set import ImageSet
from dioptra_assets.robustness.seeds import derive_seed
from partitions.attacks import attack_of, documents
from partitions.entries import edition
from partitions.experiments import BRANCH, ExperimentSpec
from partitions.keys import ARCHITECTURE, ATTACK
from resources.compute import prepare_device
from resources.image_store import read_image_set, read_often
from resources.models import read_model
from resources.store import StoredCell
from resources.tables import read_table, read_tables, write_table

HEADLINES = ("clean_accuracy", "robust_accuracy", "asr", "precision", "recall", "auc")


def metric_table_assets(spec: ExperimentSpec) -> list[dg.AssetsDefinition]:
    """`evasion_examples` and `evasion_metrics`, by architecture and attack."""
    behind = [
        f"{asset}/{name}"
        for name, defence in spec.defences.items()
        for asset in ("defended_predictions", "adaptive_set", *["defended_set"] * defence.apply_predict)
    ]
    behind += [f"defended_model/{name}" for name, defence in spec.defences.items() if defence.apply_fit]
    return [
        cell_asset(
            spec,
            "evasion_examples",
            _examples,
            description="One row per image and target model: the effect of the attack on this architecture, as seen by"
            " every model of the experiment, and by this model behind each defence (oblivious and adaptive). Every rate"
            " is computed from these rows.",
            dimensions=(ARCHITECTURE, ATTACK),
            deps=[
                "adversarial_set",
                "testing_set",
                every(spec, "clean_predictions"),
                every(spec, "model"),
                *behind,
            ],
            kinds={"pandas"},
            columns=EXAMPLE_COLUMNS,
            pool=GPU_POOL,
            params=dict,
            # Their rows are of these targets and defences, in this order.
            code_version=edition("1", list(spec.architectures), documents(spec.defences)),
            seeded=bool(spec.defences),
            reusable={
                "model": (ARCHITECTURE,),
                "testing_set": (),
                "clean_predictions": (ARCHITECTURE,),
                "adversarial_set": (ARCHITECTURE, ATTACK),
            },
        ),
        cell_asset(
            spec,
            "evasion_metrics",
            _metrics,
            description="Accuracy, attack success rate and distances of one attack on one architecture, for every"
            " target model. Each rate has a 95 % interval.",
            dimensions=(ARCHITECTURE, ATTACK),
            deps=["evasion_examples"],
            kinds={"pandas"},
            columns=METRIC_COLUMNS,
            params=dict,
        ),
    ]


def _examples(cell: CellContext) -> CellResult:
    if cell.twin:
        return _taken_over(cell, cell.twin)
    source, key = cell.cell.partition[ARCHITECTURE], cell.cell.partition[ATTACK]
    testing_set = read_often(cell.read("testing_set"))
    stored_set = cell.read("adversarial_set", **cell.cell.partition)
    adversarial_set = held(read_image_set(stored_set))
    targets = [{ARCHITECTURE: architecture} for architecture in cell.architectures()]
    models, missing_models = cell.present("model", targets)
    predictions, missing_predictions = cell.present("clean_predictions", targets)
    of_target = {stored.cell.partition[ARCHITECTURE]: stored for stored in predictions}
    missing = missing_models + missing_predictions
    absent = {path.rsplit("/", 1)[-1] for path in missing}
    models = [model for model in models if model.cell.partition[ARCHITECTURE] not in absent]
    if not models:
        raise LookupError(f"{cell.cell}: there is no model to evaluate, missing are {', '.join(missing)}")
    prepare_device()
    distances = set_distances(testing_set, adversarial_set)
    attack = attack_of(stored_set.manifest.attributes["attack"])
    tables = []
    aim = _target_classes(attack, adversarial_set)
    for model in models:
        target = model.cell.partition[ARCHITECTURE]
        tables.append(
            example_table(
                RowKey(source, key, target),
                clean=read_table(of_target[target]),
                adversarial=predict(read_model(model), adversarial_set),
                distances=distances,
                target_class=aim,
            )
        )
    for name in cell.spec.defences:
        rows, absent_cells = _defended_examples(cell, RowKey(source, key, source, name), testing_set, distances, aim)
        tables += rows
        missing += absent_cells
    table = pd.concat(tables, ignore_index=True)
    facts = {
        "seed": stored_set.manifest.attributes["seed"],
        "class_names": list(testing_set.class_names),
        "missing": missing,
        **cell.facts,
    }
    stored = write_table(cell.destination, table, attributes=facts)
    metadata: dict[str, Any] = {"preview": dg.MetadataValue.md(_preview(table))}
    if missing:
        metadata["missing"] = dg.MetadataValue.text(f"not evaluated, because not materialized: {', '.join(missing)}")
    return CellResult(stored, metadata, {"target models": len(models), "n": len(testing_set)})


def _taken_over(cell: CellContext, twin: StoredCell) -> CellResult:
    """Copy the rows of another version with the same bytes, under the name of this version."""
    version = cell.cell.partition[ARCHITECTURE]
    table = read_table(twin).assign(source=version, target=version)
    stored = write_table(cell.destination, table, attributes=twin.manifest.attributes)
    return CellResult(
        stored,
        {"preview": dg.MetadataValue.md(_preview(table))},
        {"target models": 1, "n": table["image_id"].nunique()},
    )


def _defended_examples(
    cell: CellContext, key: RowKey, testing_set: ImageSet, distances: pd.DataFrame, aim: pd.Series | None
) -> tuple[list[pd.DataFrame], list[str]]:
    """The rows of the attacked model behind one defence, under the oblivious and the adaptive attack.

    Also returns the paths of missing cells. If there are any, there are no rows.
    """
    name, partition = key.defence, cell.cell.partition
    defence, of_model = cell.spec.defences[name], {ARCHITECTURE: partition[ARCHITECTURE]}
    wanted = {
        f"defended_model/{name}" if defence.apply_fit else "model": of_model,
        f"defended_predictions/{name}": of_model,
        f"defended_set/{name}" if defence.apply_predict else "adversarial_set": partition,
        f"adaptive_set/{name}": partition,
    }
    inputs = {asset: cell.present(asset, [cells]) for asset, cells in wanted.items()}
    if missing := [path for _, absent in inputs.values() for path in absent]:
        return [], missing
    model, clean, oblivious, adaptive = (present[0] for present, _ in inputs.values())
    adaptive_set = read_image_set(adaptive)
    predictions = read_table(clean)
    # The adaptive set comes from the attacker. The defence in front of the model draws its own noise.
    behind = defended(defence, adaptive_set, seed=derive_seed(cell.seed, "defence", name))
    tables = [
        example_table(
            key,
            clean=predictions,
            adversarial=predict(read_model(model), read_image_set(oblivious)),
            distances=distances,
            target_class=aim,
        ),
        example_table(
            key._replace(adaptive=True),
            clean=predictions,
            adversarial=predict(read_model(model), behind),
            distances=set_distances(testing_set, adaptive_set),
            target_class=aim,
        ),
    ]
    return tables, []


def _target_classes(attack: Attack, adversarial_set: ImageSet) -> pd.Series | None:
    if not attack.targeted:
        return None
    return adversarial_set.index.set_index("image_id")["target_class"]


def _preview(table: pd.DataFrame) -> str:
    shown = table.drop(columns=["adversarial_probabilities", "source", "attack"]).head(8)
    return markdown_table(shown.round(3))


def _metrics(cell: CellContext) -> CellResult:
    stored_examples = cell.read("evasion_examples", **cell.cell.partition)
    facts = stored_examples.manifest.attributes
    examples = read_table(stored_examples)
    if cell.spec.branch:
        # The resampling draws by the names in a table: equal bytes have equal intervals, whatever their version.
        examples = examples.assign(source=BRANCH, target=BRANCH)
    table = metric_table(examples, class_names=facts["class_names"], seed=facts["seed"])
    if cell.spec.branch:
        table = table.assign(source=cell.cell.partition[ARCHITECTURE], target=cell.cell.partition[ARCHITECTURE])
    stored = write_table(cell.destination, table, attributes={"missing": facts["missing"]})
    metrics: dict[str, float] = {}
    for _, row in table.iterrows():
        own = row["target"] == cell.cell.partition[ARCHITECTURE]
        if own and row["defence"] == NO_DEFENCE:
            metrics |= {name: float(row[name]) for name in (*HEADLINES, "n", "l2_mean", "linf_max")}
        behind = "" if row["defence"] == NO_DEFENCE else f"/{row['defence']} {_knowledge(row)}"
        metrics |= {f"{row['target']}{behind}/{name}": float(row[name]) for name in HEADLINES}
    return CellResult(
        stored,
        {"rates": dg.MetadataValue.md(rates_table(table))},
        {name: value for name, value in metrics.items() if math.isfinite(value)},
    )


def _knowledge(row: pd.Series) -> str:
    return "adaptive" if row["adaptive"] else "oblivious"


def present_metrics(cell: CellContext, columns: Sequence[str] | None = None) -> tuple[pd.DataFrame, list[str]]:
    """The metric tables of all cells that exist as one, or some of their columns, and the cells that are missing."""
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
    return read_tables(stored, columns), missing


def rates_table(metrics: pd.DataFrame) -> str:
    """The rates of a metric table as Markdown, in percent with their intervals."""
    rows = [
        {"target": row["target"]}
        | ({"defence": f"{row['defence']}, {_knowledge(row)}"} if row["defence"] != NO_DEFENCE else {})
        | {"n": f"{row['n']:,}"}
        | {
            name.replace("_", " "): f"{row[name]:.1%} [{row[f'{name}_low']:.1%}, {row[f'{name}_high']:.1%}]"
            for name in HEADLINES
        }
        for _, row in metrics.iterrows()
    ]
    return pd.DataFrame(rows).fillna("").to_markdown(index=False)
