"""Models, and what each predicts on the untouched testing set."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import dagster as dg

from dioptra_assets.assets.boundary import cell_asset
from dioptra_assets.assets.cell_context import CellContext, CellResult
from dioptra_assets.assets.config_assets import ARCHITECTURE_CONFIG, read_recipe
from dioptra_assets.assets.pictures import picture
from dioptra_assets.robustness.image_set import ImageSet
from dioptra_assets.robustness.training.loop import TrainedModel, TrainingRecipe
from partitions.experiments import ExperimentSpec
from partitions.keys import ARCHITECTURE
from resources.compute import prepare_device
from resources.image_store import read_image_set, read_often
from resources.models import MODEL, read_model, write_model
from resources.store import StoredCell
from resources.tables import read_table, write_table
from resources.tracking.resource import CellRun, registered_name

GPU_POOL = "gpu"
Trainer = Callable[..., TrainedModel]
CLEAN_PREDICTION_COLUMNS = {
    "image_id": "image of the testing set",
    "label": "its true class, position in the class names",
    "prediction": "class of the largest logit",
    "confidence": "softmax of the predicted class, in [0, 1]",
    "margin": "logit of the true class less the largest other logit; negative where the image is classified wrong",
    "probabilities": "softmax of every class; left out above 100 classes",
}


def model_assets(spec: ExperimentSpec) -> list[dg.AssetsDefinition]:
    """`model` and `clean_predictions`, by architecture."""
    return [
        cell_asset(
            spec,
            "model",
            _train,
            description="A trained classifier from pixels in [0, 1] to logits, normalisation included. Its version is"
            " the hash of its weights.",
            dimensions=(ARCHITECTURE,),
            deps=[ARCHITECTURE_CONFIG, _images_of_models(spec)],
            kinds={"tensorflow"},
            pool=GPU_POOL,
            params=lambda partition: spec.architectures[partition[ARCHITECTURE]].model_dump(mode="json"),
            seeded=True,
        ),
        clean_predictions_asset(spec),
    ]


def clean_predictions_asset(spec: ExperimentSpec) -> dg.AssetsDefinition:
    """`clean_predictions`, by architecture."""
    return cell_asset(
        spec,
        "clean_predictions",
        _predict,
        description="Predictions of each model on every clean testing image. Computed once per model: every attack on"
        " it and every transfer to it is measured against these.",
        dimensions=(ARCHITECTURE,),
        deps=["model", "testing_set"],
        kinds={"pandas"},
        columns=CLEAN_PREDICTION_COLUMNS,
        pool=GPU_POOL,
        params=dict,
        reusable={"model": (ARCHITECTURE,), "testing_set": ()},
    )


def _images_of_models(spec: ExperimentSpec) -> str:
    """The asset that models are fitted on, or, where nothing is trained, that tells their image size and classes."""
    return "training_set" if spec.trains else "testing_set"


def _train(cell: CellContext) -> CellResult:
    recipe = read_recipe(cell, cell.cell.partition[ARCHITECTURE])
    if not cell.spec.trains:
        # Testing images are not to be split: no row of them is trained on or validated on.
        recipe = recipe.model_copy(update={"validation_split": 0.0, "early_stopping": None})
    # A key that carries its config, `le_net@epochs=3`, is registered under the name before it.
    name = registered_name(cell.spec.name, recipe.model_tag, cell.cell.partition[ARCHITECTURE].partition("@")[0])
    images = read_image_set(cell.read(_images_of_models(cell.spec)))
    return train_model(cell, recipe, images, register_as=name if recipe.register_model else None)


def train_model(
    cell: CellContext,
    recipe: TrainingRecipe,
    training_set: ImageSet,
    *,
    trainer: Trainer | None = None,
    register_as: str | None = None,
) -> CellResult:
    """Train the model of a cell, store it and show how it went.

    Args:
        cell: a cell of an architecture, or of an architecture and an attack.
        recipe: how.
        training_set: on what; with `epochs: 0`, images of the same size and classes.
        trainer: another training loop than `training.train`.
        register_as: name of the registered model in MLflow; None registers none.
    """
    from dioptra_assets.robustness.reporting.plots import loss_curves
    from dioptra_assets.robustness.training.loop import train

    device = prepare_device()
    trained = (trainer or train)(
        recipe,
        training_set,
        seed=cell.seed,
        progress=lambda message: cell.log(f"{cell.cell}: {message}"),
        batches=cell.epochs,
    )
    facts = {
        "architecture": recipe.architecture,
        "parameters": int(trained.model.count_params()),
        "image_shape": list(training_set.image_shape),
        "class_names": list(training_set.class_names),
        "seed": trained.seed,
        "epochs": len(trained.history),
        "training_images": trained.training_rows if recipe.epochs else 0,
        "validation_images": trained.validation_rows,
    }
    stored = write_model(cell.destination, trained.model, trained.history, attributes=facts)
    metrics: dict[str, float] = {}
    metadata: dict[str, object] = {"device": device, **{name: facts[name] for name in ("parameters", "seed", "epochs")}}
    if len(trained.history):
        last = trained.history.iloc[-1]
        metrics = {str(name): float(last[name]) for name in trained.history.columns if name != "epoch"}
        metadata["loss curves"] = picture(loss_curves(trained.history), f"loss and accuracy of {cell.cell} by epoch")
    with cell.mlflow_run() as run:
        if run:
            # The last epoch is logged with the metrics of the cell.
            run.log_history(trained.history.iloc[:-1])
            if register_as:
                version = _register(run, register_as, stored.read(MODEL), cell)
                metadata["registered model"] = f"{register_as} version {version}"
    tags = {"device": device, "seed": str(trained.seed)}
    return CellResult(stored, metadata, metrics, step=len(trained.history), tags=tags)


def _register(run: CellRun, name: str, content: bytes, cell: CellContext) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, MODEL)
        path.write_bytes(content)
        return run.register_model(name, path, {"asset": cell.cell.asset, **cell.cell.partition})


def _predict(cell: CellContext) -> CellResult:
    return predict_set(cell, cell.read("model", **cell.cell.partition), read_often(cell.read("testing_set")))


def predict_set(cell: CellContext, stored_model: StoredCell, image_set: ImageSet) -> CellResult:
    """Store what a model says of every image of a set, with its confusion matrix."""
    from sklearn.metrics import confusion_matrix as count_confusions

    from dioptra_assets.robustness.evaluation.predictions import predict
    from dioptra_assets.robustness.reporting.plots import confusion_matrix

    if cell.twin:
        predictions = read_table(cell.twin)
    else:
        prepare_device()
        predictions = predict(read_model(stored_model), image_set)
    stored = write_table(cell.destination, predictions, attributes=cell.facts)
    confusions = count_confusions(
        predictions["label"], predictions["prediction"], labels=range(len(image_set.class_names))
    )
    return CellResult(
        stored,
        {
            "confusion matrix": picture(
                confusion_matrix(confusions, image_set.class_names), f"confusions of {cell.cell}"
            )
        },
        {
            "accuracy": float((predictions["prediction"] == predictions["label"]).mean()),
            "mean confidence": float(predictions["confidence"].mean()),
            "n": len(predictions),
        },
    )
