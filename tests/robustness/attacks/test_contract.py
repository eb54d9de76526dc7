"""What every attack must hold to, one table of attacks against one list of contracts."""

import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from dioptra_assets.robustness.attacks import ATTACKS, Attack, NonFiniteError, parse_attack, perturb_set
from dioptra_assets.robustness.image_set import ImageSet
from tests.robustness.attacks.conftest import attack_all, linear_model, predict


@dataclass(frozen=True)
class Case:
    """One attack under test.

    Attributes:
        config: its entry, as an experiment would write it.
        ord: order of the norm of its budget, as in `np.linalg.norm`.
        robust: the accuracy it must bring the dense model under.
        gradients: it is steered by gradients, and so can meet one that is zero.
        added: the columns it adds to the index.
    """

    config: dict[str, Any]
    ord: float
    robust: float
    gradients: bool = True
    added: tuple[str, ...] = ()


CASES = {
    "fgm": Case({"method": "fgm", "eps": 0.3}, np.inf, 0.1),
    "fgm l1": Case({"method": "fgm", "eps": 0.9, "norm": 1}, 1, 0.97),
    "fgm l2": Case({"method": "fgm", "eps": 1.5, "norm": 2}, 2, 0.4),
    "fgm targeted": Case({"method": "fgm", "eps": 0.3, "targeted": True}, np.inf, 0.5),
    "fgm target 3": Case({"method": "fgm", "eps": 0.3, "targeted": True, "target_class": 3}, np.inf, 0.5),
    "fgm minimal": Case({"method": "fgm", "eps": 0.3, "eps_step": 0.05, "minimal": 1}, np.inf, 0.1, added=("found",)),
    "fgm minimal l2": Case(
        {"method": "fgm", "eps": 1.5, "eps_step": 0.25, "norm": 2, "minimal": 1}, 2, 0.4, added=("found",)
    ),
    "fgm art": Case({"method": "fgm", "eps": 0.3, "engine": "art"}, np.inf, 0.1),
    "fgm art l2": Case({"method": "fgm", "eps": 1.5, "norm": 2, "engine": "art"}, 2, 0.4),
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


def attack_of(case: Case, **changes: Any) -> Attack:
    return parse_attack(case.config | {"batch_size": 64} | changes)


def sizes(case: Case, adversarial: np.ndarray, images: np.ndarray) -> np.ndarray:
    change = (adversarial.astype(np.float64) - images).reshape(len(images), -1)
    return np.linalg.norm(change, ord=case.ord, axis=1)


def test_every_attack_is_in_the_table() -> None:
    assert {case.config["method"] for case in CASES.values()} == set(ATTACKS)


def test_pixels_stay_in_the_box_as_float32(case: Case, dense_model: Any, digits: ImageSet) -> None:
    adversarial, _ = attack_all(attack_of(case), dense_model, digits)
    assert adversarial.dtype == np.float32
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1


def test_the_change_stays_in_the_budget(case: Case, dense_model: Any, digits: ImageSet) -> None:
    adversarial, _ = attack_all(attack_of(case), dense_model, digits)
    changed = sizes(case, adversarial, digits.to_numpy()[0])
    assert changed.max() <= case.config["eps"] * (1 + 1e-6)
    assert changed.max() > 0


def test_every_image_comes_back_once_and_in_order(case: Case, dense_model: Any, digits: ImageSet) -> None:
    done: list[tuple[int, int]] = []
    batches = list(
        perturb_set(
            attack_of(case), dense_model, digits, seed=0, class_count=10, progress=lambda *args: done.append(args)
        )
    )
    assert [len(batch.images) for batch in batches] == [64, 64, 64, 11]
    assert [image_id for batch in batches for image_id in batch.index["image_id"]] == list(digits.index["image_id"])
    assert done == [(64, 203), (128, 203), (192, 203), (203, 203)]


@pytest.mark.parametrize("batch_size", [7, 203, 1000])
def test_batch_size_changes_nothing(case: Case, batch_size: int, dense_model: Any, digits: ImageSet) -> None:
    adversarial, index = attack_all(attack_of(case), dense_model, digits)
    others, other_index = attack_all(attack_of(case, batch_size=batch_size), dense_model, digits)
    # Sums of a batch of another size may differ in the last bit, so only a gradient of almost zero may change its sign.
    assert np.abs(adversarial - others).max() <= 1e-6
    assert index.equals(other_index)


def test_same_seed_gives_the_same_bytes(case: Case, dense_model: Any, digits: ImageSet) -> None:
    first, first_index = attack_all(attack_of(case), dense_model, digits, seed=5)
    second, second_index = attack_all(attack_of(case), dense_model, digits, seed=5)
    own, _ = attack_all(attack_of(case, seed=5), dense_model, digits, seed=6)
    assert first.tobytes() == second.tobytes() == own.tobytes()
    assert first_index.equals(second_index)


def test_the_attacked_set_and_the_global_generator_are_left_alone(
    case: Case, dense_model: Any, digits: ImageSet
) -> None:
    before, index = digits.to_numpy()[0].copy(), digits.index.copy()
    np.random.seed(3)
    attack_all(attack_of(case), dense_model, digits)
    drawn = np.random.random()
    np.random.seed(3)
    assert drawn == np.random.random()
    assert digits.to_numpy()[0].tobytes() == before.tobytes()
    assert digits.index.equals(index)


def test_the_index_is_complete(case: Case, dense_model: Any, digits: ImageSet) -> None:
    tagged = ImageSet(digits.pixels, digits.index.assign(file="a.png"), digits.class_names)
    attack = attack_of(case)
    _, index = attack_all(attack, dense_model, tagged)
    wanted = {"image_id", "label", "file", "target_class", "queries", "zero_gradient", *case.added}
    assert set(index.columns) == wanted
    assert index["file"].eq("a.png").all()
    assert (index.dtypes[["queries", "zero_gradient", "target_class"]].astype(str) == ["int64", "bool", "Int64"]).all()
    assert index["queries"].min() >= 1
    assert index["target_class"].notna().any() == attack.targeted
    assert not (index["target_class"] == index["label"]).any()


def test_the_threat_model_is_complete(case: Case) -> None:
    attack = attack_of(case)
    threat = attack.threat_model()
    assert threat.nist_class == "evasion"
    assert threat.goal == ("targeted" if attack.targeted else "untargeted")
    assert threat.norm == {np.inf: "inf", 1: "1", 2: "2"}[case.ord]
    assert f"{case.config['eps']:g}" in threat.budget


def test_a_config_survives_json_and_cannot_be_changed(case: Case) -> None:
    attack = attack_of(case)
    assert type(attack).model_validate_json(attack.model_dump_json()) == attack
    assert hash(attack) == hash(attack_of(case))
    with pytest.raises(ValidationError, match="frozen"):
        attack.batch_size = 1  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"epsilon": 0.1}, "epsilon"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 2.5}, "batch_size"),
        ({"engine": "torch"}, "engine"),
        ({"seed": -1}, "seed"),
        ({"target_class": -1, "targeted": True}, "target_class"),
    ],
)
def test_a_wrong_field_is_refused_by_name(case: Case, wrong: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as refused:
        attack_of(case, **wrong)
    assert field in [error["loc"][0] for error in refused.value.errors()]


def test_a_model_is_broken_and_noise_of_the_same_size_does_not_break_it(
    case: Case, dense_model: Any, digits: ImageSet
) -> None:
    images, labels = digits.to_numpy()
    adversarial, _ = attack_all(attack_of(case), dense_model, digits)
    attacked = float((predict(dense_model, adversarial) == labels).mean())

    noise = np.random.default_rng(0).choice([-1.0, 1.0], images.shape)
    flat = np.linalg.norm(noise.reshape(len(noise), -1), ord=case.ord, axis=1)
    noise *= (sizes(case, adversarial, images) / flat)[:, None, None, None]
    noisy = float((predict(dense_model, np.clip(images + noise, 0, 1).astype(np.float32)) == labels).mean())

    assert float((predict(dense_model, images) == labels).mean()) > 0.93
    assert attacked < case.robust
    assert noisy > attacked


def test_success_grows_with_eps(case: Case, dense_model: Any, digits: ImageSet) -> None:
    def robust_accuracy(factor: float) -> float:
        attack = attack_of(case, eps=case.config["eps"] * factor)
        return float((predict(dense_model, attack_all(attack, dense_model, digits)[0]) == digits.labels).mean())

    weak, middle, strong = (robust_accuracy(factor) for factor in (0.2, 0.6, 1.0))
    assert weak >= middle >= strong
    assert weak > strong


def test_a_target_beyond_the_classes_is_refused_before_any_work(case: Case, dense_model: Any, digits: ImageSet) -> None:
    attack = attack_of(case, targeted=True, target_class=10)
    with pytest.raises(ValueError, match="target_class is 10, but there are 10 classes: allowed are 0 to 9"):
        perturb_set(attack, dense_model, digits, seed=0, class_count=10)


def test_a_model_that_gives_nan_is_an_error_that_names_set_and_image(case: Case, digits: ImageSet) -> None:
    weights = np.full((64, 10), 0.1)
    weights[0] = np.nan
    with pytest.raises(NonFiniteError, match=r"digits/testing_set: non-finite logits .*000000"):
        attack_all(attack_of(case), linear_model(weights), digits)


def test_a_pixel_that_is_nan_is_an_error_that_names_set_and_image(case: Case, dense_model: Any) -> None:
    images = np.full((3, 8, 8, 1), 0.5, np.float32)
    images[1, 2, 2] = np.nan
    broken = ImageSet.from_arrays(images, [0, 1, 2], tuple("0123456789"), image_ids=["a", "b", "c"], name="broken")
    with pytest.raises(NonFiniteError, match="broken: non-finite pixels at 1 images of one batch: b$"):
        attack_all(attack_of(case), dense_model, broken)


def test_pixels_out_of_the_box_are_refused(case: Case, dense_model: Any) -> None:
    bytes_of = ImageSet.from_arrays(np.full((1, 8, 8, 1), 255.0), [0], tuple("0123456789"), name="bytes")
    with pytest.raises(ValueError, match=r"bytes: pixels reach from 255.0 to 255.0, they must lie in \[0, 1\]"):
        attack_all(attack_of(case), dense_model, bytes_of)


def test_images_without_a_gradient_are_counted(case: Case, digits: ImageSet) -> None:
    if not case.gradients:
        pytest.skip("not steered by gradients")
    adversarial, index = attack_all(attack_of(case), linear_model(np.zeros((64, 10))), digits)
    assert index["zero_gradient"].all()
    assert np.array_equal(adversarial, digits.to_numpy()[0])


def test_a_model_that_ends_in_softmax_is_refused(case: Case, digits: ImageSet) -> None:
    import keras

    model = keras.Sequential(
        [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10, "softmax")], name="probabilities"
    )
    with pytest.raises(ValueError, match="'probabilities' ends in softmax: attacks take logits"):
        perturb_set(attack_of(case), model, digits, seed=0, class_count=10)


def test_a_model_of_other_classes_is_refused(case: Case, digits: ImageSet) -> None:
    with pytest.raises(ValueError, match="expected logits of 10 classes"):
        attack_all(attack_of(case), linear_model(np.ones((64, 4))), digits)


def test_configs_load_without_any_machine_learning_library() -> None:
    code = (
        "import sys, dioptra_assets.robustness.attacks as a; a.parse_attack({'method': 'fgm', 'eps': 0.3});"
        "sys.exit(str({'tensorflow', 'keras', 'art', 'jax', 'scipy'} & set(sys.modules) or ''))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.stderr.strip() == ""


def test_an_unknown_method_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"method is 'fgsm': allowed are fgm"):
        parse_attack({"method": "fgsm", "eps": 0.1})
