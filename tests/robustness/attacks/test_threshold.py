"""The threshold attack: what it may change, and what it cannot reach."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from dioptra_assets.robustness.attacks import ThresholdAttack
from dioptra_assets.robustness.image_set import ImageSet
from tests.robustness.attacks.conftest import attack_all, linear_model, predict

WEIGHTS = np.array([1.0, -2.0, 2.0, 0.0])


def two_classes(bias: float) -> Any:
    """Class 0 is predicted where the weighted sum is below 0."""
    return linear_model(np.stack([np.zeros(4), WEIGHTS], axis=1), np.array([0.0, bias]))


def grey(*steps: float) -> ImageSet:
    images = np.stack([np.full((2, 2, 1), step / 255, np.float32) for step in steps])
    return ImageSet.from_arrays(images, [0] * len(steps), ("zero", "one"))


@pytest.mark.parametrize("es", [0, 1])
@pytest.mark.parametrize("value", [100.0, 100.5, 0.0, 255.0])
def test_pixels_move_by_whole_steps_within_th(es: Any, value: float) -> None:
    images = grey(*[value] * 12)
    # At most 5 th / 255 can be gained (fewer at the ends of the range): ask for 4 in 5 of what can be.
    gain = {0.0: 3, 255.0: 2}.get(value, 5) * 10 / 255
    adversarial, index = attack_all(ThresholdAttack(th=10, es=es), two_classes(-value / 255 - 0.8 * gain), images)
    steps = (adversarial.astype(np.float64) - images.to_numpy()[0]) * 255
    assert index["found"].all()
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-4)
    assert np.abs(steps).max() < 10 + 1e-4
    assert (np.rint(steps).reshape(12, 4) @ WEIGHTS > 0.8 * gain * 255).all()


@pytest.mark.parametrize("es", [0, 1])
def test_what_is_out_of_reach_or_already_there_comes_back_untouched(es: Any) -> None:
    images = grey(100)
    for bias, queries in [(-100 / 255 - 5.1 * 10 / 255, None), (0.0, 1)]:
        adversarial, index = attack_all(ThresholdAttack(th=10, es=es, max_iter=10), two_classes(bias), images)
        assert adversarial.tobytes() == images.to_numpy()[0].tobytes()
        assert index["found"].tolist() == [queries == 1]
        assert (index["queries"][0] == 1) == (queries == 1)


@pytest.mark.parametrize("es", [0, 1])
def test_found_says_what_the_model_says(es: Any, dense_model: Any, digits: ImageSet) -> None:
    attack = ThresholdAttack(th=80, es=es, max_iter=15, population=20, targeted=True)
    adversarial, index = attack_all(attack, dense_model, digits)
    there = predict(dense_model, adversarial) == index["target_class"].to_numpy()
    assert (index["found"] == there).all()
    assert 0.02 < there.mean() < 0.95


@pytest.mark.parametrize("value", [0.0, 3.0, 128.0, 252.0, 255.0])
def test_no_part_of_the_search_is_spent_on_steps_that_the_box_takes_back(value: float) -> None:
    """The numbers of a pixel are spread evenly over the values it can take."""
    changes = ThresholdAttack(th=5).changes((1, 1, 1))
    values = changes.apply(np.full((11, 1, 1, 1), value / 255, np.float32), np.arange(11)[:, None])
    steps, times = np.unique(np.rint(values * 255), return_counts=True)
    assert steps.tolist() == list(range(max(0, int(value) - 5), min(255, int(value) + 5) + 1))
    assert times.max() - times.min() <= 1


def test_as_many_images_fall_as_with_art_but_for_chance(dense_model: Any, digits: ImageSet) -> None:
    pixels, labels = digits.to_numpy()
    images = ImageSet.from_arrays(np.rint(pixels[:16] * 255) / 255, labels[:16], digits.class_names)

    def attacked(engine: Any, seed: int = 0) -> Any:
        return attack_all(ThresholdAttack(th=50, es=1, max_iter=6, engine=engine), dense_model, images, seed)

    adversarial, reference = attacked("art")
    ours = [attacked("compiled", seed)[1]["found"].sum() for seed in range(4)]
    assert reference["found"].sum() > 3
    assert np.mean(ours) > reference["found"].sum() - 3
    assert np.abs(adversarial - images.to_numpy()[0]).max() < 50 / 255 + 1e-6


def test_a_search_beyond_memory_is_refused_with_a_population_that_is_not() -> None:
    photographs: Any = SimpleNamespace(input_shape=(None, 224, 224, 3))
    attack = ThresholdAttack(th=5, es=1)
    with pytest.raises(ValueError, match=r"threshold with es 1 .* takes \d+ GB: set es to 0, or population to at most"):
        attack.prepare(photographs, seed=0, class_count=10)
    attack.model_copy(update={"population": 200}).prepare(photographs, seed=0, class_count=10)
    ThresholdAttack(th=5, es=0).prepare(photographs, seed=0, class_count=10)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, r"th\n.*Field required"),
        ({"th": 0}, r"th\n.*greater than or equal to 1"),
        ({"th": 256}, r"th\n.*less than or equal to 255"),
        ({"th": 0.1}, r"th\n.*valid integer"),
        ({"th": 1, "es": "cma"}, r"es\n.*0 or 1"),
    ],
)
def test_a_wrong_value_is_refused_with_what_is_allowed(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ThresholdAttack(**config)
