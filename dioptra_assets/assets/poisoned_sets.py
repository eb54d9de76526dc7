"""Backdoor poisoning: poisoned training sets, triggered testing sets, and the models trained on them."""

import functools
from collections.abc import Callable
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd

from dioptra_assets.assets.adversarial_sets import threat_model_table
from dioptra_assets.assets.boundary import cell_asset
from dioptra_assets.assets.cell_context import CellContext, CellResult, every
from dioptra_assets.assets.config_assets import ARCHITECTURE_CONFIG, POISONING_CONFIG, read_attack, read_recipe
from dioptra_assets.assets.datasets import image_set_metadata
from dioptra_assets.assets.models import GPU_POOL, train_model
from dioptra_assets.assets.pictures import markdown_table, picture
from dioptra_assets.robustness.image_set import ImageSet, encode_png, tile
from dioptra_assets.robustness.poisoning import (
    AdversarialEmbedding,
    CleanLabelBackdoor,
    Poisoning,
    poison_training_set,
    train_embedded,
    triggered_testing_set,
)
from dioptra_assets.robustness.training.loop import split_rows
from partitions.attacks import attack_document
from partitions.entries import edition
from partitions.experiments import ExperimentSpec
from partitions.keys import ARCHITECTURE, ATTACK
from resources.compute import prepare_device
from resources.image_store import read_image_set, write_image_set
from resources.models import read_model
from resources.tables import write_table

MANIFEST_COLUMNS = {
    "row": "position in the training set",
    "image_id": "the image, as in the training set",
    "old_label": "its true class, position in the class names",
    "new_label": "the label it is given, position in the class names",
    "perturbation": "what was done to the image before the trigger, in the attack's norm",
}
SHOWN_POISONS = 12


def poisoned_set_assets(spec: ExperimentSpec) -> list[dg.AssetsDefinition]:
    """`poisoned_training_set`, `poison_manifest`, `triggered_testing_set` and `poisoned_model`."""

    def poisoning_asset(
        name: str,
        compute: Callable[[CellContext], CellResult],
        description: str,
        deps: list[dg.AssetDep | str],
        kinds: set[str],
        **more: Any,
    ) -> dg.AssetsDefinition:
        return cell_asset(
            spec,
            name,
            compute,
            description=description,
            dimensions=more.pop("dimensions", (ATTACK,)),
            family="poisoning",
            deps=deps,
            kinds=kinds,
            params=lambda partition: attack_document(spec.poisonings[partition[ATTACK]]) | dict(partition),
            **more,
        )

    # Only clean-label poisons are made with the help of a model.
    proxies = spec.dynamic or any(isinstance(config, CleanLabelBackdoor) for config in spec.poisonings.values())
    return [
        poisoning_asset(
            "poisoned_training_set",
            _poison,
            "The training set with poisons in it: every row in its place, some with the trigger, and relabelled where"
            " the attack relabels. Rows held out for validation were drawn before, and are clean.",
            [POISONING_CONFIG, "training_set", *([every(spec, "model")] if proxies else [])],
            {"numpy"},
            pool=GPU_POOL,
            # A clean-label attack that names no proxy takes the first architecture.
            code_version=edition("1", list(spec.architectures)[:1]) if proxies else "1",
            seeded=True,
        ),
        poisoning_asset(
            "poison_manifest",
            _manifest,
            "Which rows were poisoned: row, image, old and new label.",
            ["poisoned_training_set"],
            {"pandas"},
            columns=MANIFEST_COLUMNS,
        ),
        poisoning_asset(
            "triggered_testing_set",
            _trigger,
            "Every testing image with the trigger on it, under its true label.",
            [POISONING_CONFIG, "testing_set"],
            {"numpy"},
        ),
        poisoning_asset(
            "poisoned_model",
            _train,
            "A model trained on the poisoned training set. Not registered in MLflow: it is a specimen.",
            [ARCHITECTURE_CONFIG, POISONING_CONFIG, "poisoned_training_set"],
            {"tensorflow"},
            dimensions=(ARCHITECTURE, ATTACK),
            pool=GPU_POOL,
            seeded=True,
        ),
    ]


def _poison(cell: CellContext) -> CellResult:
    config: Poisoning = read_attack(cell, cell.cell.partition[ATTACK], "poisoning")
    training_set = read_image_set(cell.read("training_set"))
    seed = config.seed if config.seed is not None else cell.seed
    rows, _ = split_rows(training_set, config.validation_split, seed)
    facts: dict[str, object] = {"attack": attack_document(config), "seed": seed}
    proxy = None
    if isinstance(config, CleanLabelBackdoor):
        architecture = config.proxy_architecture or next(iter(cell.architectures()), "")
        stored_proxy = cell.read("model", **{ARCHITECTURE: architecture})
        prepare_device()
        proxy = read_model(stored_proxy)
        facts |= {"proxy_architecture": architecture, "proxy_version": stored_proxy.manifest.data_version}
    poisoned = poison_training_set(config, training_set, rows=rows, seed=seed, proxy_model=proxy)
    stored = write_image_set(
        cell.destination,
        poisoned.batches,
        n=len(training_set),
        image_shape=training_set.image_shape,
        class_names=training_set.class_names,
        attributes=facts,
    )
    poisoned_set = read_image_set(stored)
    manifest = poison_manifest(poisoned_set)
    with cell.mlflow_run() as run:
        if run:
            run.log_text("poison_manifest.csv", manifest.to_csv(index=False))
    return CellResult(
        stored,
        {
            "poisons, before and after": _poisons(training_set, poisoned_set),
            "poison manifest": dg.MetadataValue.md(markdown_table(manifest.head(SHOWN_POISONS))),
            "threat model": threat_model_table(config.threat_model()),
            **{name: value for name, value in facts.items() if name != "attack"},
        },
        {"n": len(poisoned_set), "poisons": len(manifest)},
    )


def poison_manifest(poisoned_set: ImageSet) -> pd.DataFrame:
    """One row per poisoned image, with the columns of `MANIFEST_COLUMNS`."""
    index = poisoned_set.index.assign(row=range(len(poisoned_set)))
    poisons = index[index["poisoned"]].rename(columns={"original_label": "old_label", "label": "new_label"})
    return poisons[list(MANIFEST_COLUMNS)].reset_index(drop=True)


def _poisons(clean: ImageSet, poisoned: ImageSet) -> dg.MarkdownMetadataValue | str:
    rows = poison_manifest(poisoned)["row"].to_numpy()[:SHOWN_POISONS]
    if not len(rows):
        return "none: poison_fraction is 0"
    shown = tile(np.concatenate([clean.images(rows), poisoned.images(rows)]), columns=len(rows))
    zoom = max(1, 700 // shown.shape[1])
    return picture(encode_png(shown, zoom), "clean images above their poisons")


def _manifest(cell: CellContext) -> CellResult:
    manifest = poison_manifest(read_image_set(cell.read("poisoned_training_set", **cell.cell.partition)))
    stored = write_table(cell.destination, manifest)
    relabelled = int((manifest["old_label"] != manifest["new_label"]).sum())
    return CellResult(
        stored,
        {"preview": dg.MetadataValue.md(markdown_table(manifest.head(SHOWN_POISONS)))},
        {"poisons": len(manifest), "relabelled": relabelled},
    )


def _trigger(cell: CellContext) -> CellResult:
    config: Poisoning = read_attack(cell, cell.cell.partition[ATTACK], "poisoning")
    triggered = triggered_testing_set(config, read_image_set(cell.read("testing_set")))
    stored = write_image_set(
        cell.destination,
        triggered.batches(),
        n=len(triggered),
        image_shape=triggered.image_shape,
        class_names=triggered.class_names,
        attributes={"attack": attack_document(config)},
    )
    eligible = int(triggered.index["eligible"].sum())
    return CellResult(stored, image_set_metadata(read_image_set(stored)), {"n": len(triggered), "eligible": eligible})


def _train(cell: CellContext) -> CellResult:
    config: Poisoning = read_attack(cell, cell.cell.partition[ATTACK], "poisoning")
    recipe = read_recipe(cell, cell.cell.partition[ARCHITECTURE])
    poisoned_set = read_image_set(cell.read("poisoned_training_set", **{ATTACK: cell.cell.partition[ATTACK]}))
    trainer = functools.partial(train_embedded, config) if isinstance(config, AdversarialEmbedding) else None
    return train_model(cell, recipe, poisoned_set, trainer=trainer)
