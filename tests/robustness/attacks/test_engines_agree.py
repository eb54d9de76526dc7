"""The engine `compiled` gives what the Adversarial Robustness Toolbox gives with the same batches, but for rounding.

Both compute the same gradients in float32, one operation after the other or fused, and how either is rounded is the
processor's own affair. Where an entry of the gradient is next to zero, or two of its parts tie, that rounding decides a
sign or a place, and with it the image. So two in a hundred images may differ, and the others no more than rounding can.
"""

from typing import Any

import numpy as np
import pytest

from dioptra_assets.robustness.attacks import FastGradientMethod, parse_attack
from dioptra_assets.robustness.image_set import ImageSet
from tests.robustness.attacks.conftest import attack_all, predict

AGREE = 0.98


def assert_agree(model: Any, ours: np.ndarray, reference: np.ndarray, atol: float) -> None:
    apart = np.abs(ours - reference).max(axis=(1, 2, 3))
    assert np.mean(apart <= atol) >= AGREE, f"largest differences {np.sort(apart)[-8:]}"
    assert np.mean(predict(model, ours) == predict(model, reference)) >= AGREE


def assert_moved(adversarial: np.ndarray, images: ImageSet, least: float) -> None:
    assert np.median(np.abs(adversarial - images.to_numpy()[0]).max(axis=(1, 2, 3))) > least


@pytest.mark.parametrize(
    ("norm", "eps", "goal"),
    [
        ("inf", 0.3, {}),
        ("inf", 0.03, {"targeted": True}),
        ("inf", 0.3, {"targeted": True, "target_class": 3}),
        (1, 0.7, {}),
        (1, 0.9, {"targeted": True}),
        (2, 0.5, {}),
        (2, 2.0, {"targeted": True}),
        (2, 0.5, {"targeted": True, "target_class": 3}),
    ],
    ids=str,
)
def test_engines_agree(norm: Any, eps: float, goal: dict[str, Any], conv_model: Any, digits: ImageSet) -> None:
    def attacked(engine: Any) -> Any:
        attack = FastGradientMethod(eps=eps, norm=norm, engine=engine, batch_size=64, **goal)
        return attack_all(attack, conv_model, digits)

    (ours, our_index), (reference, reference_index) = attacked("compiled"), attacked("art")
    assert_agree(conv_model, ours, reference, atol=1e-6 if norm != 2 else 2e-5)
    assert our_index.equals(reference_index)
    assert_moved(ours, digits, 0.02)


def test_in_l2_a_step_that_stays_inside_the_box_agrees(conv_model: Any, digits: ImageSet) -> None:
    """There the step is as long as eps, and ART asks in float32 whether it is longer."""
    grey = ImageSet.from_arrays(digits.to_numpy()[0] * 0.3 + 0.35, digits.labels, digits.class_names)
    ours, _ = attack_all(FastGradientMethod(eps=0.2, norm=2), conv_model, grey)
    reference, _ = attack_all(FastGradientMethod(eps=0.2, norm=2, engine="art"), conv_model, grey)
    assert_agree(conv_model, ours, reference, atol=2e-6)
    lengths = np.linalg.norm((ours - grey.to_numpy()[0]).reshape(len(ours), -1), axis=1)
    np.testing.assert_allclose(lengths, 0.2, rtol=1e-5)


@pytest.mark.parametrize("goal", [{}, {"targeted": True, "target_class": 3}], ids=str)
@pytest.mark.parametrize("method", ["bim", "pgd"])
def test_iterated_steps_agree_in_linf(method: str, goal: dict[str, Any], conv_model: Any, digits: ImageSet) -> None:
    common = {"method": method, "eps": 0.13, "eps_step": 0.03, "steps": 8, "batch_size": 128, **goal}
    common |= {"random_starts": 0} if method == "pgd" else {}
    ours, our_index = attack_all(parse_attack(common), conv_model, digits)
    reference, reference_index = attack_all(parse_attack(common | {"engine": "art"}), conv_model, digits)
    assert_agree(conv_model, ours, reference, atol=1e-6)
    assert our_index.equals(reference_index)
    assert_moved(ours, digits, 0.1)


@pytest.mark.parametrize("targeted", [False, True])
def test_iterated_steps_agree_in_l2(targeted: bool, conv_model: Any, digits: ImageSet) -> None:
    """There ART projects in float32, and each step passes its rounding on to the next."""
    common = {"method": "pgd", "eps": 1.1, "norm": 2, "steps": 8, "random_starts": 0, "targeted": targeted}
    ours, _ = attack_all(parse_attack(common), conv_model, digits)
    reference, _ = attack_all(parse_attack(common | {"engine": "art"}), conv_model, digits)
    assert_agree(conv_model, ours, reference, atol=2e-4)
    assert_moved(ours, digits, 0.1)
