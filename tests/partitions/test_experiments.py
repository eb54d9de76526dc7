import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from dioptra_assets.robustness.attacks import ATTACKS, FastGradientMethod
from dioptra_assets.robustness.training.architectures import ARCHITECTURES
from partitions.entries import ExperimentError, one_of
from partitions.experiment_files import check_file, read_attributes
from partitions.experiments import SOURCES, ExperimentFile, parse_experiment

pytestmark = pytest.mark.quick

SHIPPED = sorted((Path(__file__).parents[2] / "dioptra_assets" / "defs").glob("*/defs.yaml"))

GOOD = """
description: two models, one attack
seed: 7
owners: ["team:red", jane@example.org]
data: {source: digits}
architectures:
  shallow_net: {epochs: 2}
  le_net:
attacks:
  fgm: {eps: [0.1, 0.3], norm: inf}
"""


def parse(**changes: Any) -> Any:
    """The good experiment with some of its fields replaced, or left out where they are `...`."""
    attributes = yaml.safe_load(GOOD) | changes
    return parse_experiment("digits", {name: value for name, value in attributes.items() if value is not ...})


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.parent.name)
def test_the_experiments_shipped_are_right(path: Path):
    check_file(path)
    spec = parse_experiment(path.parent.name, read_attributes(path))
    assert spec.architectures or spec.watch
    assert spec.attacks or spec.poisonings or spec.inversions


def test_a_right_experiment_is_typed_and_complete():
    spec = parse()
    assert (spec.name, spec.seed, spec.owners) == ("digits", 7, ("team:red", "jane@example.org"))
    assert spec.source.image_shape == (28, 28, 1)
    assert list(spec.architectures) == ["shallow_net", "le_net"]
    assert list(spec.attacks) == ["fgm_0.1", "fgm_0.3"]
    assert parse(attacks=...).attacks == {}


# Each mistake, and the whole of what is said: experiment, entry, field, value, and what is allowed instead.
MISTAKES: list[tuple[dict[str, Any], str]] = [
    (
        {"colour": "red"},
        "experiment 'digits', field 'colour': there is no such field, available:"
        f" {', '.join(ExperimentFile.model_fields)}",
    ),
    (
        {"schedule": "every night"},
        "experiment 'digits', field 'schedule': 'every night' is not allowed, it must be five cron fields (minute,"
        " hour, day of the month, month, day of the week), such as '0 2 * * *' for two o'clock every night",
    ),
    (
        {"dynamic": True, "architectures": ..., "attacks": ..., "schedule": "0 2 * * *"},
        "experiment 'digits', field 'schedule': a dynamic experiment computes what jobs ask for and nothing else, take"
        " it out",
    ),
    ({"seed": -1}, "experiment 'digits', field 'seed': -1 is not allowed, it must be greater than or equal to 0"),
    (
        {"owners": ["jane"]},
        "experiment 'digits', field 'owners.0': 'jane' is not allowed, an owner is a person (jane@example.org) or a"
        " team (team:red)",
    ),
    ({"owners": "team:red"}, "experiment 'digits', field 'owners': 'team:red' is not allowed, it must be a valid list"),
    # Data.
    ({"data": ...}, "experiment 'digits', field 'data': a value is required"),
    (
        {"data": "digits"},
        "experiment 'digits', field 'data': 'digits' is not allowed, write parameters as `name: value`",
    ),
    (
        {"data": {}},
        f"experiment 'digits', field 'data.source': a value is required, it must be one of {', '.join(SOURCES)}",
    ),
    (
        {"data": {"source": "cifar"}},
        f"experiment 'digits', field 'data.source': 'cifar' is not allowed, it must be one of {', '.join(SOURCES)}",
    ),
    (
        {"data": {"source": ["digits", "mnist"]}},
        "experiment 'digits', field 'data.source': ['digits', 'mnist'] is not allowed, it must be one of"
        f" {', '.join(SOURCES)}",
    ),
    (
        {"data": {"source": "digits", "image_size": 28}},
        "experiment 'digits', field 'data.image_size': 28 is not allowed, it must be a valid list",
    ),
    (
        {"data": {"source": "digits", "image_size": [28, 0]}},
        "experiment 'digits', field 'data.image_size.1': 0 is not allowed, it must be greater than or equal to 1",
    ),
    (
        {"data": {"source": "digits", "size": 28}},
        "experiment 'digits', field 'data.size': there is no such field, available: source, image_size, test_fraction,"
        " seed",
    ),
    (
        {"data": {"source": "mnist", "limit_testing": 20_000}},
        "experiment 'digits', field 'data.limit_testing': 20000 is not allowed, it must be less than or equal to 10000",
    ),
    (
        {"data": {"source": "image_folder", "directory": "/pictures", "image_size": [28, 28], "channels": 2}},
        "experiment 'digits', field 'data.channels': 2 is not allowed, it must be 1 or 3",
    ),
    # Architectures.
    (
        {"architectures": {}},
        "experiment 'digits', field 'architectures': {} is not allowed, at least 1 must be given",
    ),
    (
        {"architectures": ["le_net"]},
        "experiment 'digits', field 'architectures': ['le_net'] is not allowed, write parameters as `name: value`",
    ),
    (
        {"architectures": {"lenet": {}}},
        "experiment 'digits', architectures entry 'lenet', field 'architecture': 'lenet' is not allowed, it must be one"
        f" of {', '.join(ARCHITECTURES)}",
    ),
    (
        {"architectures": {"small": {"architecture": ["le_net", "lenet"]}}},
        "experiment 'digits', architectures entry 'small', field 'architecture': 'lenet' is not allowed, it must be one"
        f" of {', '.join(ARCHITECTURES)}",
    ),
    (
        {"architectures": {"alex_net": {}}},
        "experiment 'digits', architectures entry 'alex_net': alex_net takes images of at least 195 x 195 pixels, these"
        " are 28 x 28",
    ),
    (
        {"data": {"source": "digits", "image_size": [224, 224]}, "architectures": {"vgg16": {}}},
        "experiment 'digits', architectures entry 'vgg16': vgg16 takes images of 3 channels, these have 1",
    ),
    (
        {"architectures": {"le_net": {"optimizer": "adamw"}}},
        "experiment 'digits', architectures entry 'le_net', field 'optimizer': 'adamw' is not allowed, it must be"
        " 'rmsprop', 'adam', 'adagrad' or 'sgd'",
    ),
    (
        {"architectures": {"le_net": {"epochs": -1}}},
        "experiment 'digits', architectures entry 'le_net', field 'epochs': -1 is not allowed, it must be greater than"
        " or equal to 0",
    ),
    (
        {"architectures": {"le_net": {"learning_rate": []}}},
        "experiment 'digits', architectures entry 'le_net', field 'learning_rate': an empty list is not allowed, give"
        " one value or several",
    ),
    (
        {"architectures": {"le_net": {"weights": "imagenet"}}},
        "experiment 'digits', architectures entry 'le_net': weights 'imagenet' are not allowed for le_net, only for"
        " resnet50 and vgg16",
    ),
    (
        {"architectures": {"le net": {"architecture": "le_net"}}},
        "experiment 'digits', architectures entry 'le net': the name 'le net' is not allowed as a partition key, it"
        " takes 1 to 100 of the characters A-Z a-z 0-9 _ . @ = -, without a dot at the beginning and without three in a"
        " row",
    ),
    (
        {"architectures": {5: {"architecture": "le_net"}}},
        "experiment 'digits', architectures entry 5: the name is not text, write it in quotes",
    ),
    # Attacks.
    (
        {"attacks": {"fgm": {"eps": -1}}},
        "experiment 'digits', attacks entry 'fgm', field 'eps': -1 is not allowed, it must be greater than 0",
    ),
    (
        {"attacks": {"fgm": {"eps": float("nan")}}},
        "experiment 'digits', attacks entry 'fgm', field 'eps': nan is not allowed, it must be a finite number",
    ),
    ({"attacks": {"fgm": None}}, "experiment 'digits', attacks entry 'fgm', field 'eps': a value is required"),
    (
        {"attacks": {"fgm": {"eps": 0.3, "norm": 3}}},
        "experiment 'digits', attacks entry 'fgm', field 'norm': norm is 3: allowed are inf, 1 and 2",
    ),
    (
        {"attacks": {"fgm": {"eps": 8}}},
        "experiment 'digits', attacks entry 'fgm', field 'norm': eps is 8 in the norm inf: at most 1 is allowed, pixels"
        " span [0, 1] (8 of 255 is 0.0314)",
    ),
    (
        {"attacks": {"fgm": {"eps": 0.3, "epsilon": 0.3}}},
        "experiment 'digits', attacks entry 'fgm', field 'epsilon': there is no such field, available:"
        f" {', '.join(FastGradientMethod.model_fields)}",
    ),
    (
        {"attacks": {"fgm": {"eps": 0.3, "batch_size": 2.5}}},
        "experiment 'digits', attacks entry 'fgm', field 'batch_size': 2.5 is not allowed, it must be a valid integer",
    ),
    (
        {"attacks": {"fgm": {"eps": 0.3, "targeted": True, "target_class": 10}}},
        "experiment 'digits', attacks entry 'fgm': target_class is 10, but there are 10 classes: allowed are 0 to 9",
    ),
    (
        {"attacks": {"strong": {"method": "fgsm", "eps": 0.3}}},
        f"experiment 'digits', attacks entry 'strong', field 'method': 'fgsm' is not allowed, {one_of(ATTACKS)}",
    ),
    (
        {"attacks": {"fgm|strong": {"method": "fgm", "eps": 0.3}}},
        "experiment 'digits', attacks entry 'fgm|strong': the name 'fgm|strong' is not allowed as a partition key, it"
        " takes 1 to 100 of the characters A-Z a-z 0-9 _ . @ = -, without a dot at the beginning and without three in a"
        " row",
    ),
    (
        {"attacks": {"fgm": {"eps": []}}},
        "experiment 'digits', attacks entry 'fgm', field 'eps': an empty list is not allowed, give one value or"
        " several",
    ),
]


@pytest.mark.parametrize(("changes", "message"), MISTAKES)
def test_a_mistake_is_told_in_one_sentence(changes: dict[str, Any], message: str):
    with pytest.raises(ExperimentError) as caught:
        parse(**changes)
    assert str(caught.value) == message


@pytest.mark.parametrize("name", ["my digits", "my-digits", "", "ü", "a/b", "a" * 101])
def test_the_folder_of_an_experiment_must_be_a_name_that_a_group_of_assets_can_have(name: str):
    with pytest.raises(ExperimentError) as caught:
        parse_experiment(name, yaml.safe_load(GOOD))
    assert str(caught.value) == (
        f"experiment {name!r}: the name of its folder is not allowed, it takes 1 to 100 of A-Z a-z 0-9 _"
    )


# ---- what is no number, and what is too many -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"attacks": {"fgm": {"eps": True}}},
            "attacks entry 'fgm', field 'eps': True is not allowed, it must be a number",
        ),
        (
            {"attacks": {"fgm": {"eps": [0.1, True]}}},
            "attacks entry 'fgm', field 'eps': True is not allowed, it must be a number",
        ),
        (
            {"attacks": {"fgm": {"eps": 0.1, "batch_size": True}}},
            "attacks entry 'fgm', field 'batch_size': True is not allowed, it must be a valid integer",
        ),
        (
            {"attacks": {"fgm": {"eps": 0.1, "targeted": 1}}},
            "attacks entry 'fgm', field 'targeted': 1 is not allowed, it must be true or false",
        ),
        (
            {"architectures": {"le_net": {"madry": {"eps": True}}}},
            "architectures entry 'le_net', field 'madry.eps': True is not allowed, it must be a number",
        ),
        (
            {"architectures": {"le_net": {"batch_size": 1.5}}},
            "architectures entry 'le_net', field 'batch_size': 1.5 is not allowed, it must be a valid integer, got a"
            " number with a fractional part",
        ),
    ],
)
def test_a_truth_value_is_no_number_and_a_number_no_truth_value(changes: dict[str, Any], message: str):
    with pytest.raises(ExperimentError) as caught:
        parse(**changes)
    assert str(caught.value) == f"experiment 'digits', {message}"


def test_truth_values_are_no_numbers_in_lists_and_in_the_data():
    with pytest.raises(ExperimentError, match=r"field 'data\.image_size\.0': True is not allowed, it must be a number"):
        parse(data={"source": "digits", "image_size": [True, 28]})
    with pytest.raises(ExperimentError, match="field 'seed': True is not allowed, it must be a number"):
        parse(seed=True)
    with pytest.raises(ExperimentError, match="field 'automation': 1 is not allowed, it must be true or false"):
        parse(automation=1)


def test_numbers_that_yaml_leaves_as_text_are_read():
    assert parse(attacks={"fgm": {"eps": "1e-3"}}).attacks["fgm"].eps == 0.001


def test_a_sweep_of_a_million_cells_is_refused_before_it_is_made():
    values = [round(0.0001 * n, 4) for n in range(1, 1001)]
    begun = time.perf_counter()
    with pytest.raises(ExperimentError) as caught:
        parse(attacks={"fgm": {"eps": values, "eps_step": values}})
    assert time.perf_counter() - begun < 1
    assert str(caught.value) == (
        "experiment 'digits', attacks entry 'fgm': 1,000,000 cells are not allowed, at most 25,000; sweep over fewer"
        " values, or raise the field 'cell_limit' of the experiment"
    )


def test_architectures_and_attacks_and_defences_count_together_and_the_limit_can_be_raised():
    many = {"fgm": {"eps": [0.1, 0.2, 0.3, 0.4]}}
    with pytest.raises(ExperimentError) as caught:
        parse(attacks=many, defences={"jpeg_compression": {}}, cell_limit=7)
    assert str(caught.value).startswith(
        "experiment 'digits', 2 architectures x 4 attacks x 1 defences: 8 cells are not allowed"
    )
    assert len(parse(attacks=many, defences={"jpeg_compression": {}}, cell_limit=8).attacks) == 4
