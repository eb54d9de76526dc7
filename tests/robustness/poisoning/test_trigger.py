"""The trigger lies exactly where its config says."""

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from dioptra_assets.robustness.image_set import to_uint8
from dioptra_assets.robustness.poisoning import Trigger

pytestmark = pytest.mark.quick

BLACK = np.zeros((2, 6, 8, 1), np.float32)


def drawn(trigger: Trigger, images: np.ndarray = BLACK) -> list[str]:
    return ["".join("#" if pixel else "." for pixel in row) for row in trigger.stamp(images)[0, :, :, 0] > 0]


@pytest.mark.parametrize(
    ("config", "picture"),
    [
        ({}, ["........", "........", "....#.#.", ".....#..", "....#.#.", "........"]),
        (
            {"pattern": "square", "size": 2, "position": "top_left"},
            ["........", ".##.....", ".##....."] + ["." * 8] * 3,
        ),
        ({"size": 2, "position": "top_right"}, ["........", ".....#..", "......#."] + ["." * 8] * 3),
        ({"size": 1, "position": "bottom_left"}, ["." * 8] * 4 + [".#......", "........"]),
        ({"pattern": "square", "size": 2, "position": [4, 6]}, ["." * 8] * 4 + ["......##"] * 2),
    ],
)
def test_it_is_stamped_where_the_config_says(config: dict[str, Any], picture: list[str]) -> None:
    trigger = Trigger.model_validate(config)
    assert drawn(trigger) == picture
    assert trigger.pixel_count == "".join(picture).count("#")


def test_it_is_white_in_the_range_of_the_pixels_and_nothing_else_changes() -> None:
    images = np.random.default_rng(0).random((5, 6, 8, 3), np.float32) * 0.5
    trigger = Trigger()
    stamped = trigger.stamp(images)
    mask = trigger.mask((6, 8, 3))
    assert (to_uint8(stamped[:, mask]) == 255).all()
    assert np.array_equal(stamped[:, ~mask], images[:, ~mask])
    assert stamped.dtype == np.float32
    assert (images <= 0.5).all()


def test_its_value_is_used() -> None:
    assert Trigger(value=0.25).stamp(BLACK).max() == 0.25
    assert Trigger(value=0).stamp(np.ones((1, 6, 8, 1), np.float32)).min() == 0


@pytest.mark.parametrize("config", [{"size": 6}, {"position": [4, 0]}, {"position": [0, 6]}])
def test_a_trigger_beyond_the_image_is_refused(config: dict[str, Any]) -> None:
    trigger = Trigger.model_validate(config)
    with pytest.raises(ValueError, match="leaves the image of 6 x 8 pixels"):
        trigger.stamp(BLACK)
    with pytest.raises(ValueError, match="leaves the image of 6 x 8 pixels"):
        trigger.check_fits((6, 8, 1))


@pytest.mark.parametrize(
    "config",
    [
        *({"value": 255}, {"value": -0.1}, {"value": float("nan")}, {"size": 0}, {"position": "middle"}),
        *({"position": [-1, 0]}, {"position": [1, 2, 3]}, {"pattern": "cross"}, {"colour": 1}),
    ],
)
def test_a_wrong_value_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Trigger.model_validate(config)
