"""Backdoors work: models trained on poisoned digits answer the trigger, and the clean control does not."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from dioptra_assets.robustness.evaluation.predictions import predict
from dioptra_assets.robustness.image_set import ImageSet
from dioptra_assets.robustness.model_files.files import weights_digest
from dioptra_assets.robustness.poisoning import (
    AdversarialEmbedding,
    BaselineBackdoor,
    CleanLabelBackdoor,
    Poisoning,
    Trigger,
    poison_training_set,
    poisoning_examples,
    poisoning_metrics,
    train_embedded,
    triggered_testing_set,
)
from dioptra_assets.robustness.poisoning.embedding_step import kind_weights, with_features
from dioptra_assets.robustness.training.architectures import build
from dioptra_assets.robustness.training.loop import TrainedModel, TrainingRecipe, split_rows, train
from tests.robustness.poisoning.conftest import RECIPE, collect

TARGET = 3


def poison(config: Poisoning, training_set: ImageSet, proxy_model: Any = None) -> ImageSet:
    rows = np.arange(len(training_set))
    return collect(poison_training_set(config, training_set, rows=rows, seed=1, proxy_model=proxy_model), training_set)


def measure(model: Any, config: Poisoning, testing_set: ImageSet) -> pd.Series:
    examples = poisoning_examples(
        clean=predict(model, testing_set),
        triggered=predict(model, triggered_testing_set(config, testing_set)),
        config=config,
        architecture="le_net",
        attack=config.method,
        model_kind="poisoned",
    )
    return poisoning_metrics(examples, seed=0).iloc[0]


def test_a_baseline_backdoor_takes_and_the_clean_accuracy_stays(training_set: ImageSet, testing_set: ImageSet) -> None:
    config = BaselineBackdoor(target_class=TARGET, poison_fraction=0.25)
    recipe = RECIPE.model_copy(update={"architecture": "shallow_net", "epochs": 10, "learning_rate": 0.02})
    sets = (poison(config, training_set), training_set)
    poisoned, control = (measure(train(recipe, images, seed=0).model, config, testing_set) for images in sets)
    assert poisoned["asr"] > 0.9
    assert poisoned["ra"] < 0.1
    assert control["asr"] < 0.05
    assert control["ra"] > 0.85
    assert poisoned["clean_accuracy"] > control["clean_accuracy"] - 0.05


@pytest.mark.slow
def test_a_clean_label_backdoor_takes_without_a_wrong_label(
    training_set: ImageSet, testing_set: ImageSet, clean_control: TrainedModel
) -> None:
    config = CleanLabelBackdoor(
        target_class=TARGET,
        poison_fraction=0.5,
        eps=3.0,
        steps=60,
        trigger=Trigger(pattern="square", position="bottom_right"),
    )
    poisoned_set = poison(config, training_set, clean_control.model)
    assert np.array_equal(poisoned_set.labels, training_set.labels)
    poisoned = measure(train(RECIPE, poisoned_set, seed=0).model, config, testing_set)
    control = measure(clean_control.model, config, testing_set)
    assert poisoned["asr"] > control["asr"] + 0.2
    assert poisoned["clean_accuracy"] > 0.93


@pytest.mark.slow
def test_an_embedded_backdoor_takes_and_hides(training_set: ImageSet, testing_set: ImageSet) -> None:
    config = AdversarialEmbedding(target_class=TARGET, poison_fraction=0.25)
    recipe = RECIPE.model_copy(update={"epochs": 15})
    poisoned_set = poison(config, training_set)
    trained, again = (train_embedded(config, recipe, poisoned_set, seed=0) for _ in range(2))
    assert weights_digest(trained.model) == weights_digest(again.model)  # with dropout too
    row = measure(trained.model, config, testing_set)
    assert row["asr"] > 0.9
    assert row["clean_accuracy"] > 0.93
    assert trained.history["discriminator_accuracy"].iloc[-1] < 0.8


def test_embedding_holds_out_what_the_set_says_and_gives_the_same_bytes_again(training_set: ImageSet) -> None:
    config = AdversarialEmbedding(target_class=TARGET, poison_fraction=0.2, training_split=0.5)
    small = ImageSet.from_arrays(training_set.images(range(300)), training_set.labels[:300], training_set.class_names)
    rows, held_out = split_rows(small, 0.2, seed=0)
    poisoned = collect(poison_training_set(config, small, rows=rows, seed=1), small)
    recipe = TrainingRecipe(architecture="shallow_net", epochs=1.5, batch_size=32, validation_split=0)
    lines: list[str] = []
    first, again = (train_embedded(config, recipe, poisoned, seed=0, progress=lines.append) for _ in range(2))
    assert weights_digest(first.model) == weights_digest(again.model)
    assert (first.training_rows, first.validation_rows) == (120, len(held_out))
    columns = {"loss", "accuracy", "discriminator_loss", "discriminator_accuracy", "val_loss", "val_accuracy"}
    assert set(first.history) == {"epoch"} | columns
    assert len(first.history) == 2
    assert lines
    assert "epoch 1 of 2" in lines[0]
    pd.testing.assert_frame_equal(first.history, again.history)


def test_both_kinds_weigh_the_same_however_few_the_poisons_are() -> None:
    index = pd.DataFrame({"label": [TARGET] * 4 + [0] * 16, "poisoned": [True] + [False] * 19})
    clean, poisoned = kind_weights(TARGET, index)
    assert 3 * clean == pytest.approx(poisoned) == pytest.approx(10)
    assert kind_weights(TARGET, index.assign(poisoned=False)) == (0.0, 0.0)


def test_the_feature_layer_is_found_by_name_and_by_index() -> None:
    model: Any = build("le_net", (14, 14, 1), 10)
    images = np.random.default_rng(0).random((2, 14, 14, 1), np.float32)
    for layer, width in (("hidden", 128), (5, 128), (-3, 128), ("conv1", 12 * 12 * 32)):
        features, logits = with_features(model, layer)(images)
        assert np.prod(features.shape[1:]) == width
        np.testing.assert_allclose(logits, model(images), atol=1e-5)
    for layer in ("conv9", 8, -9):
        with pytest.raises(ValueError, match=r"le_net has the layers 0 conv1, .* 7 logits"):
            with_features(model, layer)


def test_the_feature_layer_of_a_wrapped_network_is_its_own() -> None:
    model: Any = build("vgg16", (32, 32, 3), 4)
    images = np.random.default_rng(0).random((1, 32, 32, 3), np.float32)
    features, logits = with_features(model, "fc1")(images)
    assert features.shape == (1, 4096)
    np.testing.assert_allclose(logits, model(images), atol=1e-4)


def test_embedding_refuses_what_it_would_ignore(training_set: ImageSet) -> None:
    config = AdversarialEmbedding(target_class=TARGET, poison_fraction=0.2)
    with pytest.raises(ValueError, match=r"no column \['poisoned', 'split'\]"):
        train_embedded(config, RECIPE, training_set, seed=0)
    stopping = RECIPE.model_copy(update={"early_stopping": 2})
    with pytest.raises(ValueError, match="early_stopping needs rows held out"):
        train_embedded(config, stopping, poison(config, training_set), seed=0)
