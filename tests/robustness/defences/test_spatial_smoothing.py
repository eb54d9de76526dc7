"""The median filter against ART's, and against medians worked out by hand."""

import numpy as np
import pytest
from art.defences.preprocessor import SpatialSmoothing as ArtSpatialSmoothing

from dioptra_assets.robustness.defences import SpatialSmoothing

pytestmark = pytest.mark.quick


def smooth(images: np.ndarray, window_size: int) -> np.ndarray:
    return SpatialSmoothing(window_size=window_size).transform(images, rows=np.arange(len(images)), seed=0)


@pytest.mark.parametrize("window_size", [1, 2, 3, 4, 5, 7])
@pytest.mark.parametrize("shape", [(9, 9, 1), (12, 7, 3), (6, 11, 2), (1, 1, 1), (2, 3, 4), (1, 40, 3)])
def test_it_equals_art_bit_for_bit(window_size: int, shape: tuple[int, ...]) -> None:
    images = np.random.default_rng(0).random((4, *shape), np.float32)
    expected, _ = ArtSpatialSmoothing(window_size)(images)
    assert smooth(images, window_size).tobytes() == expected.tobytes()


def test_a_lone_pixel_vanishes_and_an_edge_stays() -> None:
    images = np.zeros((2, 7, 7, 1), np.float32)
    images[0, 3, 3] = 1
    images[1, :, 4:] = 1
    smoothed = smooth(images, 3)
    assert not smoothed[0].any()
    assert np.array_equal(smoothed[1], images[1])


@pytest.mark.parametrize("window_size", [3, 5])
def test_images_and_channels_do_not_touch_each_other(window_size: int) -> None:
    images = np.zeros((3, 6, 6, 3), np.float32)
    images[1, ..., 1] = 1
    assert np.array_equal(smooth(images, window_size), images)


def test_a_window_of_even_size_reaches_up_and_left_and_takes_the_larger_middle_value() -> None:
    images = np.array([[0.1, 0.2], [0.3, 0.4]], np.float32).reshape(1, 2, 2, 1)
    # Windows, mirrored: (.1 .1 .1 .1), (.1 .2 .1 .2), (.1 .1 .3 .3), (.1 .2 .3 .4)
    np.testing.assert_array_equal(smooth(images, 2).ravel(), np.array([0.1, 0.2, 0.3, 0.3], np.float32))


def test_pixels_in_another_memory_order_give_the_same() -> None:
    images = np.random.default_rng(0).random((5, 8, 8, 3), np.float32)
    strided = np.asfortranarray(images)
    assert np.array_equal(smooth(strided, 3), smooth(images, 3))
