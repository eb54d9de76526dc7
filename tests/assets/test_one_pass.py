"""What is asked of the pixels of a set is asked while they pass: nothing is read twice."""

import numpy as np
import pytest

from dioptra_assets.assets import one_pass
from dioptra_assets.assets.adversarial_sets import _watched, shown_rows
from dioptra_assets.assets.one_pass import Change, Passing, held
from dioptra_assets.robustness.attacks.base import AttackedBatch
from dioptra_assets.robustness.image_set import ImageSet

N = 23


class Counted:
    """Pixels that count how often each image is read."""

    def __init__(self, images: np.ndarray) -> None:
        self.shape = images.shape
        self.reads = np.zeros(len(images), int)
        self._images = images

    def __getitem__(self, rows: slice) -> np.ndarray:
        self.reads[rows] += 1
        return self._images[rows]


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).random((N, 4, 3, 1), dtype=np.float32)


@pytest.mark.parametrize("sizes", [[N], [10, 10, 3], [4, 6, 5, 5, 3]])
def test_an_attack_reads_its_set_once_whatever_is_shown_of_it(images: np.ndarray, sizes: list[int]) -> None:
    counted = Counted(images)
    labels = np.arange(N) % 3
    image_set = ImageSet.from_arrays(images, labels, ["a", "b", "c"])
    made = images.copy()
    made[[0, 2, 20]] += 0.25
    index = image_set.index.assign(queries=np.arange(N), zero_gradient=np.arange(N) % 5 == 0)
    clean, shown = Passing(counted), shown_rows(image_set)
    change = Change(clean.shape, shown)

    def attacked():
        """Reads ten at a time and gives back other numbers of images, as an attack that runs out of memory does."""
        given = 0
        for size in sizes:
            while counted.reads.sum() < min(given + size, N):
                start = int(counted.reads.sum())
                clean[slice(start, min(start + 10, N))]
            yield AttackedBatch(made[given : given + size], index.iloc[given : given + size])
            given += size

    stored = np.concatenate([batch.images for batch in _watched(attacked(), clean, change)])
    np.testing.assert_array_equal(stored, made)
    assert (counted.reads == 1).all()
    assert change.share == pytest.approx(3 / N)
    assert change.largest == pytest.approx(0.25)
    assert (change.n, change.queries, change.without_gradient) == (N, sum(range(N)), 5)
    np.testing.assert_array_equal(change.before, images[shown])
    np.testing.assert_array_equal(change.after, made[shown])
    assert not clean._kept, "what has passed is let go"


def test_a_small_set_is_read_once_for_all_models_and_a_large_one_stays_where_it_is(
    images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(images)
    index = ImageSet.from_arrays(images, [0] * N, ["a"]).index
    image_set = ImageSet(counted, index, ("a",), "digits/adversarial_set")
    in_memory = held(image_set)
    for _ in range(3):
        np.testing.assert_array_equal(np.concatenate([batch.images for batch in in_memory.batches(7)]), images)
    assert (counted.reads == 1).all()
    assert in_memory.name == image_set.name
    monkeypatch.setattr(one_pass, "MOST_HELD", images.nbytes - 1)
    assert held(image_set) is image_set
