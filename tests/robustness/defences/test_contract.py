"""What every defence must hold to, one table of defences against one list of contracts."""

import subprocess
import sys
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import TypeAdapter, ValidationError

from dioptra_assets.robustness.data.digits import DigitsSource
from dioptra_assets.robustness.defences import (
    DEFENCES,
    AnyDefence,
    Defence,
    defend_set,
    defended_training_set,
    parse_defence,
)
from dioptra_assets.robustness.errors import NonFiniteError
from dioptra_assets.robustness.image_set import ImageSet

pytestmark = pytest.mark.quick

CONFIGS: dict[str, dict[str, Any]] = {
    "median 3": {"method": "spatial_smoothing"},
    "median 4": {"method": "spatial_smoothing", "window_size": 4},
    "jpeg": {"method": "jpeg_compression"},
    "noise": {"method": "gaussian_augmentation", "sigma": 0.1},
    "augmentation": {
        "method": "gaussian_augmentation",
        "sigma": 0.1,
        "ratio": 0.4,
        "apply_fit": True,
        "perform_data_augmentation": True,
    },
}


@pytest.fixture(params=[pytest.param(config, id=name) for name, config in CONFIGS.items()])
def config(request: pytest.FixtureRequest) -> dict[str, Any]:
    return request.param


@pytest.fixture(scope="module")
def digits() -> ImageSet:
    """90 digits of 12x12 with a column of provenance."""
    testing = DigitsSource(image_size=(12, 12), test_fraction=0.05).load("testing")
    images, labels = testing.to_numpy()
    few = ImageSet.from_arrays(images[:90], labels[:90], testing.class_names, name="digits/testing_set")
    few.index["file"] = "a.png"
    return few


def defend(defence: Defence, images: ImageSet, **arguments: Any) -> tuple[np.ndarray, pd.DataFrame]:
    """All images and rows of the index, in one piece."""
    given: dict[str, Any] = {"seed": 3, "batch_size": 32} | arguments
    batches = list(defend_set(defence, images, **given))
    return np.concatenate([b.images for b in batches]), pd.concat([b.index for b in batches], ignore_index=True)


def test_every_defence_is_in_the_table() -> None:
    assert {config["method"] for config in CONFIGS.values()} == set(DEFENCES)


def test_every_image_comes_back_once_in_order_and_defended(config: dict[str, Any], digits: ImageSet) -> None:
    progress: list[tuple[int, int]] = []
    before = digits.to_numpy()[0].copy()
    images, index = defend(parse_defence(config), digits, progress=lambda done, total: progress.append((done, total)))
    assert index.equals(digits.index)
    assert images.dtype == np.float32 and images.shape == before.shape
    assert images.min() >= 0 and images.max() <= 1
    assert (images != before).any(axis=(1, 2, 3)).all()
    assert progress == [(32, 90), (64, 90), (90, 90)]
    assert np.array_equal(digits.to_numpy()[0], before), "the set was written to"


@pytest.mark.parametrize("training", [False, True])
def test_batch_size_changes_no_byte(config: dict[str, Any], training: bool, digits: ImageSet) -> None:
    defence = parse_defence(config | {"apply_fit": True})
    whole, index = defend(defence, digits, batch_size=1000, training=training)
    for batch_size in (1, 7, 64):
        images, rows = defend(defence, digits, batch_size=batch_size, training=training)
        assert images.tobytes() == whole.tobytes()
        assert rows.equals(index)


def test_the_same_seed_gives_the_same_bytes_and_the_global_generator_is_left_alone(
    config: dict[str, Any], digits: ImageSet
) -> None:
    np.random.seed(0)
    first, _ = defend(parse_defence(config), digits)
    drawn = np.random.random()
    np.random.seed(0)
    assert drawn == np.random.random()
    assert defend(parse_defence(config), digits)[0].tobytes() == first.tobytes()
    random = config["method"] == "gaussian_augmentation"
    assert np.array_equal(defend(parse_defence(config), digits, seed=4)[0], first) != random
    drawn = [parse_defence(config).transform(digits.images([0, 1]), rows=np.arange(2), seed=seed) for seed in (3, 4)]
    assert parse_defence(config).draws == (not np.array_equal(drawn[0], drawn[1])), (
        "an attacker is told whether it draws"
    )


@pytest.mark.parametrize("apply_fit", [False, True])
@pytest.mark.parametrize("apply_predict", [False, True])
def test_apply_fit_and_apply_predict_do_what_they_say(
    config: dict[str, Any], apply_fit: bool, apply_predict: bool, digits: ImageSet
) -> None:
    plain = {key: value for key, value in config.items() if key != "perform_data_augmentation"}
    defence = parse_defence(plain | {"apply_fit": apply_fit, "apply_predict": apply_predict})
    images, labels = digits.to_numpy()
    rows = np.arange(90)
    defended = defence.transform(images, rows=rows, seed=3)

    predicted = defence.on_prediction(images, rows=rows, seed=3)
    assert np.array_equal(predicted, defended if apply_predict else images)
    assert np.array_equal(defend(defence, digits)[0], predicted)

    fitted, fitted_labels = defence.on_training(images, labels, rows=rows, seed=3, total=90)
    assert np.array_equal(fitted, defended if apply_fit else images)
    assert np.array_equal(fitted_labels, labels)
    assert np.array_equal(defend(defence, digits, training=True)[0], fitted)


def test_a_training_set_is_what_a_model_is_fitted_on(config: dict[str, Any], digits: ImageSet) -> None:
    defence = parse_defence(config | {"apply_fit": True})
    training_set = defended_training_set(defence, digits, seed=3)
    images, labels = training_set.to_numpy()
    expected, expected_labels = defence.on_training(*digits.to_numpy(), rows=np.arange(90), seed=3, total=90)
    assert images.tobytes() == expected.tobytes()
    assert np.array_equal(labels, expected_labels)
    assert np.array_equal(training_set.images([len(training_set) - 1])[0], expected[-1])
    ids = training_set.index["image_id"].tolist()
    assert ids[:90] == digits.index["image_id"].tolist()
    assert all(copy.removesuffix("#noise") in ids[:90] and copy.endswith("#noise") for copy in ids[90:])
    assert len(ids) == (126 if config.get("perform_data_augmentation") else 90)


def test_a_set_is_read_a_batch_at_a_time(config: dict[str, Any], digits: ImageSet) -> None:
    class Watched:
        def __init__(self) -> None:
            self.read: list[int] = []
            self.shape = (90, 12, 12, 1)

        def __getitem__(self, rows: slice) -> np.ndarray:
            images = digits.pixels[rows]
            self.read.append(len(images))
            return images

    watched = Watched()
    batches = defend_set(
        parse_defence(config), ImageSet(watched, digits.index, digits.class_names), seed=0, batch_size=8
    )
    assert watched.read == []
    next(batches)
    assert watched.read == [8]


def test_a_pixel_that_is_not_finite_is_an_error_that_names_set_and_image(config: dict[str, Any]) -> None:
    images = np.full((3, 8, 8, 1), 0.5, np.float32)
    images[1, 2, 2] = np.nan
    images[2, 2, 2] = np.inf
    broken = ImageSet.from_arrays(images, [0, 1, 2], tuple("0123456789"), image_ids=["a", "b", "c"], name="broken")
    for training in (False, True):
        with pytest.raises(NonFiniteError, match=r"broken: non-finite pixels at 2 images of one batch: b, c$"):
            defend(parse_defence(config | {"apply_fit": True}), broken, training=training)


def test_pixels_out_of_the_box_are_refused(config: dict[str, Any]) -> None:
    in_bytes = ImageSet.from_arrays(np.full((1, 8, 8, 1), 255.0), [0], tuple("0123456789"), name="bytes")
    with pytest.raises(ValueError, match=r"bytes: pixels reach from 255.0 to 255.0, they must lie in \[0, 1\]"):
        defend(parse_defence(config), in_bytes)


def test_a_batch_size_of_0_is_refused(config: dict[str, Any], digits: ImageSet) -> None:
    with pytest.raises(ValueError, match="batch_size is 0, it must be at least 1"):
        defend(parse_defence(config), digits, batch_size=0)


def test_a_config_survives_json_and_cannot_be_changed(config: dict[str, Any]) -> None:
    defence = parse_defence(config)
    assert TypeAdapter(AnyDefence).validate_json(defence.model_dump_json()) == defence
    assert hash(defence) == hash(parse_defence(config))
    assert defence.describe()
    with pytest.raises(ValidationError, match="frozen"):
        defence.apply_fit = True  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"method": "spatial_smoothing", "window_size": 0}, "window_size"),
        ({"method": "spatial_smoothing", "window_size": 2.5}, "window_size"),
        ({"method": "spatial_smoothing", "quality": 50}, "quality"),
        ({"method": "jpeg_compression", "quality": 0}, "quality"),
        ({"method": "jpeg_compression", "quality": 101}, "quality"),
        ({"method": "gaussian_augmentation", "sigma": -0.1}, "sigma"),
        ({"method": "gaussian_augmentation", "sigma": 25.5}, "sigma"),
        ({"method": "gaussian_augmentation", "ratio": 1.5}, "ratio"),
        ({"method": "gaussian_augmentation", "apply_predict": "maybe"}, "apply_predict"),
    ],
)
def test_a_wrong_field_is_refused_by_name(config: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as refused:
        parse_defence(config)
    assert [error["loc"][0] for error in refused.value.errors()] == [field]


def test_an_unknown_method_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"method is 'blur': allowed are gaussian_augmentation, jpeg_compression, sp"):
        parse_defence({"method": "blur"})


def test_left_out_fields_are_those_of_the_demos() -> None:
    for method, defaults in {
        "spatial_smoothing": {"window_size": 3},
        "jpeg_compression": {"quality": 50, "channels_first": False},
        "gaussian_augmentation": {"sigma": 1.0, "ratio": 1.0, "perform_data_augmentation": False},
    }.items():
        given = parse_defence({"method": method}).model_dump()
        assert given == {"method": method, "apply_fit": False, "apply_predict": True} | defaults


def test_configs_load_without_any_machine_learning_library() -> None:
    code = (
        "import sys, dioptra_assets.robustness.defences as d; d.parse_defence({'method': 'jpeg_compression'});"
        "sys.exit(str({'tensorflow', 'keras', 'art', 'jax', 'scipy', 'cv2'} & set(sys.modules) or ''))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.stderr.strip() == ""
