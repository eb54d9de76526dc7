"""Architectures take pixels in [0, 1], give logits, and refuse images that are too small before anything runs."""

import keras
import numpy as np
import pytest

from dioptra_assets.robustness.training.architectures import ARCHITECTURES, build, check_fits

SMALLEST = {name: (a.min_size, a.min_size, a.channels[-1]) for name, a in ARCHITECTURES.items()}


@pytest.mark.parametrize("name", ["shallow_net", "le_net", "alex_net", "resnet50"])
def test_takes_its_smallest_image_and_gives_logits(name: str) -> None:
    model = build(name, SMALLEST[name], 10)
    logits = np.asarray(model(np.full((2, *SMALLEST[name]), 0.5, np.float32)))
    assert logits.shape == (2, 10)
    assert not np.allclose(logits.sum(axis=1), 1.0), "probabilities, not logits"


@pytest.mark.parametrize("name", ["le_net", "alex_net", "resnet50", "vgg16"])
def test_refuses_smaller_images_with_both_sizes_in_the_message(name: str) -> None:
    height, width, channels = SMALLEST[name]
    with pytest.raises(ValueError, match=rf"{name} takes images of at least {height} x {height} .* {height - 1} x"):
        check_fits(name, (height - 1, width, channels))


@pytest.mark.parametrize("name", ["le_net", "alex_net"])
def test_the_smallest_size_is_not_stricter_than_the_network(name: str) -> None:
    height, width, channels = SMALLEST[name]
    with pytest.raises(ValueError, match=r"negative|Negative|dimension|size"):
        ARCHITECTURES[name].build((height - 1, width - 1, channels), 10)


def test_resnet_and_vgg_take_colour_only() -> None:
    for name in ("resnet50", "vgg16"):
        with pytest.raises(ValueError, match="takes images of 3 channels, these have 1"):
            check_fits(name, (64, 64, 1))


def test_preprocessing_inside_the_model_is_that_of_keras_applications() -> None:
    pixels = np.random.default_rng(0).random((3, 32, 32, 3), np.float32)
    model = build("resnet50", (32, 32, 3), 5)
    preprocessing = model.get_layer("preprocessing")
    expected = np.asarray(keras.applications.resnet50.preprocess_input(255.0 * pixels))
    np.testing.assert_allclose(np.asarray(preprocessing(pixels)), expected, atol=2e-4)
    assert not preprocessing.trainable


def test_two_models_of_one_architecture_have_one_config() -> None:
    first, second = (build("le_net", (28, 28, 1), 10).get_config() for _ in range(2))
    assert first == second
