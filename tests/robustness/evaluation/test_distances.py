import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.distance import cosine
from scipy.stats import wasserstein_distance

from dioptra_assets.robustness.errors import NonFiniteError
from dioptra_assets.robustness.evaluation import distances as module
from dioptra_assets.robustness.evaluation.distances import DISTANCE_COLUMNS, image_distances, set_distances
from dioptra_assets.robustness.image_set import ImageSet

pytestmark = pytest.mark.quick


def _pair(n: int = 6) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    clean = rng.random((n, 5, 4, 3), np.float32)
    moved = np.clip(clean + rng.normal(0, 0.2, clean.shape).astype(np.float32) * (rng.random(clean.shape) < 0.3), 0, 1)
    return clean, moved.astype(np.float32)


def test_distances_equal_those_of_numpy_and_scipy():
    clean, moved = _pair()
    table = image_distances(clean, moved)
    assert list(table.columns) == list(DISTANCE_COLUMNS)
    for row, a, b in zip(table.itertuples(), clean, moved, strict=True):
        flat_a, flat_b = a.ravel().astype(np.float64), b.ravel().astype(np.float64)
        assert row.l0 == sum(bool((a[y, x] != b[y, x]).any()) for y in range(5) for x in range(4))
        assert row.l1 == pytest.approx(np.linalg.norm(flat_a - flat_b, 1), rel=1e-12)
        assert row.l2 == pytest.approx(np.linalg.norm(flat_a - flat_b, 2), rel=1e-12)
        assert row.linf == pytest.approx(np.linalg.norm(flat_a - flat_b, np.inf), rel=1e-12)
        assert row.cosine == pytest.approx(1 - cosine(flat_a, flat_b), rel=1e-12)
        assert row.wasserstein == pytest.approx(wasserstein_distance(flat_a, flat_b), rel=1e-12)


def test_an_untouched_image_has_no_distance():
    clean, _ = _pair()
    table = image_distances(clean, clean)
    assert (table[["l0", "l1", "l2", "linf", "wasserstein"]] == 0).all().all()
    assert (table["cosine"] == 1).all()


def test_images_of_zeros_have_a_cosine():
    zeros, ones = np.zeros((1, 2, 2, 1), np.float32), np.ones((1, 2, 2, 1), np.float32)
    assert image_distances(zeros, zeros)["cosine"].item() == 1.0
    assert image_distances(zeros, ones)["cosine"].item() == 0.0
    assert image_distances(ones, zeros)["cosine"].item() == 0.0


def test_a_colour_pixel_counts_once_in_l0():
    clean = np.zeros((1, 2, 2, 3), np.float32)
    moved = clean.copy()
    moved[0, 1, 1] = (0.1, 0.0, 0.2)
    assert image_distances(clean, moved)["l0"].item() == 1


def test_working_in_parts_changes_nothing(monkeypatch):
    clean, moved = _pair(7)
    whole = image_distances(clean, moved)
    monkeypatch.setattr(module, "_VALUES_AT_ONCE", 2 * clean[0].size)
    pd.testing.assert_frame_equal(image_distances(clean, moved), whole, check_exact=True)


IMAGES = arrays(np.float32, (3, 3, 2, 1), elements=st.floats(0, 1, width=32))


@settings(max_examples=60, deadline=None)
@given(IMAGES, IMAGES)
def test_norms_hold_their_inequalities(clean, moved):
    table = image_distances(clean, moved)
    assert len(table) == 3
    assert np.isfinite(table.to_numpy(np.float64)).all()
    slack = 1 + 1e-9
    assert (table["linf"] <= table["l2"] * slack).all()
    assert (table["l2"] <= table["l1"] * slack).all()
    assert (table["l1"] <= table["l0"] * table["linf"] * slack).all()  # one channel: a pixel is a value
    assert (table["wasserstein"] <= table["l1"] / 6 * slack).all()  # sorting is the best pairing of the values
    assert table["cosine"].between(0, 1).all()


def test_a_nan_pixel_is_an_error_and_not_a_distance():
    clean, moved = _pair()
    moved[3, 0, 0, 0] = np.nan
    with pytest.raises(NonFiniteError, match="non-finite pixels in 1 of 6"):
        image_distances(clean, moved)


def test_a_dropped_batch_is_refused():
    clean, moved = _pair()
    with pytest.raises(ValueError, match="cannot be compared"):
        image_distances(clean, moved[:4])


def _set(images: np.ndarray, name: str, ids: list[str] | None = None) -> ImageSet:
    return ImageSet.from_arrays(images, [0] * len(images), ("only",), image_ids=ids, name=name)


def test_sets_are_compared_image_by_image_with_their_ids():
    clean, moved = _pair(7)
    table = set_distances(_set(clean, "clean"), _set(moved, "moved"), batch_size=3)
    assert table["image_id"].tolist() == [f"{i:06d}" for i in range(7)]
    pd.testing.assert_frame_equal(table.drop(columns="image_id"), image_distances(clean, moved), check_exact=True)


@pytest.mark.parametrize("ids", [["a", "c", "b"], ["a", "b"]], ids=["another order", "one fewer"])
def test_sets_of_other_images_are_refused_by_name(ids):
    images, _ = _pair(3)
    with pytest.raises(ValueError, match=r"moved .* does not hold the images of clean .* part at row [12]"):
        set_distances(_set(images, "clean", ["a", "b", "c"]), _set(images[: len(ids)], "moved", ids))


def test_a_nan_pixel_in_a_set_names_both_sets():
    clean, moved = _pair()
    moved[0] = np.inf
    with pytest.raises(NonFiniteError, match="clean against moved: non-finite"):
        set_distances(_set(clean, "clean"), _set(moved, "moved"))
