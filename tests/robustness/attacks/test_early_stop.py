"""An attack that lets images go as they fall: the same images fall, sooner, and those that stand are unchanged."""

from typing import Any

import numpy as np
import pytest

from dioptra_assets.robustness.attacks import BasicIterativeMethod, ProjectedGradientDescent, parse_attack
from dioptra_assets.robustness.image_set import ImageSet
from tests.robustness.attacks.conftest import attack_all, predict
from tests.robustness.attacks.test_fgm import WEIGHTS, grey, two_classes


def there(config: dict[str, Any], model: Any, adversarial: np.ndarray, images: ImageSet) -> np.ndarray:
    """Which images are where the attack wants them."""
    seen = predict(model, adversarial)
    return seen == (images.labels + 1) % 10 if config.get("targeted") else seen != images.labels


@pytest.mark.parametrize(
    "config",
    [
        {"method": "pgd", "eps": 0.08, "steps": 25},
        {"method": "pgd", "eps": 0.7, "norm": 2, "steps": 10, "loss": "margin", "random_starts": 3},
        {"method": "bim", "eps": 0.12, "steps": 10, "targeted": True},
    ],
    ids=str,
)
def test_what_falls_to_all_steps_falls_and_what_stands_is_the_same_image(
    config: dict[str, Any], conv_model: Any, digits: ImageSet
) -> None:
    whole, all_asked = attack_all(parse_attack(config), conv_model, digits)
    early, asked = attack_all(parse_attack(config | {"early_stop": True}), conv_model, digits)
    fell, fell_early = (there(config, conv_model, adversarial, digits) for adversarial in (whole, early))
    assert 0.05 < fell.mean() < 0.98, "some fall and some stand"
    assert (fell <= fell_early).all(), "an attack that stops is never weaker"
    assert (fell_early & ~fell).mean() <= 0.02, "hardly an image falls on the way and stands up again"
    np.testing.assert_allclose(early[~fell_early], whole[~fell_early], rtol=0, atol=1e-6)
    assert (asked["queries"] <= all_asked["queries"]).all()
    assert asked["queries"][~fell_early].eq(all_asked["queries"][~fell_early]).all()
    assert asked["queries"].mean() < all_asked["queries"].mean()


@pytest.mark.parametrize(("bias", "steps"), [(-0.2, 1), (0.1, 2), (0.8, 3), (1.6, 5)])
def test_an_image_is_left_at_the_first_step_that_is_wrong(bias: float, steps: int) -> None:
    """The logit of class 1 begins at `bias` below that of class 0, and gains 0.5 with each step of 0.1."""
    model = two_classes(bias=-0.5 - bias)
    attack = BasicIterativeMethod(eps=0.4, eps_step=0.1, steps=5, early_stop=True)
    adversarial, index = attack_all(attack, model, grey(0.5))
    moved = min(steps - 1, 4)
    np.testing.assert_allclose((adversarial[0] - 0.5).ravel(), 0.1 * moved * np.sign(WEIGHTS), atol=1e-6)
    assert index["queries"].tolist() == [steps]


def test_further_starts_are_for_images_that_still_stand(conv_model: Any, digits: ImageSet) -> None:
    def attacked(starts: int) -> tuple[np.ndarray, np.ndarray]:
        attack = ProjectedGradientDescent(eps=0.08, steps=4, eps_step=0.05, random_starts=starts, early_stop=True)
        adversarial, index = attack_all(attack, conv_model, digits)
        return predict(conv_model, adversarial) != digits.labels, index["queries"].to_numpy()

    (two, asked), (four, asked_further) = attacked(2), attacked(4)
    assert (two <= four).all()
    assert np.array_equal(asked[two], asked_further[two])
    assert (asked_further[~two] > asked[~two]).all()
