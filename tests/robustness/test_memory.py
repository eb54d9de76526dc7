"""How many images are attacked at once follows what one costs; the result does not."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from dioptra_assets.robustness import memory
from dioptra_assets.robustness.attacks import base, parse_attack, perturb_set
from dioptra_assets.robustness.attacks.base import AttackInput, Perturbed
from dioptra_assets.robustness.defences import GaussianAugmentation, SpatialSmoothing
from dioptra_assets.robustness.defences.adaptive import defended_model
from dioptra_assets.robustness.evaluation.predictions import predict
from dioptra_assets.robustness.image_set import ImageSet
from dioptra_assets.robustness.memory import declared_limit, halved, image_bytes, out_of_memory, rows_that_fit
from dioptra_assets.robustness.model_files.files import load_model, save_model
from dioptra_assets.robustness.training.architectures import build


@pytest.fixture(scope="module")
def model() -> Any:
    return build("shallow_net", (8, 8, 1), 3)


@pytest.fixture
def images() -> ImageSet:
    generator = np.random.default_rng(0)
    return ImageSet.from_arrays(generator.random((21, 8, 8, 1), np.float32), generator.integers(0, 3, 21), "abc")


def attacked(model: Any, images: ImageSet, said: list[str], **changes: Any) -> tuple[np.ndarray, list[int]]:
    attack = parse_attack({"method": "pgd", "eps": 0.1, "steps": 3} | changes)
    batches = list(perturb_set(attack, model, images, seed=0, class_count=3, log=said.append))
    return np.concatenate([batch.images for batch in batches]), [len(batch.images) for batch in batches]


def test_what_an_image_costs_follows_from_the_layers() -> None:
    flat = keras.Sequential([keras.Input((10, 10, 1)), keras.layers.Flatten(), keras.layers.Dense(5)])
    nested = keras.Sequential([keras.Input((10, 10, 1)), flat])
    own = memory.COPIES_OF_AN_IMAGE * 400
    assert image_bytes(flat) == own + int(memory.WITH_GRADIENTS * 4 * 105)
    assert image_bytes(flat, gradients=False) == own + 4 * 105
    assert image_bytes(nested) >= image_bytes(flat)
    assert image_bytes(build("le_net", (224, 224, 3), 10)) > 50 * image_bytes(build("le_net", (28, 28, 1), 10))


def test_a_model_out_of_a_file_costs_what_it_cost_before(tmp_path: Path) -> None:
    for name in ("le_net", "resnet50"):
        made = build(name, (32, 32, 3), 10)
        save_model(made, tmp_path / "model.keras")
        assert image_bytes(load_model(tmp_path / "model.keras")) == image_bytes(made)


def test_behind_noise_an_image_costs_its_draws(model: Any) -> None:
    drawn = defended_model(model, GaussianAugmentation(sigma=0.1), 0, 7)
    own = memory.COPIES_OF_AN_IMAGE * 256
    assert image_bytes(drawn) - own == pytest.approx(7 * (image_bytes(model) - own), abs=7)
    assert image_bytes(defended_model(model, SpatialSmoothing(), 0)) == image_bytes(model)


def test_a_batch_is_halved_until_it_fits_and_the_result_is_that_of_any_other(
    model: Any, images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    whole, rows = attacked(model, images, said)
    assert rows == [21]
    assert not said, "nothing to say of a batch that fits"
    monkeypatch.setattr(memory, "BATCH_BYTES", 9 * image_bytes(model))
    small, rows = attacked(model, images, said)
    assert rows == [8, 8, 5]
    assert len(said) == 1
    assert "256 images at once would take about" in said[0]
    assert "8 at once (DIOPTRA_ASSETS_MEMORY sets the limit)" in said[0]
    np.testing.assert_allclose(small, whole, rtol=0, atol=1e-6)
    np.testing.assert_allclose(small, attacked(model, images, [], batch_size=16)[0], rtol=0, atol=1e-6)


def test_predictions_keep_to_the_limit_too(model: Any, images: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = predict(model, images)
    monkeypatch.setattr(memory, "BATCH_BYTES", 4 * image_bytes(model, gradients=False))
    sizes: list[int] = []
    batches = ImageSet.batches
    monkeypatch.setattr(ImageSet, "batches", lambda images, size: sizes.append(size) or batches(images, size))
    assert predict(model, images)["prediction"].equals(whole["prediction"])
    assert sizes == [4]


def test_an_image_too_large_is_tried_alone(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "BATCH_BYTES", 1)
    assert rows_that_fit(model, 256) == 1


def test_a_batch_that_does_not_fit_after_all_is_halved_and_said(
    model: Any, images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    class ResourceExhaustedError(Exception):
        """As TensorFlow's."""

    tried: list[int] = []
    prepare = base.Attack.prepare

    def prepare_small(self: Any, model: Any, *, seed: int, class_count: int) -> Any:
        perturb = prepare(self, model, seed=seed, class_count=class_count)

        def small(batch: AttackInput) -> Perturbed:
            tried.append(len(batch.images))
            if len(batch.images) > 6:
                raise ResourceExhaustedError
            return perturb(batch)

        return small

    whole, _ = attacked(model, images, [])
    kind = type(parse_attack({"method": "pgd", "eps": 0.1}))
    prepare = kind.prepare
    monkeypatch.setattr(kind, "prepare", prepare_small)
    said: list[str] = []
    halves, rows = attacked(model, images, said, batch_size=20)
    assert rows == [20, 1], "what comes out is as asked for"
    assert tried == [20, 10, 5, 5, 5, 5, 1]
    assert said == [f"a batch did not fit in memory: {rows} images at once from here on" for rows in (10, 5)]
    np.testing.assert_allclose(halves, whole, rtol=0, atol=1e-6)


def test_another_error_is_no_lack_of_memory() -> None:
    assert out_of_memory(MemoryError())
    assert out_of_memory(RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate"))
    assert not out_of_memory(ValueError("eps"))
    assert [halved(rows) for rows in (256, 3, 1)] == [128, 2, 1]


@pytest.mark.parametrize(
    ("text", "size"), [("2 GB", 2e9), ("500MB", 5e8), ("1.5GiB", 1.5 * 2**30), ("4", 4e9), ("", None)]
)
def test_the_limit_is_read_as_people_write_it(text: str, size: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(memory.VARIABLE, text)
    assert declared_limit() == size


@pytest.mark.parametrize("text", ["much", "-1 GB", "0", "2 potatoes"])
def test_a_limit_that_is_none_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(memory.VARIABLE, text)
    with pytest.raises(ValueError, match=r"DIOPTRA_ASSETS_MEMORY is .*: allowed is a size above 0, such as 2 GB"):
        declared_limit()


def test_a_declared_limit_is_of_the_whole_process(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(memory.VARIABLE, "1 MB")
    assert rows_that_fit(model, 256) == 1
    monkeypatch.setenv(memory.VARIABLE, "900 GB")
    assert rows_that_fit(model, 256) == 256


def test_what_is_read_and_written_beside_a_batch_has_its_room(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_in_use", lambda: 700_000_000)
    for batches, rows in ((16 * image_bytes(model), 16), (9 * image_bytes(model), 8), (-1_000_000, 1)):
        monkeypatch.setattr(memory, "declared_limit", lambda: 700_000_000 + memory.BESIDE_BATCHES + batches)  # noqa: B023
        assert rows_that_fit(model, 256) == rows
