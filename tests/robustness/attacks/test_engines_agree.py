"""The engine `compiled` gives, bit for bit, what the Adversarial Robustness Toolbox gives with the same batches."""

from typing import Any

import numpy as np
import pytest

from dioptra_assets.robustness.attacks import FastGradientMethod, parse_attack
from dioptra_assets.robustness.image_set import ImageSet
from tests.robustness.attacks.conftest import attack_all


@pytest.mark.parametrize("goal", [{}, {"targeted": True}, {"targeted": True, "target_class": 3}], ids=str)
@pytest.mark.parametrize(("norm", "eps"), [("inf", 0.3), ("inf", 0.03), (1, 0.7), (1, 3.0), (2, 0.5), (2, 2.0)])
def test_engines_agree(norm: Any, eps: float, goal: dict[str, Any], conv_model: Any, digits: ImageSet) -> None:
    def attacked(engine: Any) -> Any:
        attack = FastGradientMethod(eps=eps, norm=norm, engine=engine, batch_size=64, **goal)
        return attack_all(attack, conv_model, digits)

    (ours, our_index), (reference, reference_index) = attacked("compiled"), attacked("art")
    assert np.array_equal(ours, reference)
    assert our_index.equals(reference_index)
    assert (ours != digits.to_numpy()[0]).any()


def test_in_l2_a_step_that_stays_inside_the_box_agrees_to_one_rounding(conv_model: Any, digits: ImageSet) -> None:
    """There the step is as long as eps, and ART asks in float32 whether it is longer."""
    grey = ImageSet.from_arrays(digits.to_numpy()[0] * 0.3 + 0.35, digits.labels, digits.class_names)
    ours, _ = attack_all(FastGradientMethod(eps=0.2, norm=2), conv_model, grey)
    reference, _ = attack_all(FastGradientMethod(eps=0.2, norm=2, engine="art"), conv_model, grey)
    np.testing.assert_allclose(ours, reference, rtol=0, atol=2**-24)


@pytest.mark.parametrize("goal", [{}, {"targeted": True, "target_class": 3}], ids=str)
@pytest.mark.parametrize("method", ["bim", "pgd"])
def test_iterated_steps_agree_to_the_last_bit_in_linf(
    method: str, goal: dict[str, Any], conv_model: Any, digits: ImageSet
) -> None:
    common = {"method": method, "eps": 0.13, "eps_step": 0.03, "steps": 8, "batch_size": 128, **goal}
    common |= {"random_starts": 0} if method == "pgd" else {}
    ours, our_index = attack_all(parse_attack(common), conv_model, digits)
    reference, reference_index = attack_all(parse_attack(common | {"engine": "art"}), conv_model, digits)
    assert np.array_equal(ours, reference)
    assert our_index.equals(reference_index)
    assert (ours != digits.to_numpy()[0]).any()


@pytest.mark.parametrize("targeted", [False, True])
def test_iterated_steps_agree_in_l2_but_for_rounding(targeted: bool, conv_model: Any, digits: ImageSet) -> None:
    """There ART projects in float32, and each step passes its rounding on to the next."""
    common = {"method": "pgd", "eps": 1.1, "norm": 2, "steps": 8, "random_starts": 0, "targeted": targeted}
    ours, _ = attack_all(parse_attack(common), conv_model, digits)
    reference, _ = attack_all(parse_attack(common | {"engine": "art"}), conv_model, digits)
    np.testing.assert_allclose(ours, reference, rtol=0, atol=2e-5)
    assert np.abs(ours - digits.to_numpy()[0]).max() > 0.1
