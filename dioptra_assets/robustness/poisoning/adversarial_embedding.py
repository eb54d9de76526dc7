"""The adversarial embedding backdoor: trigger and relabel, and a model trained to hide its poisons from itself."""

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal, cast

import numpy as np
import pandas as pd
from pydantic import Field

from dioptra_assets.robustness.attacks.base import ThreatModel
from dioptra_assets.robustness.errors import NonFiniteError
from dioptra_assets.robustness.image_set import ImageSet
from dioptra_assets.robustness.poisoning.base import Poisoning
from dioptra_assets.robustness.poisoning.embedding_step import kind_weights, make_trainer
from dioptra_assets.robustness.seeds import derive_seed
from dioptra_assets.robustness.training.loop import (
    TrainedModel,
    TrainingRecipe,
    _progress_callback,
    _validation_batches,
    initial_model,
    training_batches,
)

LayerSize = Annotated[int, Field(ge=1, le=65_536, strict=True)]


class AdversarialEmbedding(Poisoning, frozen=True, extra="forbid"):
    """Trigger, relabel and hide (Tan and Shokri 2019, arXiv 1905.13409, section 4).

    The attacker trains the model. Beside the classes it learns to give poisoned images the same features as clean ones
    of the target class, against a discriminator that learns to tell them apart: detectors that look for two kinds of
    features in one class then find one. Poisons are made as in the baseline attack.

    The paper subtracts the discriminator's loss, times the regularization factor, from the classifier's. That has no
    lower bound, so the features run away and the accuracy with them. Here, in alternation at every batch,

    1. the discriminator learns, both kinds weighing the same however few the poisons are, and
    2. the model learns the classes and to make the discriminator undecided: the cross-entropy of its answer to even
       odds, which is bounded. At the feature layer this second gradient is scaled by `regularization_factor`, or less
       where it would outweigh that of the classes.

    The discriminator sees the rows labelled as the target class alone. Over all rows no features could satisfy it,
    since the classes themselves tell other clean rows from poisons, and it would work against the classification.
    """

    method: Literal["adversarial_embedding"] = "adversarial_embedding"
    feature_layer: Annotated[int, Field(strict=True)] | Annotated[str, Field(min_length=1)] = Field(
        default=-2,
        description="Layer whose output is to hide the poisons: its name, or its index from 0, negative from the end. "
        "-2 is what the logits are computed from.",
    )
    discriminator_layer_1_size: LayerSize = Field(default=256, description="Units of its first layer, at least 1.")
    discriminator_layer_2_size: LayerSize = Field(default=128, description="Units of its second layer, at least 1.")
    regularization_factor: float = Field(
        default=10.0,
        gt=0,
        le=1e6,
        allow_inf_nan=False,
        description="Weight of hiding against classifying, above 0; hiding never outweighs classifying.",
    )
    training_split: float = Field(
        default=1.0,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="Share of the training rows that the model is trained on, above 0, at most 1, drawn from the "
        "poisoned and from the clean rows alike.",
    )

    def threat_model(self) -> ThreatModel:
        """An attacker who trains the model and hands it over."""
        return ThreatModel(
            nist_class="backdoor poisoning",
            knowledge="white-box",
            goal="targeted",
            norm="0",
            budget=f"training of the model; {self.poison_fraction:.4g} of the training rows of other classes, "
            f"relabelled; trigger of {self.trigger.pixel_count} pixels",
        )

    def eligible(self, labels: np.ndarray) -> np.ndarray:
        """The rows that do not belong to the target class."""
        return labels != self.target_class

    def poisoned_labels(self, labels: np.ndarray) -> np.ndarray:
        """The target class."""
        return np.full_like(labels, self.target_class)


def train_embedded(
    config: AdversarialEmbedding,
    recipe: TrainingRecipe,
    poisoned_set: ImageSet,
    *,
    seed: int,
    progress: Callable[[str], None] = lambda message: None,
    batches: Callable[[float, str], None] | None = None,
) -> TrainedModel:
    """Train a model that hides its backdoor.

    Args:
        config: the attack.
        recipe: architecture and parameters of the training; the discriminator is trained by Adam at the same rate. Its
            `validation_split` is not used: the set says which rows are held out.
        poisoned_set: what `poison_training_set` made with this config, with its columns `poisoned` and `split`.
        seed: used unless the recipe has its own.
        progress: gets a line at each epoch's end and every ten seconds.
        batches: see `training.train`.

    Returns:
        The model, and a history that has beside the columns of `training.train`: `discriminator_loss` (ln 2 = 0.693 is
        chance) and `discriminator_accuracy` (both kinds weighing the same; 0.5 is chance, the poisons are hidden).

    Raises:
        ValueError: when recipe, config and set do not fit together, or the model has no such feature layer.
        NonFiniteError: when the loss is no longer finite.
    """
    import keras
    import tensorflow as tf

    config.check_fits(poisoned_set.image_shape, len(poisoned_set.class_names))
    recipe.check_fits(poisoned_set.image_shape, len(poisoned_set.class_names))
    if recipe.madry:
        raise ValueError("adversarial_embedding has its own training loop: remove madry from the recipe")
    seed = recipe.seed if recipe.seed is not None else seed
    rows, held_out = _rows(config, poisoned_set, seed)
    if recipe.early_stopping and not len(held_out):
        raise ValueError(f"{poisoned_set.name}: early_stopping needs rows held out for validation, there are none")
    tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(seed)
    model = initial_model(recipe, poisoned_set.image_shape, len(poisoned_set.class_names))
    coded = _with_coded_labels(poisoned_set)
    trainer = make_trainer(
        model,
        target_class=config.target_class,
        weights=kind_weights(config.target_class, poisoned_set.index.iloc[rows]),
        feature_layer=config.feature_layer,
        layer_sizes=(config.discriminator_layer_1_size, config.discriminator_layer_2_size),
        regularization_factor=config.regularization_factor,
        learning_rate=recipe.learning_rate,
    )
    trainer.compile(
        optimizer=keras.optimizers.get(
            {"class_name": recipe.optimizer, "config": {"learning_rate": recipe.learning_rate}}
        )
    )
    steps = math.ceil(len(rows) / recipe.batch_size)
    whole_epochs = int(recipe.epochs)
    callbacks = [
        _progress_callback(steps, math.ceil(recipe.epochs), progress, batches),
        keras.callbacks.TerminateOnNaN(),
    ]
    if recipe.early_stopping:
        callbacks.append(keras.callbacks.EarlyStopping(patience=recipe.early_stopping, restore_best_weights=True))
    history: list[dict[str, float]] = []
    stages = [(0, whole_epochs, steps), (whole_epochs, whole_epochs + 1, round((recipe.epochs - whole_epochs) * steps))]
    for stage, (first, last, steps_per_epoch) in enumerate(stages):
        if last == first or steps_per_epoch == 0 or trainer.stop_training:
            continue
        fitted = trainer.fit(
            training_batches(coded, rows, recipe.batch_size, np.random.default_rng([seed, stage])),
            initial_epoch=first,
            epochs=last,
            steps_per_epoch=steps_per_epoch,
            validation_data=_validation_batches(coded, held_out) if len(held_out) else None,
            validation_steps=math.ceil(len(held_out) / 256) if len(held_out) else None,
            shuffle=False,
            callbacks=callbacks,
            verbose=cast(Any, 0),
        )
        values = cast(dict[str, list[float]], fitted.history)
        history += [dict(zip(values, epoch, strict=True)) for epoch in zip(*values.values(), strict=True)]
    table = pd.DataFrame(history) if history else pd.DataFrame({"loss": [], "accuracy": []})
    table.insert(0, "epoch", np.arange(1, len(table) + 1))
    if not np.isfinite(table["loss"].to_numpy(np.float64)).all():
        raise NonFiniteError(
            f"{recipe.architecture}: the loss became non-finite in epoch {len(table)}; a lower learning_rate than "
            f"{recipe.learning_rate} may help"
        )
    return TrainedModel(model, table, seed, len(rows), len(held_out))


def _rows(config: AdversarialEmbedding, poisoned_set: ImageSet, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the rows to train on, a share of either kind, and of those held out, each ascending."""
    missing = {"poisoned", "split"} - set(poisoned_set.index)
    if missing:
        raise ValueError(f"{poisoned_set.name}: the index has no column {sorted(missing)}: poison the set first")
    training = (poisoned_set.index["split"] == "training").to_numpy(bool)
    poisoned = poisoned_set.index["poisoned"].to_numpy(bool)
    generator = np.random.default_rng(derive_seed(seed, "training split"))
    kinds = [np.flatnonzero(training & kind) for kind in (poisoned, ~poisoned)]
    parts = [generator.permutation(kind)[: round(config.training_split * len(kind))] for kind in kinds]
    rows = np.sort(np.concatenate(parts))
    if not len(rows):
        raise ValueError(f"{poisoned_set.name}: training_split {config.training_split:g} leaves no row to train on")
    return rows, np.flatnonzero(~training)


def _with_coded_labels(poisoned_set: ImageSet) -> ImageSet:
    """The set with 2 * label + poisoned as labels, so that batches carry both."""
    codes = 2 * poisoned_set.labels + poisoned_set.index["poisoned"].to_numpy(np.int64)
    names = [f"{name}{kind}" for name in poisoned_set.class_names for kind in (" clean", " poisoned")]
    return ImageSet(poisoned_set.pixels, poisoned_set.index.assign(label=codes), tuple(names), poisoned_set.name)
