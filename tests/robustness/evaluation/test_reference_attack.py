"""The reference attack takes the steps of the attack where float32 can tell them, and still takes them where not."""

import numpy as np
import pytest

from dioptra_assets.robustness.attacks import (
    Attack,
    BasicIterativeMethod,
    FastGradientMethod,
    PixelAttack,
    ProjectedGradientDescent,
    perturb_set,
)
from dioptra_assets.robustness.evaluation.predictions import predict
from dioptra_assets.robustness.evaluation.reference_attack import (
    ReferenceAttacks,
    allowed_gap,
    has_reference,
    looked_at,
)
from dioptra_assets.robustness.image_set import ImageSet

RNG = np.random.default_rng(1)
IMAGES = RNG.uniform(0.2, 0.8, (60, 4, 4, 1)).astype(np.float32)
WEIGHTS = RNG.normal(0, 1, (16, 3)).astype(np.float32)


def model(scale: float):
    import keras

    built = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(3)])
    built.layers[-1].set_weights([scale * WEIGHTS, np.zeros(3, np.float32)])
    return built


def images() -> ImageSet:
    labels = (IMAGES.reshape(60, -1) @ WEIGHTS).argmax(axis=1)
    return ImageSet.from_arrays(IMAGES, labels, ("x", "y", "z"))


def attacked(attack: Attack, scale: float) -> np.ndarray:
    batches = [batch.images for batch in perturb_set(attack, model(scale), images(), seed=1, class_count=3)]
    moved = ImageSet.from_arrays(np.concatenate(batches), images().labels, ("x", "y", "z"))
    table = predict(model(scale), moved)
    return (table["prediction"] == table["label"]).to_numpy()


@pytest.mark.parametrize(
    "attack",
    [
        FastGradientMethod(eps=0.05),
        FastGradientMethod(eps=0.2, norm=2),
        FastGradientMethod(eps=0.05, targeted=True, target_class=1),
        BasicIterativeMethod(eps=0.05, steps=3),
    ],
    ids=lambda attack: f"{attack.method}{' targeted' if attack.targeted else ''} {attack.threat_model().norm}",
)
def test_where_float32_can_tell_the_exact_loss_takes_the_steps_of_the_cross_entropy(attack: Attack) -> None:
    right = ReferenceAttacks(model(1), images(), seed=1).right(attack)
    assert list(right["image_id"]) == list(images().index["image_id"])
    np.testing.assert_array_equal(right["exact"], attacked(attack, 1))
    assert 0 < right["exact"].mean() < 1


def test_large_logits_stop_the_attack_and_not_its_reference() -> None:
    attack = FastGradientMethod(eps=0.1)
    plain, masked = (ReferenceAttacks(model(scale), images(), seed=1).right(attack) for scale in (1, 1e4))
    assert attacked(attack, 1e4).mean() > masked["exact"].mean() + 0.2
    assert abs(masked["exact"].mean() - plain["exact"].mean()) < 0.1
    np.testing.assert_array_equal(masked["margin"], plain["margin"])


def test_random_starts_follow_from_the_seed() -> None:
    attack = ProjectedGradientDescent(eps=0.1, steps=2, norm=2)
    one, again = (ReferenceAttacks(model(1), images(), seed=5).right(attack) for _ in range(2))
    assert one.equals(again)


def test_which_attacks_have_one_and_how_many_images_it_looks_at() -> None:
    assert has_reference(FastGradientMethod(eps=0.1)) and not has_reference(PixelAttack(th=1))
    assert list(looked_at(FastGradientMethod(eps=0.1), 3)) == [0, 1, 2]
    rows = looked_at(FastGradientMethod(eps=0.1), 10_000)
    assert (len(rows), rows[0], rows[-1]) == (500, 0, 9_999) and (np.diff(rows) > 0).all()
    assert len(looked_at(ProjectedGradientDescent(eps=0.1, steps=40), 10_000)) == 250
    assert allowed_gap(FastGradientMethod(eps=0.1), "exact") == 0 < allowed_gap(FastGradientMethod(eps=0.1), "margin")
