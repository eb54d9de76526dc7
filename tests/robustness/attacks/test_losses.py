"""The losses an attack can climb: their values by hand, and that a model cannot hide behind large logits."""

from typing import Any

import keras
import numpy as np
import pytest
from pydantic import ValidationError

from dioptra_assets.robustness.attacks import parse_attack, perturb_set
from dioptra_assets.robustness.attacks.losses import Loss, loss_of
from dioptra_assets.robustness.image_set import ImageSet
from tests.robustness.attacks.conftest import attack_all, linear_model, predict

LOGITS = np.array([[1.0, 5.0, 2.0, -1.0], [3.0, 3.5, 0.0, 1.0]], np.float32)


def values(loss: Loss, goals: list[int], labels: list[int], *, targeted: bool = False, logits: Any = LOGITS) -> Any:
    given = np.array(goals, np.int32), np.array(labels, np.int32), logits.shape[1]
    return np.asarray(loss_of(loss, *given, targeted=targeted)(keras.ops.convert_to_tensor(logits)))


def scaled(model: Any, factor: float) -> Any:
    """The same classifier, with other logits."""
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    copy.layers[-1].set_weights([factor * weights for weights in copy.layers[-1].get_weights()])
    return copy


def robust_accuracy(config: dict[str, Any], model: Any, images: ImageSet) -> float:
    return float((predict(model, attack_all(parse_attack(config), model, images)[0]) == images.labels).mean())


def test_margin_is_the_largest_other_logit_less_that_of_the_goal() -> None:
    np.testing.assert_allclose(values("margin", [1, 0], [1, 0]), [2 - 5, 3.5 - 3])
    np.testing.assert_allclose(values("margin", [0, 2], [1, 0], targeted=True), [5 - 1, 3.5 - 0])


def test_dlr_is_the_margin_over_the_distance_of_the_largest_logits() -> None:
    np.testing.assert_allclose(values("dlr", [1, 0], [1, 0]), [(2 - 5) / (5 - 1), (3.5 - 3) / (3.5 - 1)])
    np.testing.assert_allclose(
        values("dlr", [0, 2], [1, 0], targeted=True), [(5 - 1) / (5 - 0), (3 - 0) / (3.5 - 0.5)], rtol=1e-6
    )


@pytest.mark.parametrize("targeted", [False, True])
def test_dlr_depends_neither_on_the_scale_of_the_logits_nor_on_a_constant(targeted: bool) -> None:
    same = values("dlr", [1, 0], [1, 2], targeted=targeted)
    moved = values("dlr", [1, 0], [1, 2], targeted=targeted, logits=1000 * LOGITS - 70)
    np.testing.assert_allclose(moved, same, rtol=1e-4)


def test_equal_logits_have_no_dlr_and_no_gradient_but_numbers() -> None:
    assert values("dlr", [1], [1], logits=np.zeros((1, 3), np.float32)).tolist() == [0]


@pytest.mark.parametrize("loss", ["margin", "dlr"])
@pytest.mark.parametrize(
    "config",
    [
        {"method": "fgm", "eps": 0.1},
        {"method": "fgm", "eps": 0.8, "norm": 2},
        {"method": "pgd", "eps": 0.04, "steps": 8},
        {"method": "bim", "eps": 0.06, "steps": 5, "targeted": True},
    ],
    ids=str,
)
def test_large_logits_are_no_defence(config: dict[str, Any], loss: str, conv_model: Any, digits: ImageSet) -> None:
    config = config | {"loss": loss}
    unscaled = robust_accuracy(config, conv_model, digits)
    assert 0.02 < unscaled < 0.9, "the attack is neither hopeless nor overwhelming, so a difference would show"
    assert [robust_accuracy(config, scaled(conv_model, by), digits) for by in (7, 100)] == [unscaled] * 2


def test_against_the_cross_entropy_they_look_like_one(conv_model: Any, digits: ImageSet) -> None:
    config, hidden = {"method": "fgm", "eps": 0.1}, scaled(conv_model, 100)
    assert robust_accuracy(config, hidden, digits) > robust_accuracy(config, conv_model, digits) + 0.1
    assert attack_all(parse_attack(config), hidden, digits)[1]["zero_gradient"].mean() > 0.1
    assert not attack_all(parse_attack(config | {"loss": "margin"}), hidden, digits)[1]["zero_gradient"].any()


@pytest.mark.parametrize("method", ["fgm", "pgd", "bim"])
def test_dlr_asks_for_enough_classes(method: str) -> None:
    def refuse(classes: int, **goal: Any) -> None:
        images = ImageSet.from_arrays(np.full((2, 2, 2, 1), 0.5), [0, 1], "abcd"[:classes])
        attack = parse_attack({"method": method, "eps": 0.1, "loss": "dlr"} | goal)
        model = linear_model(np.random.default_rng(0).normal(size=(4, classes)))
        list(perturb_set(attack, model, images, seed=0, class_count=classes))

    refuse(3)
    refuse(4, targeted=True)
    with pytest.raises(ValueError, match=r"loss is dlr, which takes the third .* there are 2 classes: at least 3 are"):
        refuse(2)
    with pytest.raises(ValueError, match="there are 3 classes: at least 4 are allowed with targeted, use the loss mar"):
        refuse(3, targeted=True)


def test_a_margin_of_two_classes_is_enough() -> None:
    images = ImageSet.from_arrays(np.full((2, 2, 2, 1), 0.5), [0, 1], "ab")
    model = linear_model(np.array([[0.0, 1.0], [0.0, -2.0], [0.0, 2.0], [0.0, 0.0]]))
    adversarial, _ = attack_all(parse_attack({"method": "fgm", "eps": 0.2, "loss": "margin"}), model, images)
    np.testing.assert_allclose((adversarial[0] - 0.5).ravel(), [0.2, -0.2, 0.2, 0], atol=1e-6)
    np.testing.assert_allclose((adversarial[1] - 0.5).ravel(), [-0.2, 0.2, -0.2, 0], atol=1e-6)


@pytest.mark.parametrize("method", ["fgm", "pgd", "bim"])
def test_other_losses_are_of_the_engine_compiled(method: str) -> None:
    entry = {"method": method, "eps": 0.1, "engine": "art"} | ({"random_starts": 0} if method == "pgd" else {})
    with pytest.raises(ValidationError, match="loss is margin with the engine art: use the engine compiled"):
        parse_attack(entry | {"loss": "margin"})
    with pytest.raises(ValidationError, match=r"loss\n.*'cross_entropy', 'margin' or 'dlr'"):
        parse_attack({"method": method, "eps": 0.1, "loss": "hinge"})
