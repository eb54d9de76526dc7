"""The fast gradient method against answers worked out by hand, and its config."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from dioptra_assets.robustness.attacks import FastGradientMethod
from dioptra_assets.robustness.image_set import ImageSet
from tests.robustness.attacks.conftest import attack_all, linear_model, predict

# Two classes on 2x2 images: the loss of class 0 rises along WEIGHTS, that of class 1 against it.
WEIGHTS = np.array([1.0, -2.0, 2.0, 0.0])
CLASSES = ("zero", "one", "two")


def two_classes(scale: float = 1.0, bias: float = 0.0) -> Any:
    return linear_model(np.stack([np.zeros(4), scale * WEIGHTS], axis=1), np.array([0.0, bias]))


def grey(*values: float, labels: list[int] | None = None) -> ImageSet:
    images = np.stack([np.full((2, 2, 1), value, np.float32) for value in values])
    return ImageSet.from_arrays(images, labels or [0] * len(values), CLASSES[:2])


@pytest.mark.parametrize("engine", ["compiled", "art"])
@pytest.mark.parametrize(
    ("norm", "step"),
    [("inf", [1, -1, 1, 0]), (2, [1 / 3, -2 / 3, 2 / 3, 0]), (1, [0, -1, 0, 0])],
)
def test_the_step_raises_the_loss_most_in_its_norm(engine: Any, norm: Any, step: list[float]) -> None:
    attack = FastGradientMethod(eps=0.3, norm=norm, engine=engine)
    adversarial, _ = attack_all(attack, two_classes(), grey(0.5, 0.5, labels=[0, 1]))
    change = (adversarial - 0.5).reshape(2, 4)
    np.testing.assert_allclose(change[0], 0.3 * np.array(step), atol=1e-7)
    np.testing.assert_allclose(change[1], -0.3 * np.array(step), atol=1e-7)


@pytest.mark.parametrize("norm", ["inf", 1, 2])
def test_targeted_moves_to_the_target_as_untargeted_moves_from_the_label(norm: Any) -> None:
    away, _ = attack_all(FastGradientMethod(eps=0.3, norm=norm), two_classes(), grey(0.5, labels=[0]))
    towards, index = attack_all(
        FastGradientMethod(eps=0.3, norm=norm, targeted=True), two_classes(), grey(0.5, labels=[0])
    )
    np.testing.assert_allclose(towards, away, atol=1e-7)
    assert index["target_class"].tolist() == [1]


def test_without_a_target_class_the_target_is_the_next_class_and_after_the_last_the_first() -> None:
    attack = FastGradientMethod(eps=0.3, targeted=True)
    assert attack.targets(np.array([0, 1, 2]), 3).tolist() == [1, 2, 0]


@pytest.mark.parametrize("engine", ["compiled", "art"])
def test_an_image_of_the_target_class_is_left_as_it_is(engine: Any) -> None:
    attack = FastGradientMethod(eps=0.3, targeted=True, target_class=1, engine=engine)
    adversarial, index = attack_all(attack, two_classes(), grey(0.5, 0.5, labels=[1, 0]))
    assert index["target_class"].isna().tolist() == [True, False]
    assert (adversarial[0] == 0.5).all()
    assert (adversarial[1] != 0.5).any()


def test_the_step_is_clipped_to_the_box() -> None:
    adversarial, _ = attack_all(FastGradientMethod(eps=0.3), two_classes(), grey(0.9))
    np.testing.assert_allclose(adversarial.ravel(), [1.0, 0.6, 1.0, 0.9], atol=1e-7)


def test_in_l2_a_tiny_gradient_still_gives_a_whole_step() -> None:
    """Squares of gradients below 1e-23 are zero in float32, and a confident model has such gradients."""
    attack = FastGradientMethod(eps=0.3, norm=2)
    adversarial, index = attack_all(attack, two_classes(scale=1e-25), grey(0.5))
    np.testing.assert_allclose((adversarial - 0.5).ravel(), 0.3 * WEIGHTS / 3, atol=1e-7)
    assert not index["zero_gradient"].any()


def test_eps_is_reached_exactly_by_the_last_level() -> None:
    assert FastGradientMethod(eps=0.3, eps_step=0.1, minimal=True).levels() == [0.1, 0.2, 0.3]
    assert FastGradientMethod(eps=0.3, eps_step=0.01, minimal=True).levels()[-2:] == [0.29, 0.3]
    assert FastGradientMethod(eps=0.25, eps_step=0.1, minimal=True).levels() == [0.1, 0.2, 0.25]
    assert FastGradientMethod(eps=0.1, eps_step=0.1, minimal=True).levels() == [0.1]


@pytest.mark.parametrize(("bias", "level"), [(-0.9, 1), (-1.2, 2), (-1.7, 3), (-1.99, 3)])
def test_minimal_takes_the_smallest_level_that_succeeds(bias: float, level: int) -> None:
    # On grey 0.5 the second logit is 0.5 + bias, and a step of eps in Linf adds 5 eps to it.
    attack = FastGradientMethod(eps=0.3, eps_step=0.1, minimal=True)
    adversarial, index = attack_all(attack, two_classes(bias=bias), grey(0.5))
    np.testing.assert_allclose((adversarial - 0.5).ravel(), 0.1 * level * np.sign(WEIGHTS), atol=1e-7)
    assert index["found"].tolist() == [True]
    assert index["queries"].tolist() == [1 + level]


def test_minimal_leaves_images_that_are_already_wrong_or_out_of_reach() -> None:
    attack = FastGradientMethod(eps=0.3, eps_step=0.1, minimal=True)
    # The second logit is 0.5 - 2.2: label 1 is wrong at once, and 0.3 * 5 is too little to make label 0 wrong.
    model = two_classes(bias=-2.2)
    adversarial, index = attack_all(attack, model, grey(0.5, 0.5, labels=[1, 0]))
    assert (adversarial == 0.5).all()
    assert index["found"].tolist() == [True, False]
    assert index["queries"].tolist() == [1, 4]
    assert predict(model, adversarial).tolist() == [0, 0]


def test_minimal_and_targeted_stops_at_the_target(dense_model: Any, digits: ImageSet) -> None:
    attack = FastGradientMethod(eps=0.6, eps_step=0.05, minimal=True, targeted=True)
    adversarial, index = attack_all(attack, dense_model, digits)
    reached = predict(dense_model, adversarial) == index["target_class"].to_numpy(np.int64)
    assert 0.2 < reached.mean() < 1
    assert (index["found"] == reached).all()
    assert np.array_equal(adversarial[~reached], digits.to_numpy()[0][~reached])


def test_minimal_succeeds_wherever_one_step_of_a_level_does(dense_model: Any, digits: ImageSet) -> None:
    levels = FastGradientMethod(eps=0.2, eps_step=0.04, minimal=True)
    adversarial, index = attack_all(levels, dense_model, digits)
    images = digits.to_numpy()[0]
    wrong = predict(dense_model, images) != digits.labels
    expected = np.zeros(len(digits))
    for eps in reversed(levels.levels()):
        stepped, _ = attack_all(FastGradientMethod(eps=eps), dense_model, digits)
        expected[predict(dense_model, stepped) != digits.labels] = eps
    expected[wrong] = 0
    size = np.abs(adversarial - images).max(axis=(1, 2, 3))
    np.testing.assert_allclose(size, expected, atol=1e-6)
    assert (index["found"] == ((expected > 0) | wrong)).all()


@pytest.mark.parametrize("norm", ["inf", float("inf"), 1, "1", 1.0, 2, "2", 2.0])
def test_norms_are_read_however_yaml_writes_them(norm: Any) -> None:
    assert FastGradientMethod(eps=0.1, norm=norm).norm == {"inf": "inf", "1": 1, "2": 2}[f"{float(norm):g}"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, r"eps\n.*Field required"),
        ({"eps": -1}, r"eps\n.*greater than 0.*input_value=-1"),
        ({"eps": 0}, r"eps\n.*greater than 0"),
        ({"eps": float("nan")}, r"eps\n.*finite"),
        ({"eps": 0.1, "norm": 3}, r"norm is 3: allowed are inf, 1 and 2"),
        ({"eps": 0.1, "norm": "l2"}, r"norm is 'l2': allowed are inf, 1 and 2"),
        ({"eps": 0.1, "norm": True}, r"norm is True: allowed are inf, 1 and 2"),
        ({"eps": 8}, r"eps is 8 in the norm inf: at most 1 is allowed"),
        ({"eps": 1.5, "norm": 1}, r"eps is 1.5 in the norm 1: at most 1 is allowed, a step changes one channel of one"),
        ({"eps": 0.05, "minimal": 1}, r"eps_step is 0.1, but eps is 0.05: with minimal at most eps is allowed"),
        ({"eps": 1, "minimal": 1, "eps_step": 1e-5}, r"eps_step is 1e-05, .*at least 0.001 is allowed"),
        ({"eps": 0.1, "eps_step": 0}, r"eps_step\n.*greater than 0"),
        ({"eps": 0.3, "minimal": 2}, r"minimal\n.*input_value=2"),
        ({"eps": 0.3, "minimal": 1, "engine": "art"}, r"minimal is true .*art: use the engine compiled"),
        ({"eps": 0.3, "target_class": 3}, r"target_class is 3, but targeted is false"),
    ],
)
def test_a_wrong_value_is_refused_with_what_is_allowed(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        FastGradientMethod(**config)


def test_eps_step_is_without_effect_when_not_minimal() -> None:
    assert FastGradientMethod(eps=0.05).eps_step == 0.1
    assert FastGradientMethod(eps=2, norm=2).eps == 2


JAX = """
import sys, numpy as np
from tests.robustness.attacks.conftest import attack_all, linear_model
from dioptra_assets.robustness.attacks import FastGradientMethod
from dioptra_assets.robustness.image_set import ImageSet
random = np.random.default_rng(0)
model = linear_model(random.normal(size=(16, 3)))
images = ImageSet.from_arrays(random.random((11, 4, 4, 1)), random.integers(0, 3, 11), "abc")
attacks = [FastGradientMethod(eps=0.3, norm=norm, minimal=minimal, targeted=targeted, batch_size=4)
           for norm in ("inf", 1, 2) for minimal in (False, True) for targeted in (False, True)]
np.save(sys.argv[1], np.stack([attack_all(attack, model, images)[0] for attack in attacks]))
"""


@pytest.mark.slow
def test_jax_gives_what_tensorflow_gives(tmp_path: Path) -> None:
    pytest.importorskip("jax")
    for backend in ("tensorflow", "jax"):
        environment = os.environ | {"KERAS_BACKEND": backend, "PYTHONPATH": os.pathsep.join(sys.path)}
        subprocess.run([sys.executable, "-c", JAX, str(tmp_path / f"{backend}.npy")], env=environment, check=True)
    np.testing.assert_allclose(np.load(tmp_path / "jax.npy"), np.load(tmp_path / "tensorflow.npy"), atol=1e-6)
