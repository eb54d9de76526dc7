"""The branch of registered models: what anyone put into the MLflow registry, attacked and gated like our own.

Why: docs/decisions/0019-the-branch-of-registered-models.md
"""

import tempfile
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd

from dioptra_assets.assets.adversarial_sets import adversarial_set_asset
from dioptra_assets.assets.boundary import cell_asset
from dioptra_assets.assets.cell_context import CellContext, CellResult, asset_key
from dioptra_assets.assets.check_events import partitioned_check
from dioptra_assets.assets.gates import gate_assets
from dioptra_assets.assets.metric_tables import metric_table_assets
from dioptra_assets.assets.models import GPU_POOL, clean_predictions_asset
from dioptra_assets.assets.pictures import picture
from dioptra_assets.assets.sanity import model_sanity_asset
from dioptra_assets.robustness.errors import NonFiniteError
from dioptra_assets.robustness.evaluation.examples import NO_DEFENCE
from dioptra_assets.robustness.evaluation.metrics import METRIC_COLUMNS
from dioptra_assets.robustness.image_set import ImageSet
from partitions.definitions import partitions_of
from partitions.experiments import BRANCH, ExperimentSpec, branch_of
from partitions.keys import ARCHITECTURE, ATTACK
from resources.compute import prepare_device
from resources.image_store import read_image_set
from resources.models import MODEL, write_model
from resources.store import Cell, CellStore, MissingCellError, StoredCell
from resources.tables import read_table, write_table
from resources.tracking.client import file_sha256
from resources.tracking.resource import ModelRefused

# Each of these blocks: what fails one is not attacked.
CHECKS = {
    "loads_without_code": "The version is one .keras file of built-in layers, and nothing in it is code.",
    "takes_these_images": "It takes images of the size and channels of the testing set.",
    "gives_logits": "It gives one finite logit for each class, and does not end in a softmax.",
    "takes_pixels_from_0_to_1": "It does no better with pixels from 0 to 255: normalization is a layer of the model.",
}
LOOKED_AT = 256  # testing images that the range is judged on
SEPARATOR = "@"
VERSIONS = f"{BRANCH}/versions"
RATES = [f"{rate}{end}" for rate in ("clean_accuracy", "robust_accuracy") for end in ("", "_low", "_high")]
VERSION_COLUMNS = {
    "name": "registered model",
    "version": "its version in the registry",
    "registered": "when it was registered, UTC",
    "attack": "attack config",
    **{name: METRIC_COLUMNS[name] for name in ("n", *RATES)},
}


def version_key(name: str, version: str | int) -> str:
    """The partition key of a version: `team_le_net@3`."""
    return f"{name}{SEPARATOR}{version}"


def registered_model_assets(spec: ExperimentSpec) -> list[dg.AssetsDefinition]:
    """The branch `registered_model/...` of an experiment that watches the registry."""
    branch = branch_of(spec)
    model = cell_asset(
        branch,
        "model",
        _fetch,
        description="A version of a registered model, copied from MLflow without running any code it contains.",
        dimensions=(ARCHITECTURE,),
        deps=["testing_set"],
        kinds={"mlflow", "tensorflow"},
        pool=GPU_POOL,
        params=dict,
        checks=[
            partitioned_check(
                name,
                asset=asset_key(branch, "model"),
                description=description,
                blocking=True,
                partitions_def=partitions_of(branch, (ARCHITECTURE,)),
            )
            for name, description in CHECKS.items()
        ],
    )
    return [
        model,
        clean_predictions_asset(branch),
        adversarial_set_asset(branch),
        *metric_table_assets(branch),
        model_sanity_asset(branch),
        *gate_assets(branch),
        cell_asset(
            branch,
            VERSIONS,
            _versions,
            description="Clean and robust accuracy of every registered version that has been attacked, over time.",
            deps=["evasion_metrics"],
            kinds={"pandas"},
            columns=VERSION_COLUMNS,
        ),
    ]


def version_table(
    store: CellStore,
    experiment: str,
    attacks: Iterable[str] | None = None,
    versions: Collection[str] | None = None,
) -> pd.DataFrame:
    """Every registered version that an experiment has attacked, by name, version and attack.

    Args:
        store: where the cells are.
        experiment: its name.
        attacks: the attack keys that count, in this order; None for all there are.
        versions: the versions that count; None for all that have been attacked.

    Returns:
        Rows of `VERSION_COLUMNS`; each version is judged on the images that it was attacked on itself.
    """
    rows, dates = [], {}
    order = None if attacks is None else {key: number for number, key in enumerate(attacks)}
    asset = f"{experiment}/{BRANCH}/evasion_metrics"
    for cell in (cell for cell in store.cells(asset) if cell.asset == asset):
        version, attack = cell.partition[ARCHITECTURE], cell.partition[ATTACK]
        if (order is not None and attack not in order) or (versions is not None and version not in versions):
            continue
        stored = store.open(cell)
        if version not in dates:
            dates[version] = _registered(store, experiment, version)
        table = read_table(stored)
        own = table[(table["target"] == version) & (table["defence"] == NO_DEFENCE)]
        name, _, number = version.rpartition(SEPARATOR)
        facts = {"name": name, "version": int(number), "registered": dates[version], "attack": attack}
        rows += [facts | {column: row[column] for column in ("n", *RATES)} for _, row in own.iterrows()]
    table = pd.DataFrame(rows, columns=[*VERSION_COLUMNS])
    places = table["attack"] if order is None else table["attack"].map(order)
    ordered = table.assign(place=places).sort_values(["name", "version", "place"], kind="stable")
    return ordered.drop(columns="place").reset_index(drop=True)


def _registered(store: CellStore, experiment: str, version: str) -> pd.Timestamp:
    """When a version was registered; of one fetched before that was written down, when it was first fetched."""
    manifest = store.open(Cell(f"{experiment}/{BRANCH}/model", {ARCHITECTURE: version})).manifest
    return pd.Timestamp(manifest.attributes.get("registered", manifest.created)).tz_convert("UTC").as_unit("ms")


def _versions(cell: CellContext) -> CellResult:
    from dioptra_assets.robustness.reporting.version_plots import version_curves

    table = version_table(cell.store, cell.spec.name, cell.spec.attacks, cell.versions())
    if table.empty:
        raise MissingCellError(f"{cell.cell}: no registered model has been attacked yet")
    stored = write_table(cell.destination, table)
    curves = picture(version_curves(table), "clean and robust accuracy of each version")
    return CellResult(
        stored, {"versions over time": curves}, {"versions": len(table.drop_duplicates(["name", "version"]))}
    )


def _fetch(cell: CellContext) -> CellResult:
    from dioptra_assets.robustness.model_files.files import UnsafeModelError, load_model
    from dioptra_assets.robustness.model_files.trial import try_model

    key = cell.cell.partition[ARCHITECTURE]
    name, _, version = key.rpartition(SEPARATOR)
    registered = cell.registry.registered_version(name, version).creation_timestamp
    testing_set = read_image_set(cell.read("testing_set"))
    found: dict[str, str] = {}  # check -> why it failed
    digest = ""
    stored: StoredCell | None = None
    model: Any = None
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = cell.registry.fetch_any_model(name, version, Path(folder))
            digest = file_sha256(path)
            with ThreadPoolExecutor(1) as aside:
                known = _loaded_before(cell, digest)
                trial = None if known else aside.submit(try_model, path, digest, testing_set.image_shape)
                prepare_device()  # which takes as long, where TensorFlow is not loaded yet
                if trial:
                    trial.result()
            model = load_model(path)
        except (UnsafeModelError, ModelRefused) as error:
            found["loads_without_code"] = str(error).replace(f"{folder}/", "")
    if model is not None:
        try:
            found |= _faults(model, testing_set)
        except Exception as error:  # noqa: BLE001 - whatever a stranger's model ends in is said of the model
            said = str(error).strip().partition("\n")[0][:300]
            found["takes_these_images"] = f"its first call failed: {type(error).__name__}: {said}"
    if model is not None and not found:
        facts = {
            "architecture": name,
            "version": version,
            "registered": datetime.fromtimestamp(registered / 1000, UTC).isoformat(timespec="milliseconds"),
            "sha256": digest,
            "parameters": int(model.count_params()),
            "image_shape": list(testing_set.image_shape),
            "class_names": list(testing_set.class_names),
        }
        try:
            stored = write_model(cell.destination, model, pd.DataFrame(), attributes=facts)
        except NonFiniteError as error:
            found["gives_logits"] = str(error)
    metadata = {"registered model": f"{name} version {version}", "sha256": digest, "device": prepare_device()}
    return CellResult(stored, metadata, checks=[_check(cell, check, found.get(check), model) for check in CHECKS])


def _loaded_before(cell: CellContext, digest: str) -> bool:
    """Whether a file is, byte for byte, a model of this experiment, or what this version held when it was fetched."""
    fetched = cell.store.find(cell.cell)
    if fetched and fetched.manifest.attributes.get("sha256") == digest:
        return True
    own = f"{cell.spec.name}/model"
    cells = [one for one in cell.store.cells(own) if one.asset == own]
    return any(digest == one.manifest.files[MODEL].sha256 for one in cell.store.found(cells).values())


def _faults(model: Any, images: ImageSet) -> dict[str, str]:
    """Check -> why a model cannot be evaluated on these images; empty where it can."""
    from dioptra_assets.robustness.evaluation.predictions import logits_of

    shape, classes = tuple(images.image_shape), len(images.class_names)
    takes = tuple(model.input_shape) if isinstance(model.input_shape, tuple) else ()
    if len(takes) != 4 or any(size not in (None, want) for size, want in zip(takes[1:], shape, strict=True)):
        return {"takes_these_images": f"it takes images of {takes[1:] or model.input_shape}, these are {shape}"}
    gives = tuple(model.output_shape) if isinstance(model.output_shape, tuple) else ()
    if len(gives) != 2 or gives[1] != classes:
        return {
            "gives_logits": f"it gives {gives[1:] or model.output_shape} numbers per image, expected {classes} logits"
        }
    pixels, labels = images.images(np.arange(min(LOOKED_AT, len(images)))), images.labels[:LOOKED_AT]
    logits = logits_of(model, pixels)
    if not np.isfinite(logits).all():
        return {"gives_logits": "it gives numbers that are not finite"}
    if (logits >= 0).all() and np.allclose(logits.sum(axis=1), 1, atol=1e-3):
        return {"gives_logits": "it gives probabilities: leave the softmax out, a saturated one has no gradient"}
    right = float((logits.argmax(axis=1) == labels).mean())
    stretched = float((logits_of(model, 255 * pixels).argmax(axis=1) == labels).mean())
    # Twice the standard error of a difference of two rates of so many images is at most 0.09.
    if stretched > right + 0.1:
        return {
            "takes_pixels_from_0_to_1": f"of {len(labels)} images it gets {right:.1%} right with pixels in [0, 1] and"
            f" {stretched:.1%} with pixels in [0, 255]: put `keras.layers.Rescaling(255)` in front of it"
        }
    return {}


def _check(cell: CellContext, name: str, fault: str | None, model: Any) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        passed=fault is None and (model is not None or name == "loads_without_code"),
        asset_key=asset_key(cell.spec, "model"),
        check_name=name,
        description=fault or (CHECKS[name] if model is not None else "Not looked at: it was not loaded."),
    )
