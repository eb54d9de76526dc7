"""JPEG compression against ART's, and against each image coded by itself."""

import io

import numpy as np
import pytest
from art.defences.preprocessor import JpegCompression as ArtJpegCompression
from PIL import Image
from pydantic import ValidationError

from dioptra_assets.robustness.defences import JpegCompression, jpeg
from dioptra_assets.robustness.image_set import to_uint8

pytestmark = pytest.mark.quick

SHAPES = [(28, 28, 1), (17, 31, 3), (8, 24, 1), (9, 1, 1), (20, 13, 2), (5, 7, 4), (1, 1, 3), (64, 48, 3)]


def compress(images: np.ndarray, quality: int) -> np.ndarray:
    return JpegCompression(quality=quality).transform(images, rows=np.arange(len(images)), seed=0)


def in_bytes(n: int, shape: tuple[int, ...]) -> np.ndarray:
    """Something between a picture and noise, in whole bytes."""
    generator = np.random.default_rng(0)
    waves = np.sin(np.arange(np.prod(shape)).reshape(shape) / 9 + generator.random((n, 1, 1, 1)) * 6) / 2 + 0.5
    noisy = np.clip(waves + generator.normal(0, 0.1, waves.shape), 0, 1)
    return (np.rint(noisy * 255) / 255).astype(np.float32)


@pytest.mark.parametrize("quality", [1, 50, 95, 100])
@pytest.mark.parametrize("shape", SHAPES)
def test_on_whole_bytes_it_equals_art_bit_for_bit(quality: int, shape: tuple[int, ...]) -> None:
    images = in_bytes(5, shape)
    expected, _ = ArtJpegCompression((0.0, 1.0), quality=quality)(images)
    assert compress(images, quality).tobytes() == expected.tobytes()


@pytest.mark.parametrize("side", [40, 2048])
def test_tiles_of_one_picture_equal_images_coded_one_by_one(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the tiles fill their picture, more than one, or leave part of the last band empty."""
    monkeypatch.setattr(jpeg, "PICTURE_SIDE", side)
    images = in_bytes(70, (11, 13, 1))
    for quality in (3, 60):
        alone = []
        for image in images:
            coded = io.BytesIO()
            Image.fromarray(to_uint8(image[..., 0])).save(coded, format="jpeg", quality=quality)
            alone.append(np.asarray(Image.open(coded))[..., np.newaxis] / 255.0)
        np.testing.assert_array_equal(compress(images, quality), np.array(alone, np.float32))


@pytest.mark.parametrize("shape", [(28, 28, 1), (16, 16, 3)])
def test_the_number_of_threads_changes_nothing(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    images = in_bytes(41, shape)
    alone = compress(images, 50)
    monkeypatch.setattr(jpeg, "PIXELS_A_THREAD", 1)
    monkeypatch.setattr("os.cpu_count", lambda: 5)
    assert compress(images, 50).tobytes() == alone.tobytes()


def test_pixels_are_clipped_and_rounded_to_bytes_not_cut_off_and_wrapped() -> None:
    # A grey image of one value survives JPEG of quality 100 unchanged.
    images = np.stack([np.full((8, 8, 1), value, np.float32) for value in (1.01, -0.2, 99.6 / 255, 7.0)])
    got = compress(images, 100)[:, 0, 0, 0]
    np.testing.assert_array_equal(got, np.array([1.0, 0.0, 100 / 255, 1.0], np.float32))


def test_bytes_are_those_of_an_exported_picture() -> None:
    halves = np.arange(-20, 531, dtype=np.float32) / 510  # every byte, and every value half way between two
    values = np.concatenate([halves, np.random.default_rng(0).normal(0.5, 0.5, 100_000).astype(np.float32)])
    images = values.reshape(1, -1, 1, 1)
    assert np.array_equal(jpeg._to_bytes(images), to_uint8(images))


def test_higher_quality_is_nearer_to_the_image() -> None:
    images = in_bytes(10, (28, 28, 3))
    errors = [np.abs(compress(images, quality) - images).mean() for quality in (5, 30, 60, 95)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] * 0.7


def test_channels_first_is_refused_with_the_reason() -> None:
    assert JpegCompression(channels_first=False).channels_first is False
    with pytest.raises(ValidationError, match=r"channels_first is true: only false is allowed, every image set is"):
        JpegCompression(channels_first=True)
