"""Adversarial sets: the testing set, attacked."""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np

from dioptra_assets.assets.boundary import cell_asset
from dioptra_assets.assets.cell_context import CellContext, CellResult
from dioptra_assets.assets.config_assets import ATTACK_CONFIG, read_attack
from dioptra_assets.assets.models import GPU_POOL
from dioptra_assets.assets.one_pass import Change, Passing
from dioptra_assets.assets.pictures import picture
from dioptra_assets.assets.reuse import copy
from dioptra_assets.robustness.attacks import Attack, perturb_set
from dioptra_assets.robustness.attacks.base import AttackedBatch, ThreatModel
from dioptra_assets.robustness.image_set import ImageBatch, ImageSet, encode_png, tile
from partitions.attacks import attack_document
from partitions.experiments import ExperimentSpec
from partitions.keys import ARCHITECTURE, ATTACK
from resources.compute import prepare_device
from resources.image_store import read_image_set, read_often, write_image_set
from resources.models import read_model
from resources.store import StoredCell
from resources.tracking.resource import CellRun

SHOWN_IMAGES = 8


def adversarial_set_asset(spec: ExperimentSpec) -> dg.AssetsDefinition:
    """`adversarial_set`, by architecture and attack."""

    def compute(cell: CellContext) -> CellResult:
        model = cell.read("model", **{ARCHITECTURE: cell.cell.partition[ARCHITECTURE]})
        return attack_model(cell, model, read_model)

    return cell_asset(
        spec,
        "adversarial_set",
        compute,
        description="Every testing image, perturbed by one attack on one model. Stored without loss, in the order of"
        " the testing set.",
        dimensions=(ARCHITECTURE, ATTACK),
        deps=[ATTACK_CONFIG, "model", "testing_set"],
        kinds={"tensorflow", "numpy"},
        pool=GPU_POOL,
        params=lambda partition: attack_document(spec.attacks[partition[ATTACK]]) | dict(partition),
        seeded=True,
        reusable={"model": (ARCHITECTURE,), "testing_set": (), ATTACK_CONFIG: (ATTACK,)},
    )


def attack_model(cell: CellContext, stored_model: StoredCell, load: Callable[[StoredCell], Any]) -> CellResult:
    """Attack one model with the attack of this cell, and store the adversarial set.

    Args:
        cell: a cell of an architecture and an attack.
        stored_model: the model.
        load: gives what is attacked: the model itself, or the model behind a defence.
    """
    architecture, key = cell.cell.partition[ARCHITECTURE], cell.cell.partition[ATTACK]
    attack = read_attack(cell, key)
    testing_set = read_often(cell.read("testing_set"))
    device = prepare_device()
    seed = attack.seed if attack.seed is not None else cell.seed
    change = Change(testing_set.pixels.shape, shown_rows(testing_set))
    if cell.twin:
        stored = copy(cell, cell.twin)
        for before, after in zip(testing_set.batches(), read_image_set(stored).batches(), strict=True):
            change.add(before.images, after.images, after.index)
    else:
        facts = {"seed": seed, "model_version": stored_model.manifest.data_version, **cell.facts}
        stored = _attack(cell, attack, load(stored_model), testing_set, change=change, facts=facts)
    with cell.mlflow_run() as run:
        if run and cell.spec.log_sets:
            log_archive(run, read_image_set(stored), f"testing_adversarial_{attack.method}.tar.gz")
    return CellResult(
        stored,
        {
            "clean, adversarial, difference": picture(_comparison(change), f"{architecture} attacked by {key}"),
            "threat model": threat_model_table(attack.threat_model()),
            "device": device,
            "seed": seed,
        },
        {
            "n": change.n,
            "share of images changed": change.share,
            "largest change of a pixel": change.largest,
            "images without gradient": float(change.without_gradient),
            "queries per image": change.queries / change.n,
        },
        tags={"device": device, "seed": str(seed)},
    )


def _attack(
    cell: CellContext, attack: Attack, model: Any, testing_set: ImageSet, *, change: Change, facts: Mapping[str, Any]
) -> StoredCell:
    clean = Passing(testing_set.pixels)
    attacked = perturb_set(
        attack,
        model,
        replace(testing_set, pixels=clean),
        seed=facts["seed"],
        class_count=len(testing_set.class_names),
        progress=cell.progress("attacked"),
        log=lambda sentence: cell.log(f"{cell.cell}: {sentence}"),
    )
    return write_image_set(
        cell.destination,
        _watched(attacked, clean, change),
        n=len(testing_set),
        image_shape=testing_set.image_shape,
        class_names=testing_set.class_names,
        attributes={"attack": attack_document(attack), **facts},
    )


def shown_rows(clean: ImageSet) -> np.ndarray:
    """The images that pictures show: the first of each class."""
    return clean.index.drop_duplicates("label").sort_values("label").index[:SHOWN_IMAGES].to_numpy(np.int64)


def _watched(attacked: Iterable[AttackedBatch], clean: Passing, change: Change) -> Iterator[ImageBatch]:
    """The adversarial images on their way to the store, held beside the images they were made of."""
    done = 0
    for batch in attacked:
        change.add(clean.taken(done, done + len(batch.images)), batch.images, batch.index)
        done += len(batch.images)
        yield ImageBatch(batch.images, batch.index)


def _comparison(change: Change) -> bytes:
    """Clean above adversarial above their difference, around mid grey, unscaled; without text, in milliseconds."""
    before, after = change.before, change.after
    picture = tile(np.concatenate([before, after, 0.5 + (after - before) / 2]), columns=len(before))
    zoom = max(1, 700 // picture.shape[1])
    return encode_png(picture, zoom)


def log_archive(run: CellRun, image_set: ImageSet, name: str) -> None:
    """Log a set to an MLflow run, as an archive of PNG files."""
    with tempfile.TemporaryDirectory() as folder:
        run.log_artifact(image_set.export_tar(Path(folder, name)))


def threat_model_table(threat_model: ThreatModel) -> dg.MarkdownMetadataValue:
    """The assumptions about an attacker, for the UI."""
    rows = "\n".join(f"| {name.replace('_', ' ')} | {value} |" for name, value in vars(threat_model).items())
    return dg.MetadataValue.md(f"| assumption | |\n|---|---|\n{rows}")
