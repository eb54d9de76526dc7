"""The image sets that an experiment starts from."""

import hashlib
from collections.abc import Iterator, Mapping

import dagster as dg
import numpy as np

from dioptra_assets.assets.boundary import cell_asset
from dioptra_assets.assets.cell_context import CellContext, CellResult, asset_key
from dioptra_assets.assets.pictures import as_text, picture
from dioptra_assets.robustness.data import Split
from dioptra_assets.robustness.image_set import ImageBatch, ImageSet, encode_png, enlarged
from partitions.entries import config_hash
from partitions.experiments import ExperimentSpec
from resources.image_store import read_image_set, write_image_set

BATCH_SIZE = 1024
CHECK = "shares_no_image"
NAMED = 10  # images in both, in the sentence of the check


def dataset_assets(spec: ExperimentSpec) -> list[dg.AssetsDefinition]:
    """`testing_set` and, if anything is trained, `training_set`, from the data source."""
    facts = spec.source.model_dump(mode="json")
    source = facts["source"]
    # Another source, or another parameter of it, makes the sets stale.
    code_version = config_hash(facts)[:12]

    def dataset(split: Split, purpose: str) -> dg.AssetsDefinition:
        return cell_asset(
            spec,
            f"{split}_set",
            lambda cell: _store(cell, split),
            description=f"The {split} images of `{source}`, {purpose}: float32 in [0, 1], with ids and labels.",
            kinds={"numpy"},
            params=lambda _: facts,
            code_version=code_version,
            checks=[_check_spec(spec, split)] if spec.trains else [],
        )

    testing = dataset("testing", "which models are attacked and evaluated on")
    return [dataset("training", "which models are fitted on"), testing] if spec.trains else [testing]


def _check_spec(spec: ExperimentSpec, split: Split) -> dg.AssetCheckSpec:
    return dg.AssetCheckSpec(
        CHECK,
        asset=asset_key(spec, f"{split}_set"),
        description="No image is in both the training set and the testing set, compared pixel by pixel.",
    )


def _store(cell: CellContext, split: Split) -> CellResult:
    image_set = cell.spec.source.load(split)
    seen: dict[bytes, str] = {}
    stored = write_image_set(
        cell.destination,
        _fingerprinted(image_set, seen),
        n=len(image_set),
        image_shape=image_set.image_shape,
        class_names=image_set.class_names,
    )
    checks = _no_image_in_both(cell, split, seen) if cell.spec.trains else []
    return CellResult(stored, image_set_metadata(read_image_set(stored)), {"n": len(image_set)}, checks=checks)


def _fingerprinted(image_set: ImageSet, seen: dict[bytes, str]) -> Iterator[ImageBatch]:
    """The images of a set, with a record of the digest of each image's pixels."""
    for batch in image_set.batches(BATCH_SIZE):
        for image, image_id in zip(np.ascontiguousarray(batch.images), batch.index["image_id"], strict=True):
            seen[hashlib.blake2b(image.tobytes(), digest_size=16).digest()] = str(image_id)
        yield batch


def _no_image_in_both(cell: CellContext, split: Split, seen: Mapping[bytes, str]) -> list[dg.AssetCheckResult]:
    """Check whether images of one split are in the other, if that exists. The split made second judges both."""
    other: Split = "testing" if split == "training" else "training"
    stored = cell.store.find(cell.input_cell(f"{other}_set"))
    if stored is None:
        return [_result(cell, split, 0, f"The {other} set is not there yet: it looks when it comes.")]
    found: dict[bytes, str] = {}
    for _ in _fingerprinted(read_image_set(stored), found):
        pass
    both = sorted(image_id for digest, image_id in found.items() if digest in seen)
    said = f"None of the {len(found):,} images of the {other} set is in the {split} set."
    if both:
        names = ", ".join(both[:NAMED]) + (f" and {len(both) - NAMED:,} more" if len(both) > NAMED else "")
        said = (
            f"{len(both):,} of the {len(found):,} images of the {other} set are in the {split} set too: {names}. Take"
            " them out of one, accuracy on them says nothing."
        )
    cell.report(_result(cell, other, len(both), said))
    return [_result(cell, split, len(both), said)]


def _result(cell: CellContext, split: Split, both: int, said: str) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        passed=not both,
        asset_key=asset_key(cell.spec, f"{split}_set"),
        check_name=CHECK,
        description=said,
        metadata={"images in both": both},
    )


def image_set_metadata(image_set: ImageSet) -> dict[str, object]:
    """What the UI shows for a set: a grid of images, the image size and the classes."""
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
