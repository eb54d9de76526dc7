"""Projected gradient descent and the basic iterative method against answers worked out by hand, and their configs."""

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from dioptra_assets.robustness.attacks import (
    BasicIterativeMethod,
    FastGradientMethod,
    ProjectedGradientDescent,
    compiled,
    parse_attack,
    pgd,
)
from dioptra_assets.robustness.image_set import ImageSet
from tests.robustness.attacks.conftest import attack_all, linear_model, predict
from tests.robustness.attacks.test_fgm import WEIGHTS, grey, two_classes


def robust_accuracy(attack: Any, model: Any, images: ImageSet, seed: int = 0) -> float:
    return float((predict(model, attack_all(attack, model, images, seed)[0]) == images.labels).mean())


@pytest.mark.parametrize(("steps", "reached"), [(1, 0.1), (2, 0.2), (3, 0.25), (9, 0.25)])
def test_steps_add_up_and_stop_at_the_border_of_the_ball(steps: int, reached: float) -> None:
    attack = BasicIterativeMethod.model_construct(eps=0.25, eps_step=0.1, steps=steps)
    adversarial, index = attack_all(attack, two_classes(), grey(0.5, 0.5, labels=[0, 1]))
    np.testing.assert_allclose((adversarial[0] - 0.5).ravel(), reached * np.sign(WEIGHTS), atol=1e-6)
    np.testing.assert_allclose((adversarial[1] - 0.5).ravel(), -reached * np.sign(WEIGHTS), atol=1e-6)
    assert index["queries"].tolist() == [steps, steps]


def test_in_l2_the_steps_follow_the_gradient_to_the_border() -> None:
    attack = ProjectedGradientDescent(eps=0.3, norm=2, eps_step=0.2, steps=4, random_starts=0)
    adversarial, _ = attack_all(attack, two_classes(), grey(0.5))
    np.testing.assert_allclose((adversarial - 0.5).ravel(), 0.3 * WEIGHTS / 3, atol=1e-6)


def test_from_any_start_in_the_ball_the_best_corner_is_reached() -> None:
    attack = ProjectedGradientDescent(eps=0.2, steps=10, random_starts=1)
    adversarial, _ = attack_all(attack, two_classes(), grey(*[0.5] * 20))
    change = (adversarial - 0.5).reshape(20, 4)
    np.testing.assert_allclose(change[:, :3], np.tile(0.2 * np.sign(WEIGHTS)[:3], (20, 1)), atol=1e-6)
    # The model does not look at the last pixel: there the start shows, another one for each image.
    assert len(np.unique(change[:, 3])) == 20
    assert np.abs(change[:, 3]).max() <= 0.2


def test_targeted_moves_to_the_target_as_untargeted_moves_from_the_label() -> None:
    away, _ = attack_all(BasicIterativeMethod(eps=0.3), two_classes(), grey(0.5))
    towards, _ = attack_all(BasicIterativeMethod(eps=0.3, targeted=True), two_classes(), grey(0.5))
    np.testing.assert_allclose(towards, away, atol=1e-6)


def test_in_l2_a_tiny_gradient_still_gives_whole_steps() -> None:
    attack = ProjectedGradientDescent(eps=0.3, norm=2, steps=5, random_starts=0)
    adversarial, index = attack_all(attack, two_classes(scale=1e-25), grey(0.5))
    np.testing.assert_allclose((adversarial - 0.5).ravel(), 0.3 * WEIGHTS / 3, atol=1e-6)
    assert not index["zero_gradient"].any()


@pytest.mark.parametrize(("norm", "eps"), [("inf", 0.04), ("inf", 0.08), (2, 0.3), (2, 0.6)])
def test_many_steps_are_at_least_as_strong_as_one(norm: Any, eps: float, conv_model: Any, digits: ImageSet) -> None:
    once = robust_accuracy(FastGradientMethod(eps=eps, norm=norm), conv_model, digits)
    often = robust_accuracy(ProjectedGradientDescent(eps=eps, norm=norm, steps=10), conv_model, digits)
    assert often <= once
    assert once < 0.95


def test_twice_the_steps_change_nothing_and_a_large_eps_leaves_nothing(conv_model: Any, digits: ImageSet) -> None:
    def accuracy(eps: float, steps: int) -> float:
        return robust_accuracy(ProjectedGradientDescent(eps=eps, steps=steps), conv_model, digits)

    assert abs(accuracy(0.08, 20) - accuracy(0.08, 40)) <= 0.02
    assert accuracy(0.3, 20) == 0


def test_further_starts_keep_every_success_of_the_first_ones(conv_model: Any, digits: ImageSet) -> None:
    def wrong(starts: int) -> np.ndarray:
        attack = ProjectedGradientDescent(eps=0.08, steps=2, eps_step=0.05, random_starts=starts)
        adversarial, index = attack_all(attack, conv_model, digits)
        assert set(index["queries"]) == {2 if starts == 1 else starts * 3}
        return predict(conv_model, adversarial) != digits.labels

    one, three = wrong(1), wrong(3)
    assert (one <= three).all()
    assert three.sum() > one.sum()


def test_the_best_of_two_results_succeeds_and_then_has_the_higher_gain() -> None:
    def result(success: list[bool], gain: list[float], value: float) -> dict[str, np.ndarray]:
        return {
            "queries": np.full(4, 3),
            "images": np.full((4, 2, 2, 1), value),
            "success": np.array(success),
            "gain": np.array(gain),
            "finite": np.array([True, value == 0, True, True]),
        } | {"zero_gradient": np.array([True, True, value == 0, False])}

    first = result([False, True, True, False], [1, 1, 1, 1], 0)
    best = pgd._better(first, result([True, False, True, False], [0, 5, 2, 1], 1), np.arange(4))
    assert best["queries"].tolist() == [6] * 4
    assert best["images"][:, 0, 0, 0].tolist() == [1, 0, 1, 0]
    assert best["gain"].tolist() == [0, 1, 2, 1]
    assert best["finite"].tolist() == [True, False, True, True]
    assert best["zero_gradient"].tolist() == [True, True, False, False]


def test_another_seed_starts_elsewhere_and_the_basic_method_starts_at_the_image(
    dense_model: Any, digits: ImageSet
) -> None:
    def images(method: str, seed: int) -> np.ndarray:
        return attack_all(parse_attack({"method": method, "eps": 0.1, "steps": 2}), dense_model, digits, seed)[0]

    assert not np.array_equal(images("pgd", 1), images("pgd", 2))
    assert np.array_equal(images("bim", 1), images("bim", 2))


def test_a_start_is_drawn_uniformly_from_the_ball() -> None:
    generator = np.random.default_rng(0)
    cube = np.stack([pgd._within_ball(generator, (2, 2, 1), "inf") for _ in range(4000)])
    ball = np.stack([pgd._within_ball(generator, (2, 2, 1), 2) for _ in range(4000)]).reshape(4000, 4)
    np.testing.assert_allclose(np.quantile(cube, [0, 0.25, 0.5, 1]), [-1, -0.5, 0, 1], atol=0.03)
    # In four dimensions the share within a radius is its fourth power.
    np.testing.assert_allclose(
        np.quantile(np.linalg.norm(ball, axis=1) ** 4, [0.25, 0.5, 1]), [0.25, 0.5, 1], atol=0.03
    )
    np.testing.assert_allclose(ball.mean(axis=0), 0, atol=0.03)


def test_a_sweep_compiles_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = (
        linear_model(np.random.default_rng(0).normal(size=(16, 3))),
        ImageSet.from_arrays(np.full((2, 4, 4, 1), 0.5), [0, 1], "abc"),
    )
    compiles: list[Any] = []
    compile_batches = compiled.compile_batches
    monkeypatch.setattr(compiled, "compile_batches", lambda f: compiles.append(f) or compile_batches(f))
    for eps, steps in ((0.1, 3), (0.2, 3), (0.2, 6)):
        attack_all(BasicIterativeMethod(eps=eps, steps=steps), model, images)
    assert len(compiles) == 1


def test_left_out_a_step_is_two_and_a_half_times_its_share_of_eps() -> None:
    assert ProjectedGradientDescent(eps=0.4, steps=10).step_size == pytest.approx(0.1)
    assert ProjectedGradientDescent(eps=0.4, steps=10, eps_step=0.05).step_size == 0.05


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"method": "pgd"}, r"eps\n.*Field required"),
        ({"method": "pgd", "eps": 0}, r"eps\n.*greater than 0"),
        ({"method": "pgd", "eps": 8}, r"eps is 8 in the norm inf: at most 1 is allowed"),
        ({"method": "bim", "eps": 8}, r"eps\n.*less than or equal to 1"),
        ({"method": "bim", "eps": 0.1, "norm": 2}, r"norm\n.*not permitted"),
        ({"method": "pgd", "eps": 0.1, "norm": 1}, r"norm is 1: allowed are inf and 2"),
        ({"method": "pgd", "eps": 0.1, "norm": "l2"}, r"norm is 'l2': allowed are inf and 2"),
        ({"method": "pgd", "eps": 0.1, "steps": 0}, r"steps\n.*greater than or equal to 1"),
        ({"method": "pgd", "eps": 0.1, "steps": 2.5}, r"steps\n.*integer"),
        ({"method": "pgd", "eps": 0.1, "eps_step": 0}, r"eps_step\n.*greater than 0"),
        ({"method": "pgd", "eps": 0.3, "eps_step": 0.01, "steps": 7}, r"7 such steps reach 0.07.*at least 0.04"),
        ({"method": "pgd", "eps": 0.1, "random_starts": -1}, r"random_starts\n.*greater than or equal to 0"),
        (
            {"method": "pgd", "eps": 0.1, "engine": "art", "random_starts": 0, "early_stop": True},
            r"early_stop is true with the engine art: use the engine compiled",
        ),
        ({"method": "pgd", "eps": 0.1, "engine": "art"}, r"random_starts is 1 with the engine art: set it to 0"),
    ],
)
def test_a_wrong_value_is_refused_with_what_is_allowed(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        parse_attack(config)
