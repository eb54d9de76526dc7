"""Training a model from a recipe, the same bytes each time on a CPU."""

import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, model_validator

from dioptra_assets.robustness.data.base import DATA_VARIABLE
from dioptra_assets.robustness.errors import NonFiniteError
from dioptra_assets.robustness.image_set import ImageSet
from dioptra_assets.robustness.seeds import derive_seed
from dioptra_assets.robustness.training.architectures import (
    ARCHITECTURES,
    IMAGENET_CLASSES,
    IMAGENET_SHAPE,
    ImageShape,
    build,
    check_fits,
)
from dioptra_assets.robustness.training.madry import (
    MadryTraining,
    adversarial_training,
    robust_validation,
    validation_sample,
)

if TYPE_CHECKING:
    import keras

# Rows are shuffled within windows of this size: a smaller set is one window and shuffled as a whole.
WINDOW_BYTES = 1 << 30
BLOCK_BYTES = 4 << 20
PROGRESS_SECONDS = 10.0


class TrainingRecipe(BaseModel):
    """How one model is made; an architecture key names one of these."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    architecture: str = Field(description="The network: shallow_net, le_net, alex_net, resnet50 or vgg16.")
    epochs: float = Field(
        default=30.0,
        ge=0,
        le=10_000,
        description="Passes over the training rows; 2.5 stops in the middle of the third, 0 trains nothing.",
    )
    batch_size: int = Field(default=32, ge=1, le=65_536, description="Images in a training step.")
    learning_rate: float = Field(default=0.001, gt=0, le=10, description="Of the optimizer, at the start.")
    optimizer: Literal["rmsprop", "adam", "adagrad", "sgd"] = Field(default="adam", description="The optimizer.")
    validation_split: float = Field(
        default=0.2, ge=0, lt=1, description="Share of the training set held out for validation, stratified by class."
    )
    early_stopping: int | None = Field(
        default=None,
        ge=1,
        description="Stop when the validation loss (with madry: that of the attacked images) has not fallen for so many"
        " epochs, and go back to the best one.",
    )
    madry: MadryTraining | None = Field(
        default=None, description="Adversarial training after Madry et al. Left out: training on the images themselves."
    )
    weights: str | None = Field(
        default=None,
        description="Where training starts: `imagenet` (resnet50, vgg16), a .keras, .weights.h5 or .h5 file. A relative"
        " path is looked for in the working directory, then in the folder that DIOPTRA_ASSETS_DATA names.",
    )
    seed: int | None = Field(
        default=None,
        ge=0,
        lt=2**31,
        description="Left out: derived from the experiment's seed and the architecture key.",
    )
    model_tag: str = Field(
        default="",
        pattern=r"^[A-Za-z0-9_.-]{0,50}$",
        description="Stands in the name of the registered model, `{experiment}_{model_tag}_{architecture}`.",
    )
    register_model: bool = Field(default=True, description="Register the model in MLflow.")

    @model_validator(mode="after")
    def _consistent(self) -> "TrainingRecipe":
        if self.architecture not in ARCHITECTURES:
            allowed = ", ".join(ARCHITECTURES)
            raise ValueError(f"architecture {self.architecture!r} is not allowed, it must be one of {allowed}")
        if self.early_stopping and not self.validation_split:
            raise ValueError("early_stopping needs a validation_split above 0")
        if self.weights == "imagenet" and not ARCHITECTURES[self.architecture].pretrained:
            raise ValueError(f"weights 'imagenet' are not allowed for {self.architecture}, only for resnet50 and vgg16")
        return self

    def check_fits(self, image_shape: ImageShape, class_count: int | None) -> None:
        """Refuse images or a number of classes that this recipe cannot be used on.

        Raises:
            ValueError: saying what was given and what is allowed.
        """
        check_fits(self.architecture, image_shape)
        if self.weights == "imagenet":
            if image_shape != IMAGENET_SHAPE:
                raise ValueError(f"weights 'imagenet' take images of 224 x 224 x 3, these are {image_shape}")
            if class_count not in (None, IMAGENET_CLASSES):
                raise ValueError(f"weights 'imagenet' have {IMAGENET_CLASSES} classes, the data have {class_count}")


@dataclass(frozen=True)
class TrainedModel:
    """A model and how it came to be.

    Attributes:
        model: takes pixels in [0, 1], gives logits.
        history: one row per epoch: epoch, loss, accuracy and, with a validation split, val_loss and val_accuracy. With
            madry, loss and accuracy are those of the adversarial images trained on, and a validation split also gives
            val_robust_loss and val_robust_accuracy, of up to 1,000 of its rows under the same attack.
        seed: the seed that was used.
        training_rows: number of images trained on.
        validation_rows: number of images held out.
    """

    model: "keras.Model"
    history: pd.DataFrame
    seed: int
    training_rows: int
    validation_rows: int


def train(
    recipe: TrainingRecipe,
    training_set: ImageSet,
    *,
    seed: int,
    progress: Callable[[str], None] = lambda message: None,
    batches: Callable[[float, str], None] | None = None,
) -> TrainedModel:
    """Train one model.

    Args:
        recipe: the architecture and its parameters.
        training_set: the images; the validation rows are taken from them. Where its index has the column `split`
            (`training` or `validation`), that says which rows are held out, and not the recipe's `validation_split`.
        seed: used unless the recipe has its own.
        progress: gets a line at each epoch's end and every ten seconds.
        batches: called after each batch with the share that is done, in [0, 1], and the epoch, `epoch 2 of 10`.

    Raises:
        ValueError: when the recipe does not fit the images, or a class is too small to be split.
        NonFiniteError: when the loss is no longer finite.
    """
    import keras
    import tensorflow as tf

    seed = recipe.seed if recipe.seed is not None else seed
    recipe.check_fits(training_set.image_shape, len(training_set.class_names))
    tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(seed)
    model = initial_model(recipe, training_set.image_shape, len(training_set.class_names))
    training_rows, validation_rows = split_rows(training_set, recipe.validation_split, seed)
    model.compile(
        optimizer=keras.optimizers.get(
            {"class_name": recipe.optimizer, "config": {"learning_rate": recipe.learning_rate}}
        ),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[keras.metrics.SparseCategoricalAccuracy(name="accuracy")],
    )
    # A step that makes its variables when it is traced is traced twice.
    cast(Any, model.optimizer).build(model.trainable_variables)
    steps = math.ceil(len(training_rows) / recipe.batch_size)
    whole_epochs = int(recipe.epochs)
    last_steps = round((recipe.epochs - whole_epochs) * steps)
    callbacks = [
        _progress_callback(steps, math.ceil(recipe.epochs), progress, batches),
        keras.callbacks.TerminateOnNaN(),
    ]
    if recipe.madry and len(validation_rows):
        sample = validation_sample(validation_rows, training_set.image_shape)
        attacked, labels = training_set.images(sample), training_set.labels[sample]
        callbacks.insert(0, robust_validation(recipe.madry, model, attacked, labels, seed))
    if recipe.early_stopping:
        callbacks.append(
            keras.callbacks.EarlyStopping(
                monitor="val_robust_loss" if recipe.madry else "val_loss",
                mode="min",
                patience=recipe.early_stopping,
                restore_best_weights=True,
            )
        )
    rows: list[dict[str, float]] = []
    stages = [(0, whole_epochs, steps), (whole_epochs, whole_epochs + 1, last_steps)]
    with adversarial_training(recipe.madry, model, derive_seed(seed, "random starts")):
        for stage, (first, last, steps_per_epoch) in enumerate(stages):
            if last == first or steps_per_epoch == 0 or model.stop_training:
                continue
            # Keras reads ahead, so each call of fit has a stream of its own.
            generator = np.random.default_rng([seed, stage])
            fitted = model.fit(
                training_batches(training_set, training_rows, recipe.batch_size, generator),
                initial_epoch=first,
                epochs=last,
                steps_per_epoch=steps_per_epoch,
                validation_data=_validation_batches(training_set, validation_rows) if len(validation_rows) else None,
                shuffle=False,
                validation_steps=math.ceil(len(validation_rows) / 256) if len(validation_rows) else None,
                callbacks=callbacks,
                verbose=cast(Any, 0),
            )
            history = cast(dict[str, list[float]], fitted.history)
            rows += [dict(zip(history, values, strict=True)) for values in zip(*history.values(), strict=True)]
    table = pd.DataFrame(rows) if rows else pd.DataFrame({"loss": [], "accuracy": []})
    table.insert(0, "epoch", np.arange(1, len(table) + 1))
    if not np.isfinite(table["loss"].to_numpy(np.float64)).all():
        raise NonFiniteError(
            f"{recipe.architecture}: the loss became non-finite in epoch {len(table)}; a lower learning_rate than"
            f" {recipe.learning_rate} may help"
        )
    return TrainedModel(model, table, seed, len(training_rows), len(validation_rows))


def initial_model(recipe: TrainingRecipe, image_shape: ImageShape, class_count: int) -> "keras.Model":
    """The model of a recipe before any training, with the weights it starts from."""
    from keras import applications

    from dioptra_assets.robustness.model_files.files import load_weights
    from dioptra_assets.robustness.model_files.trial import try_to_read

    model = build(recipe.architecture, image_shape, class_count)
    if recipe.weights == "imagenet":
        application = {"resnet50": applications.ResNet50, "vgg16": applications.VGG16}[recipe.architecture]
        try:
            pretrained = application(weights="imagenet", classifier_activation=cast(Any, None))
        except Exception as error:
            raise ValueError(
                f"the ImageNet weights of {recipe.architecture} could not be fetched ({error}); give the path of a"
                " downloaded weights file as `weights`"
            ) from error
        model.layers[-1].set_weights(pretrained.get_weights())
    elif recipe.weights:
        path = _weights_file(Path(recipe.weights).expanduser())
        try_to_read(path)
        load_weights(model, path)
    return model


def _weights_file(path: Path) -> Path:
    """A path as it is written, or below the data folder: so a file by name alone can stand in a partition key."""
    data = os.environ.get(DATA_VARIABLE)
    candidates = [path, *([Path(data).expanduser() / path] if data else [])]
    found = next((candidate for candidate in candidates if candidate.is_file()), None)
    if found is None:
        looked = " and ".join(str(candidate) for candidate in dict.fromkeys(candidates))
        raise ValueError(f"weights {str(path)!r}: there is no such file, looked for {looked}")
    return found


def split_rows(training_set: ImageSet, validation_split: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Row positions to train on and to validate on, each ascending: stratified by class and seeded.

    A set whose index has the column `split` was split before, and says itself.

    Raises:
        ValueError: when a class has too few images to stand on both sides.
    """
    if "split" not in training_set.index:
        return split_labels(training_set.labels, validation_split, seed, training_set.name)
    split = training_set.index["split"].to_numpy()
    return np.flatnonzero(split == "training"), np.flatnonzero(split == "validation")


def split_labels(labels: np.ndarray, validation_split: float, seed: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The same, of rows with the labels int64 [n] of a set of that name."""
    rows = np.arange(len(labels))
    if not validation_split:
        return rows, rows[:0]
    from sklearn.model_selection import train_test_split

    try:
        kept, held_out = train_test_split(rows, test_size=validation_split, random_state=seed, stratify=labels)
    except ValueError as error:
        raise ValueError(f"{name}: a validation_split of {validation_split} is not possible ({error})") from error
    return np.sort(kept), np.sort(held_out)


def training_batches(
    image_set: ImageSet, rows: np.ndarray, batch_size: int, generator: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Endless epochs of shuffled batches; every row once an epoch, only the last batch of an epoch may be smaller.

    Yields:
        images float32 [batch, height, width, channels] and labels int64 [batch].
    """
    image_bytes = 4 * math.prod(image_set.image_shape)
    per_block = max(1, BLOCK_BYTES // image_bytes)
    blocks = np.split(rows, np.flatnonzero(np.diff(rows // per_block)) + 1)
    per_window = max(1, WINDOW_BYTES // (per_block * image_bytes))
    everything = _read_rows(image_set, blocks) if len(blocks) <= per_window else None
    while True:
        yield from _rebatched(_shuffled_windows(image_set, blocks, per_window, everything, generator), batch_size)


def _shuffled_windows(
    image_set: ImageSet,
    blocks: list[np.ndarray],
    per_window: int,
    everything: np.ndarray | None,
    generator: np.random.Generator,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """One epoch: blocks of neighbouring rows in random order, a window of them in memory and shuffled within it."""
    labels = image_set.labels
    order = range(len(blocks)) if everything is not None else generator.permutation(len(blocks))
    for start in range(0, len(blocks), per_window):
        window = [blocks[i] for i in order[start : start + per_window]]
        images = everything if everything is not None else _read_rows(image_set, window)
        window_labels = labels[np.concatenate(window)]
        shuffled = generator.permutation(len(images))
        # Small parts, so that a window is never copied whole.
        for part in np.array_split(shuffled, max(1, len(shuffled) // 4096)):
            yield images[part], window_labels[part]


def _rebatched(
    parts: Iterator[tuple[np.ndarray, np.ndarray]], batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The same rows in batches of `batch_size`; what a part leaves over begins the next batch."""
    images, labels = None, None
    for part_images, part_labels in parts:
        images = part_images if images is None else np.concatenate([images, part_images])
        labels = part_labels if labels is None else np.concatenate([labels, part_labels])
        whole = len(labels) // batch_size * batch_size
        for start in range(0, whole, batch_size):
            yield images[start : start + batch_size], labels[start : start + batch_size]
        images, labels = images[whole:], labels[whole:]
    if images is not None and labels is not None and len(labels):
        yield images, labels


def _read_rows(image_set: ImageSet, blocks: list[np.ndarray]) -> np.ndarray:
    """The images of some rows, read as one range for each block."""
    return np.concatenate(
        [image_set.pixels[slice(int(block[0]), int(block[-1]) + 1)][block - block[0]] for block in blocks]
    )


def _validation_batches(image_set: ImageSet, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    labels = image_set.labels
    while True:
        for start in range(0, len(rows), 256):
            block = rows[start : start + 256]
            yield _read_rows(image_set, np.split(block, np.flatnonzero(np.diff(block) > 64) + 1)), labels[block]


def _progress_callback(
    steps: int, epochs: int, progress: Callable[[str], None], batches: Callable[[float, str], None] | None
) -> "keras.callbacks.Callback":
    import keras

    class Progress(keras.callbacks.Callback):
        def __init__(self) -> None:
            super().__init__()
            self.started = self.reported = time.monotonic()
            self.epoch = 0

        def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
            self.epoch = epoch

        def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
            now = time.monotonic()
            done = (self.epoch * steps + batch + 1) / (epochs * steps)
            if batches is not None:
                batches(min(done, 1.0), f"epoch {self.epoch + 1} of {epochs}")
            if now - self.reported >= PROGRESS_SECONDS:
                self.reported = now
                left = (now - self.started) * (1 - done) / done
                facts = _facts(logs)
                progress(
                    f"epoch {self.epoch + 1} of {epochs}, step {batch + 1} of {steps}: {facts}; about {left:.0f} s left"
                )

        def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
            progress(f"epoch {epoch + 1} of {epochs}: {_facts(logs)}")

    return Progress()


def _facts(logs: dict[str, float] | None) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in (logs or {}).items())
