from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dioptra_assets.robustness.attacks import FastGradientMethod
from dioptra_assets.robustness.data import DigitsSource
from dioptra_assets.robustness.training.loop import TrainingRecipe
from partitions.architectures import training_recipes
from partitions.attacks import attack_configs, attack_document, attack_of
from partitions.entries import ExperimentError, config_hash

pytestmark = pytest.mark.quick


def attacks(**entries: Any) -> dict[str, Any]:
    return attack_configs("digits", "evasion", entries)


def recipes(**entries: Any) -> dict[str, Any]:
    return training_recipes("digits", entries, DigitsSource())


def test_an_entry_without_a_list_is_one_config_under_its_own_name():
    configs = attacks(fgm={"eps": 0.3}, strong={"method": "fgm", "eps": 0.5, "norm": 2})
    assert list(configs) == ["fgm", "strong"]
    assert configs["fgm"] == FastGradientMethod(eps=0.3)
    assert configs["strong"] == FastGradientMethod(eps=0.5, norm=2)


def test_a_list_is_a_sweep_with_the_value_in_the_key():
    configs = attacks(fgm={"eps": [0.05, 0.1, 1], "batch_size": 32})
    assert {key: config.eps for key, config in configs.items()} == {"fgm_0.05": 0.05, "fgm_0.1": 0.1, "fgm_1": 1}
    assert {config.batch_size for config in configs.values()} == {32}


def test_a_list_of_one_value_is_a_sweep_too():
    assert list(attacks(fgm={"eps": [0.3]})) == ["fgm_0.3"]


def test_two_lists_are_every_pair_in_the_order_of_the_fields():
    configs = attacks(fgm={"eps": [0.1, 0.2], "norm": ["inf", 2]})
    assert {key: (config.eps, config.norm) for key, config in configs.items()} == {
        "fgm_0.1_inf": (0.1, "inf"),
        "fgm_0.1_2": (0.1, 2),
        "fgm_0.2_inf": (0.2, "inf"),
        "fgm_0.2_2": (0.2, 2),
    }
    assert list(attacks(fgm={"norm": ["inf", 2], "eps": [0.1]})) == ["fgm_inf_0.1", "fgm_2_0.1"]


def test_booleans_and_nothing_stand_in_keys_as_in_yaml():
    assert list(attacks(fgm={"eps": 0.3, "minimal": [True, False]})) == ["fgm_true", "fgm_false"]
    assert list(recipes(le_net={"weights": [None, "start.keras"]})) == ["le_net_null", "le_net_start.keras"]


def test_architectures_are_swept_alike():
    configs = recipes(le_net={"optimizer": ["adam", "sgd"], "epochs": 1}, tall={"architecture": "shallow_net"})
    assert {key: config.architecture for key, config in configs.items()} == {
        "le_net_adam": "le_net",
        "le_net_sgd": "le_net",
        "tall": "shallow_net",
    }


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            {"fgm": {"eps": []}},
            "experiment 'digits', attacks entry 'fgm', field 'eps': an empty list is not allowed, give one value or "
            "several",
        ),
        (
            {"fgm": {"eps": [0.1, 0.1]}},
            "experiment 'digits', attacks entry 'fgm': the name 'fgm_0.1' is given twice, each entry and sweep value "
            "needs its own",
        ),
        (
            {"fgm": {"eps": [0.1]}, "fgm_0.1": {"method": "fgm", "eps": 0.2}},
            "experiment 'digits', attacks entry 'fgm_0.1': the name 'fgm_0.1' is given twice, each entry and sweep "
            "value needs its own",
        ),
        (
            {"fgm": {"eps": [0.1, -0.1]}},
            "experiment 'digits', attacks entry 'fgm', field 'eps': -0.1 is not allowed, it must be greater than 0",
        ),
        (
            {"fgm": {"eps": ["0.1|0.2"]}},
            "experiment 'digits', attacks entry 'fgm': the name 'fgm_0.1|0.2' is not allowed as a partition key, it "
            "takes 1 to 100 of the characters A-Z a-z 0-9 _ . @ = -, without a dot at the beginning and without three "
            "in a row",
        ),
        (
            {"fgm": 0.3},
            "experiment 'digits', attacks entry 'fgm': 0.3 is not allowed, write parameters as `name: value`",
        ),
    ],
)
def test_a_wrong_sweep_is_refused_in_one_sentence(entries: dict[str, Any], message: str):
    with pytest.raises(ExperimentError) as caught:
        attack_configs("digits", "evasion", entries)
    assert str(caught.value) == message


def test_every_mistake_of_an_entry_has_a_sentence():
    with pytest.raises(ExperimentError) as caught:
        recipes(le_net={"epochs": "many", "optimizer": "adamw", "layers": 3})
    assert str(caught.value).splitlines() == [
        "experiment 'digits', architectures entry 'le_net', field 'epochs': 'many' is not allowed, it must be a valid "
        "number",
        "experiment 'digits', architectures entry 'le_net', field 'optimizer': 'adamw' is not allowed, it must be "
        "'rmsprop', 'adam', 'adagrad' or 'sgd'",
        "experiment 'digits', architectures entry 'le_net', field 'layers': there is no such field, available: "
        f"{', '.join(TrainingRecipe.model_fields)}",
    ]


def test_a_long_value_is_cut_in_the_message():
    with pytest.raises(ExperimentError) as caught:
        attacks(fgm={"eps": "x" * 10_000})
    assert len(str(caught.value)) < 250


@given(
    eps=st.floats(0.001, 1),
    norm=st.sampled_from(["inf", 1, 2]),
    minimal=st.booleans(),
    seed=st.none() | st.integers(0, 2**31),
)
def test_a_config_survives_its_document(eps: float, norm: Any, minimal: bool, seed: int | None):
    attack = FastGradientMethod(eps=eps, norm=norm, minimal=minimal, eps_step=eps, seed=seed)
    document = attack_document(attack)
    assert attack_of(document) == attack
    assert config_hash(document) == config_hash(dict(reversed(document.items())))


def test_the_hash_of_a_config_follows_its_values_alone():
    documents = [{"eps": 0.3}, {"eps": 0.31}, {"eps": "0.3"}, {"eps": 0.3, "norm": "inf"}, {"eps": None}, {}]
    assert len({config_hash(document) for document in documents}) == len(documents)
