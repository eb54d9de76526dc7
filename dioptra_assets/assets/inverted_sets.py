"""Model inversion: one image per class, reconstructed from the model alone, and how close it comes to the class."""

import dagster as dg

from dioptra_assets.assets.adversarial_sets import log_archive
from dioptra_assets.assets.boundary import cell_asset
from dioptra_assets.assets.cell_context import CellContext, CellResult, every
from dioptra_assets.assets.config_assets import INVERSION_CONFIG, read_attack
from dioptra_assets.assets.models import GPU_POOL
from dioptra_assets.assets.pictures import markdown_table, picture
from dioptra_assets.robustness.image_set import encode_png, tile
from dioptra_assets.robustness.inversion.miface import INVERTED_COLUMNS, ModelInversion, TrainingFacts, invert
from dioptra_assets.robustness.inversion.scores import inversion_table, training_means
from partitions.attacks import attack_document
from partitions.entries import edition
from partitions.experiments import ExperimentSpec
from partitions.keys import ARCHITECTURE, ATTACK
from resources.compute import prepare_device
from resources.image_store import read_image_set, write_image_set
from resources.models import read_model
from resources.tables import write_table

INVERSION_METRIC_COLUMNS = {
    "image_id": "six digits of the class number",
    "label": "class that was inverted, position in the class names",
    "class_name": "its name",
    "confidence": INVERTED_COLUMNS["confidence"],
    "prediction": "class that the inverted model gives the picture",
    "l2_to_class_mean": "L2 distance to the mean training image of the class; pixels span [0, 1]",
    "ssim_to_class_mean": "structural similarity to the mean training image of the class, at most 1",
    "nearest_class_mean": "class whose mean training image is nearest in L2",
    **{name: INVERTED_COLUMNS[name] for name in ("iterations", "stop_reason", "zero_gradient")},
}


def inverted_set_assets(spec: ExperimentSpec) -> list[dg.AssetsDefinition]:
    """`inverted_set` and `inversion_metrics`, by architecture and attack."""
    cells = (ARCHITECTURE, ATTACK)
    return [
        cell_asset(
            spec,
            "inverted_set",
            _invert,
            description="One image per class, found by gradient descent on the model from the start image that the"
            " config declares.",
            dimensions=cells,
            family="inversion",
            deps=[INVERSION_CONFIG, "model", "training_set"],
            kinds={"tensorflow", "numpy"},
            pool=GPU_POOL,
            params=lambda partition: attack_document(spec.inversions[partition[ATTACK]]) | dict(partition),
            seeded=True,
        ),
        cell_asset(
            spec,
            "inversion_metrics",
            _score,
            description="How near each picture comes to its class: confidence, distance and structural similarity to"
            " the mean image of the class, and what the other models of the experiment take it for"
            " (`prediction_ARCHITECTURE`).",
            dimensions=cells,
            family="inversion",
            deps=["inverted_set", "training_set", every(spec, "model")],
            kinds={"pandas"},
            columns=INVERSION_METRIC_COLUMNS,
            pool=GPU_POOL,
            params=dict,
            code_version=edition("1", list(spec.architectures)),
        ),
    ]


def _invert(cell: CellContext) -> CellResult:
    config: ModelInversion = read_attack(cell, cell.cell.partition[ATTACK], "inversion")
    stored_model = cell.read("model", **{ARCHITECTURE: cell.cell.partition[ARCHITECTURE]})
    training_set = read_image_set(cell.read("training_set"))
    device = prepare_device()
    seed = config.seed if config.seed is not None else cell.seed
    inverted = invert(
        config,
        read_model(stored_model),
        TrainingFacts(
            training_set.image_shape,
            training_set.class_names,
            training_means(training_set)[0] if config.start == "mean" else None,
        ),
        seed=seed,
        name=str(cell.cell),
        progress=cell.progress("inverted"),
    )
    stored = write_image_set(
        cell.destination,
        inverted.batches(),
        n=len(inverted),
        image_shape=inverted.image_shape,
        class_names=inverted.class_names,
        attributes={
            "attack": attack_document(config),
            "seed": seed,
            "model_version": stored_model.manifest.data_version,
        },
    )
    with cell.mlflow_run() as run:
        if run and cell.spec.log_sets:
            log_archive(run, read_image_set(stored), f"testing_adversarial_{config.method}.tar.gz")
    grid = tile(inverted.to_numpy()[0], columns=min(10, len(inverted)))
    zoom = max(1, 700 // grid.shape[1])
    return CellResult(
        stored,
        {
            "pictures": picture(encode_png(grid, zoom), f"inverted: {cell.cell}"),
            "classes": dg.MetadataValue.md(markdown_table(inverted.index.round(4))),
            "device": device,
            "seed": seed,
        },
        {
            "n": len(inverted),
            "lowest confidence": float(inverted.index["confidence"].min()),
            "mean iterations": float(inverted.index["iterations"].mean()),
            "images without gradient": float(inverted.index["zero_gradient"].sum()),
        },
        tags={"device": device, "seed": str(seed)},
    )


def _score(cell: CellContext) -> CellResult:
    own = cell.cell.partition[ARCHITECTURE]
    inverted = read_image_set(cell.read("inverted_set", **cell.cell.partition))
    _, class_means = training_means(read_image_set(cell.read("training_set")))
    others, missing = cell.present("model", [{ARCHITECTURE: key} for key in cell.architectures() if key != own])
    prepare_device()
    table = inversion_table(
        inverted,
        class_means,
        read_model(cell.read("model", **{ARCHITECTURE: own})),
        {model.cell.partition[ARCHITECTURE]: read_model(model) for model in others},
    )
    stored = write_table(cell.destination, table, attributes={"missing": missing})
    metrics = {
        "lowest confidence": float(table["confidence"].min()),
        "mean confidence": float(table["confidence"].mean()),
        "mean ssim": float(table["ssim_to_class_mean"].mean()),
        "mean l2": float(table["l2_to_class_mean"].mean()),
    }
    for model in others:
        other = model.cell.partition[ARCHITECTURE]
        metrics[f"agreement of {other}"] = float((table[f"prediction_{other}"] == table["label"]).mean())
    metadata: dict[str, object] = {"scores": dg.MetadataValue.md(markdown_table(table.round(3)))}
    if missing:
        metadata["missing"] = dg.MetadataValue.text(f"not asked, because not materialized: {', '.join(missing)}")
    return CellResult(stored, metadata, metrics)
