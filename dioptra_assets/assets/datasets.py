"""The image sets that an experiment starts from."""

from typing import Literal

import dagster as dg

from dioptra_assets.assets.cells import CellContext, CellResult, cell_asset
from dioptra_assets.assets.pictures import as_text, picture
from dioptra_assets.robustness.image_set import ImageSet, encode_png, enlarged
from partitions.configs import config_hash
from partitions.experiments import ExperimentSpec
from resources.image_store import read_image_set, write_image_set

BATCH_SIZE = 1024


def dataset_assets(spec: ExperimentSpec) -> list[dg.AssetsDefinition]:
    """`training_set`, where anything is trained, and `testing_set`, from the data source."""
    facts = spec.source.model_dump(mode="json")
    source = facts["source"]
    # Another source, or another parameter of it, makes the sets stale.
    code_version = config_hash(facts)[:12]

    def dataset(split: Literal["training", "testing"], purpose: str) -> dg.AssetsDefinition:
        return cell_asset(
            spec,
            f"{split}_set",
            lambda cell: _store(cell, split),
            description=f"The {split} images of `{source}`, {purpose}: float32 in [0, 1], with ids and labels.",
            kinds={"numpy"},
            params=lambda _: facts,
            code_version=code_version,
        )

    testing = dataset("testing", "which models are attacked and evaluated on")
    return [dataset("training", "which models are fitted on"), testing] if spec.trains else [testing]


def _store(cell: CellContext, split: Literal["training", "testing"]) -> CellResult:
    image_set = cell.spec.source.load(split)
    stored = write_image_set(
        cell.store,
        cell.cell,
        image_set.batches(BATCH_SIZE),
        n=len(image_set),
        image_shape=image_set.image_shape,
        class_names=image_set.class_names,
        **cell.publishing,
    )
    return CellResult(stored, image_set_metadata(read_image_set(stored)), {"n": len(image_set)})


def image_set_metadata(image_set: ImageSet) -> dict[str, object]:
    """What the UI shows of a set: a grid of its images, its size and its classes."""
    height, width, channels = image_set.image_shape
    counts = image_set.index["label"].value_counts().sort_index()
    classes = "\n".join(
        f"| {as_text(image_set.class_names[int(str(label))])} | {count:,} |" for label, count in counts.items()
    )
    return {
        "images": picture(
            encode_png(enlarged(image_set.grid(), height)), f"the first images of each class of {image_set.name}"
        ),
        "image size": f"{height} x {width} x {channels}",
        "classes": dg.MetadataValue.md(f"| class | images |\n|---|---|\n{classes}"),
    }
