"""Any attack of ART by name: what a config may say, and that what ART leaves to chance is left to none."""

import dataclasses
import random
from typing import Any

import keras
import numpy as np
import pytest
from pydantic import ValidationError

from dioptra_assets.robustness.attacks import AnyArtAttack, art_table, parse_attack
from dioptra_assets.robustness.attacks.art_table import ART_ATTACKS, LEFT_OUT
from dioptra_assets.robustness.image_set import ImageSet
from tests.robustness.attacks.conftest import attack_all, linear_model, predict

# Small budgets, so that every attack ends within seconds.
SMALL: dict[str, Any] = {
    "max_iter": 3,
    "nb_random_init": 1,
    "eps": 0.2,
    "eps_step": 0.1,
    "binary_search_steps": 2,
    "max_eval": 50,
    "init_eval": 5,
    "num_trial": 3,
    "query_limit": 50,
    "k": 5,
    "max_translation": 20,
    "num_translations": 3,
    "largest_const": 1e-4,
    "nb_parallel": 5,
    "use_resize": False,
    "use_importance": False,
    "freq_dim": 8,
    "conjugate_sinkhorn_max_iter": 5,
    "projected_sinkhorn_max_iter": 5,
    # The default lets the exponential of the gradient overflow where a model is not sure.
    "regularization": 1.0,
}

QUICK = {"DeepFool", "SaliencyMapMethod", "SimBA", "SpatialTransformation"}


def art(attack: str, /, *, goal: str = "untargeted", batch: int = 256, **parameters: Any) -> Any:
    entry = {"method": "art", "attack": attack, "parameters": parameters}
    return parse_attack(entry | {"targeted": goal == "targeted", "batch_size": batch})


def few(images: ImageSet, count: int) -> ImageSet:
    return ImageSet.from_arrays(images.to_numpy()[0][:count], images.labels[:count], images.class_names)


def test_the_table_is_what_the_installed_art_says() -> None:
    assert art_table.recorded() == art_table.installed(), "run python -m dioptra_assets.robustness.attacks.art_table"


def test_every_attack_of_art_is_in_the_table_or_left_out_with_a_reason() -> None:
    assert set(ART_ATTACKS) | set(LEFT_OUT) == art_table.installed_names() | {"BrendelBethgeAttack"}
    assert not set(ART_ATTACKS) & set(LEFT_OUT)


@pytest.mark.parametrize("attack", ART_ATTACKS)
def test_the_defaults_of_every_attack_are_allowed_values(attack: str) -> None:
    known = art_table.recorded()["attacks"][attack]
    given = {name: parameter["default"] for name, parameter in known.items()}
    config = art(attack, goal=ART_ATTACKS[attack].goals[0], **given)
    assert config.parameters == given
    assert config.threat_model().knowledge == ART_ATTACKS[attack].knowledge


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({}, r"attack\n.*Field required"),
        ({"attack": "PGD"}, r"attack is 'PGD': allowed are AutoConjugateGradient, .*, ZooAttack"),
        ({"attack": "AutoAttack"}, r"an ensemble of ART's own .* method pgd with loss dlr and several random_starts"),
        ({"attack": "AdversarialPatch"}, r"'AdversarialPatch', which makes one patch for a whole set: allowed are"),
        ({"attack": "DeepFool", "targeted": True}, r"'DeepFool' and targeted is true: it can be untargeted alone"),
        ({"attack": "SaliencyMapMethod"}, r"'SaliencyMapMethod' and targeted is false: it can be targeted alone"),
        (
            {"attack": "DeepFool", "parameters": {"eps": 1}},
            r"no parameter eps: allowed are max_iter, epsilon, nb_grads",
        ),
        ({"attack": "DeepFool", "parameters": {"batch_size": 1}}, r"DeepFool has no parameter batch_size"),
        ({"attack": "DeepFool", "parameters": {"max_iter": 1.5}}, r"max_iter is 1.5: allowed is int"),
        ({"attack": "DeepFool", "parameters": {"max_iter": True}}, r"max_iter is True: allowed is int"),
        ({"attack": "DeepFool", "parameters": {"epsilon": "small"}}, r"epsilon is 'small': allowed is float"),
        ({"attack": "DeepFool", "parameters": {"epsilon": float("nan")}}, r"epsilon is nan: allowed is float"),
        ({"attack": "DeepFool", "parameters": {"epsilon": [0.1, 0.2]}}, r"epsilon is \[0.1, 0.2\]: allowed is float"),
        ({"attack": "HopSkipJump", "parameters": {"norm": 3}}, r"norm is 3: allowed are inf, 1 and 2"),
        ({"attack": "DeepFool", "engine": "compiled"}, r"engine\n.*'art'"),
    ],
)
def test_a_wrong_entry_is_refused_with_what_is_allowed(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        AnyArtAttack(**entry)


def test_whole_numbers_and_norms_are_read_however_yaml_writes_them() -> None:
    assert art("HopSkipJump", norm=float("inf")).parameters == {"norm": "inf"}
    epsilon = art("DeepFool", epsilon=1).parameters["epsilon"]
    assert type(epsilon) is float
    assert type(art("FastGradientMethod", eps=1).parameters["eps"]) is int


@pytest.mark.parametrize(
    ("attack", "norm", "budget"),
    [
        (art("FastGradientMethod", eps=0.1), "inf", "Linf <= 0.1, pixels in [0, 1]"),
        (art("ProjectedGradientDescent", norm=2, eps=1), "2", "L2 <= 1, pixels in [0, 1]"),
        (art("CarliniL2Method"), "2", "the smallest L2 found, without a bound, pixels in [0, 1]"),
        (art("HopSkipJump", norm="inf"), "inf", "the smallest Linf found, without a bound, pixels in [0, 1]"),
    ],
)
def test_the_threat_model_names_norm_and_budget(attack: AnyArtAttack, norm: str, budget: str) -> None:
    threat = attack.threat_model()
    assert (threat.norm, threat.budget) == (norm, budget)


def test_a_budget_without_a_norm_lists_the_parameters() -> None:
    threat = art("SpatialTransformation", max_rotation=30).threat_model()
    assert threat.norm == "none"
    assert "max_rotation 30.0" in threat.budget
    assert threat.knowledge == "black-box"


def test_bounds_that_art_checks_are_refused_before_any_work(dense_model: Any) -> None:
    with pytest.raises(ValueError, match=r"parameters are refused by DeepFool: .*positive integer"):
        art("DeepFool", max_iter=-1).prepare(dense_model, seed=0, class_count=10)


def test_attacks_that_want_logits_get_them(dense_model: Any, digits: ImageSet) -> None:
    images = few(digits, 4)
    attack = art("CarliniL2Method", max_iter=12, binary_search_steps=2, initial_const=1.0, learning_rate=0.1)
    adversarial, index = attack_all(attack, dense_model, images)
    clean = predict(dense_model, images.to_numpy()[0]) == images.labels
    assert clean.sum() >= 2
    assert (predict(dense_model, adversarial) != images.labels).all()
    assert index["queries"].min() > 20


def test_what_art_draws_depends_on_the_seed_and_the_position_alone(dense_model: Any, digits: ImageSet) -> None:
    """HopSkipJump also makes a generator of its own, without a seed."""
    images = few(digits, 3)
    parameters: dict[str, Any] = {"max_iter": 2, "max_eval": 20, "init_eval": 5}
    generators = np.random.RandomState
    np.random.seed(3)
    random.seed(3)
    one, index = attack_all(art("HopSkipJump", batch=3, **parameters), dense_model, images)
    drawn = np.random.random(), random.random()
    two, index_again = attack_all(art("HopSkipJump", batch=2, **parameters), dense_model, images)
    other, _ = attack_all(art("HopSkipJump", **parameters), dense_model, images, seed=1)
    np.random.seed(3)
    random.seed(3)
    assert one.tobytes() == two.tobytes()
    assert index.equals(index_again)
    assert not np.array_equal(one, other)
    assert drawn == (np.random.random(), random.random())
    assert np.random.RandomState is generators


STARTING: dict[str, dict[str, Any]] = {
    "AutoProjectedGradientDescent": {"loss_type": "cross_entropy", "nb_random_init": 2},
    "AutoConjugateGradient": {"loss_type": "difference_logits_ratio", "nb_random_init": 2},
    "ProjectedGradientDescent": {"num_random_init": 2},
}


@pytest.mark.parametrize("attack", STARTING)
def test_in_a_batch_an_image_starts_where_it_starts_alone(
    attack: str, dense_model: Any, digits: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some images fall at the first start, and others need what the second draws."""
    images = few(digits, 12)
    parameters: dict[str, Any] = {"eps": 0.1, "eps_step": 0.05, "max_iter": 3, **STARTING[attack]}
    batched, index = attack_all(art(attack, **parameters), dense_model, images)
    split, _ = attack_all(art(attack, batch=5, **parameters), dense_model, images)
    one_by_one = dataclasses.replace(ART_ATTACKS[attack], alone=True, starts=False)
    monkeypatch.setitem(ART_ATTACKS, attack, one_by_one)
    alone, index_alone = attack_all(art(attack, **parameters), dense_model, images)
    np.testing.assert_allclose(batched, alone, rtol=0, atol=1e-6)
    np.testing.assert_allclose(split, alone, rtol=0, atol=1e-6)
    fallen = predict(dense_model, batched) != images.labels
    assert 0 < fallen.sum() < len(fallen), "else it does not matter who stands"
    assert (index["queries"] - index_alone["queries"]).between(0, 2).all(), "who fell is looked at once a start"
    assert attack == "ProjectedGradientDescent" or index["queries"].nunique() > 1, "counted image by image"


@pytest.mark.parametrize(
    ("scale", "step"),
    [
        pytest.param(6.0, {"norm": 2, "eps": 0.5, "eps_step": 0.1, "max_iter": 6}, id="small gradients"),
        pytest.param(24.0, {"eps": 0.3, "eps_step": 0.02, "max_iter": 12}, id="a loss of zero"),
    ],
)
def test_of_a_sure_model_too_an_image_gets_alone_what_it_gets_in_a_batch(
    scale: float, step: dict[str, Any], dense_model: Any, digits: ImageSet
) -> None:
    """Averaged over a batch small gradients are smaller still, and a loss of zero would end an image alone at once."""
    steep = keras.Sequential([keras.Input((8, 8, 1)), dense_model, keras.layers.Rescaling(scale)])
    images = few(digits, 12)
    attack = {"loss_type": "cross_entropy", "nb_random_init": 1, **step}
    together, alone = (
        attack_all(art("AutoProjectedGradientDescent", batch=batch, **attack), steep, images)[0] for batch in (12, 1)
    )
    np.testing.assert_allclose(alone, together, rtol=0, atol=1e-6)


def test_what_was_found_for_one_image_is_not_carried_over_to_the_next() -> None:
    """SpatialTransformation keeps the first transformation that it finds, for all it is given later."""
    weights = np.zeros((8, 8, 2))
    weights[:, :4, 0] = weights[:, 4:, 1] = 1
    left, right = np.zeros((2, 8, 8, 1), np.float32)
    left[:, 3], right[:, 4] = 1, 1
    images = ImageSet.from_arrays(np.stack([left, right]), [0, 1], ("left", "right"))
    model = linear_model(weights.reshape(64, 2))
    attack = art("SpatialTransformation", max_translation=13, num_translations=3)
    adversarial, _ = attack_all(attack, model, images)
    assert predict(model, adversarial).tolist() == [1, 0]


def test_attacks_that_ask_for_probabilities_get_them(dense_model: Any, digits: ImageSet) -> None:
    """SimBA refuses logits, and any batch but one of one image."""
    images = few(digits, 4)
    adversarial, _ = attack_all(art("SimBA", freq_dim=8, epsilon=0.5, max_iter=64), dense_model, images)
    assert (predict(dense_model, adversarial) != images.labels).sum() >= 2


def test_where_art_gives_up_the_image_is_named_and_what_to_do() -> None:
    steep = linear_model(np.random.default_rng(0).normal(size=(64, 10)) * 10)
    images = ImageSet.from_arrays(np.full((2, 8, 8, 1), 0.5), [0, 1], tuple("0123456789"))
    attack = art("Wasserstein", regularization=1e4, max_iter=1)
    with pytest.raises(ValueError, match=r"Wasserstein gave up at image 0: Overflow .*\. Change its parameters\."):
        attack_all(attack, steep, images)


@pytest.mark.parametrize(
    "attack", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in ART_ATTACKS]
)
def test_every_attack_of_the_table_runs_and_can_be_repeated(attack: str, dense_model: Any, digits: ImageSet) -> None:
    known = art_table.recorded()["attacks"][attack]
    images = few(digits, 3)
    for goal in ART_ATTACKS[attack].goals:
        parameters = {name: value for name, value in SMALL.items() if name in known}
        runs = [
            attack_all(art(attack, goal=goal, batch=batch, **parameters), dense_model, images) for batch in (3, 3, 2)
        ]
        (one, index), (again, index_again), (batched, _) = runs
        assert one.tobytes() == again.tobytes()
        assert index.equals(index_again)
        np.testing.assert_allclose(batched, one, rtol=0, atol=1e-6)
        assert index["queries"].min() >= 1
        assert np.isfinite(one).all()
        if "eps" in known and ART_ATTACKS[attack].norm == "parameter":
            assert np.abs(one - images.to_numpy()[0]).max() <= parameters["eps"] * (1 + 1e-5)
