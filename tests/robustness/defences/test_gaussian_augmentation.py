"""Noise of the right size, told by seed and row, and training data with copies."""

import numpy as np
import pytest
from pydantic import ValidationError

from dioptra_assets.robustness.defences import GaussianAugmentation

pytestmark = pytest.mark.quick

GREY = np.full((50, 20, 20, 1), 0.5, np.float32)
ROWS = np.arange(50)


def test_the_noise_has_the_declared_deviation_and_no_bias() -> None:
    noisy = GaussianAugmentation(sigma=0.1).transform(GREY, rows=ROWS, seed=3)
    noise = (noisy - 0.5).ravel()
    assert noisy.dtype == np.float32
    assert noise.std() == pytest.approx(0.1, rel=0.02)
    assert noise.mean() == pytest.approx(0, abs=0.003)
    # Normal, not merely of that width: 68.3 and 95.4 of a hundred within one and two deviations.
    assert (np.abs(noise) < 0.1).mean() == pytest.approx(0.683, abs=0.01)
    assert (np.abs(noise) < 0.2).mean() == pytest.approx(0.954, abs=0.01)


def test_no_two_images_share_their_noise_and_no_two_seeds() -> None:
    defence = GaussianAugmentation(sigma=0.1)
    first = defence.transform(GREY, rows=ROWS, seed=3)
    other = defence.transform(GREY, rows=ROWS, seed=4)
    everything = np.concatenate([first, other]).reshape(100, -1) - 0.5
    correlation = np.corrcoef(everything) - np.eye(100)
    assert np.abs(correlation).max() < 0.25


def test_the_noise_of_an_image_depends_on_its_row_alone() -> None:
    defence = GaussianAugmentation(sigma=0.1)
    together = defence.transform(GREY, rows=ROWS, seed=3)
    alone = defence.transform(GREY[:1], rows=np.array([17]), seed=3)
    assert np.array_equal(alone[0], together[17])


def test_the_result_is_clipped_to_the_box_and_no_noise_is_the_image() -> None:
    noisy = GaussianAugmentation(sigma=1).transform(GREY, rows=ROWS, seed=0)
    assert noisy.min() == 0 and noisy.max() == 1
    assert np.array_equal(GaussianAugmentation(sigma=0).transform(GREY, rows=ROWS, seed=0), GREY)


@pytest.mark.parametrize(("ratio", "copies"), [(0.0, 0), (0.25, 12), (0.5, 25), (1.0, 50)])
def test_with_augmentation_the_originals_stay_and_each_copy_has_its_label(ratio: float, copies: int) -> None:
    defence = GaussianAugmentation(sigma=0.01, ratio=ratio, apply_fit=True, perform_data_augmentation=True)
    # The grey level of an image tells which one it is.
    levels = (np.arange(50, dtype=np.float32) / 100 + 0.25).reshape(50, 1, 1, 1)
    images = np.broadcast_to(levels, (50, 6, 6, 1)).copy()
    augmented, labels = defence.on_training(images, ROWS * 10, rows=ROWS, seed=5, total=50)
    assert len(augmented) == len(labels) == 50 + copies
    assert np.array_equal(augmented[:50], images)
    assert np.array_equal(labels[:50], ROWS * 10)
    assert len(set(labels[50:])) == copies
    np.testing.assert_allclose(augmented[50:].mean(axis=(1, 2, 3)), labels[50:] / 1000 + 0.25, atol=0.01)
    assert all(
        not np.array_equal(copy, images[label // 10]) for copy, label in zip(augmented[50:], labels[50:], strict=True)
    )


def test_which_rows_are_copied_is_drawn_by_the_seed() -> None:
    defence = GaussianAugmentation(sigma=0.1, ratio=0.5, apply_fit=True, perform_data_augmentation=True)
    assert np.array_equal(defence.copied_rows(1000, 1), defence.copied_rows(1000, 1))
    assert not np.array_equal(defence.copied_rows(1000, 1), defence.copied_rows(1000, 2))
    assert 200 < (defence.copied_rows(1000, 1) < 500).sum() < 300


def test_batches_of_training_data_get_the_copies_of_the_whole() -> None:
    defence = GaussianAugmentation(sigma=0.1, ratio=0.3, apply_fit=True, perform_data_augmentation=True)
    whole, labels = defence.on_training(GREY, ROWS, rows=ROWS, seed=5, total=50)
    parts = [defence.on_training(GREY[p], ROWS[p], rows=ROWS[p], seed=5, total=50) for p in np.split(ROWS, [7, 8, 40])]
    together = sorted(
        (int(label), image.tobytes()) for images, of in parts for image, label in zip(images, of, strict=True)
    )
    assert together == sorted((int(label), image.tobytes()) for image, label in zip(whole, labels, strict=True))


def test_without_augmentation_training_data_become_noisy_themselves() -> None:
    defence = GaussianAugmentation(sigma=0.1, ratio=0.3, apply_fit=True)
    images, labels = defence.on_training(GREY, ROWS, rows=ROWS, seed=5, total=50)
    assert len(images) == 50 and np.array_equal(labels, ROWS)
    assert (images != GREY).any(axis=(1, 2, 3)).all()


def test_images_to_be_predicted_are_never_added_to() -> None:
    defence = GaussianAugmentation(sigma=0.1, apply_fit=True, perform_data_augmentation=True)
    assert len(defence.on_prediction(GREY, rows=ROWS, seed=0)) == 50


def test_augmentation_without_apply_fit_is_refused() -> None:
    with pytest.raises(ValidationError, match="perform_data_augmentation is true, but apply_fit is false"):
        GaussianAugmentation(perform_data_augmentation=True)
