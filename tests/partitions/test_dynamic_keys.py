from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from dioptra_assets.robustness.attacks import ATTACKS, AnyArtAttack, FastGradientMethod, ProjectedGradientDescent
from dioptra_assets.robustness.defences import DEFENCES, GaussianAugmentation, JpegCompression
from dioptra_assets.robustness.inversion.miface import INVERSIONS, ModelInversion
from dioptra_assets.robustness.poisoning import (
    POISONINGS,
    AdversarialEmbedding,
    BaselineBackdoor,
    CleanLabelBackdoor,
    Trigger,
)
from dioptra_assets.robustness.training.architectures import ARCHITECTURES
from dioptra_assets.robustness.training.loop import TrainingRecipe
from dioptra_assets.robustness.training.madry import MadryTraining
from partitions.dynamic_keys import config_key, is_short, parse_config_key, parse_value
from partitions.entries import ExperimentError
from partitions.keys import is_key

pytestmark = pytest.mark.quick

ModelOf = Callable[[str, dict[str, Any]], tuple[type[Any], dict[str, Any]]]


def by_method(methods: Mapping[str, type[BaseModel]]) -> ModelOf:
    def model_of(name: str, parameters: dict[str, Any]) -> tuple[type[Any], dict[str, Any]]:
        if name not in methods:
            raise ValueError(f"field 'method': {name!r} is not allowed")
        return methods[name], {"method": name, **parameters}

    return model_of


def recipe_of(name: str, parameters: dict[str, Any]) -> tuple[type[Any], dict[str, Any]]:
    return TrainingRecipe, {"architecture": name, **parameters}


MODEL_OF = by_method({**ATTACKS, **DEFENCES, **POISONINGS, **INVERSIONS})


def key_of(config: Any) -> str:
    return config_key(config.architecture if isinstance(config, TrainingRecipe) else config.method, config)


def read(key: str, section: str = "attacks", kept: Callable[[str], Any] = lambda key: None) -> Any:
    return parse_config_key(key, section, recipe_of if key.partition("@")[0] in ARCHITECTURES else MODEL_OF, kept)[1]


@pytest.mark.parametrize(
    ("key", "config"),
    [
        ("fgm@eps=0.3@norm=2", FastGradientMethod(eps=0.3, norm=2)),
        ("fgm@eps=1", FastGradientMethod(eps=1.0)),
        ("fgm@eps=1e-05@minimal=true@eps_step=1e-05", FastGradientMethod(eps=1e-5, minimal=True, eps_step=1e-5)),
        ("fgm@eps=1e20@norm=2", FastGradientMethod(eps=1e20, norm=2)),
        ("fgm@targeted=true@target_class=3@eps=0.3", FastGradientMethod(targeted=True, target_class=3, eps=0.3)),
        ("pgd@eps=0.3@steps=7@random_starts=0", ProjectedGradientDescent(eps=0.3, steps=7, random_starts=0)),
        ("art@attack=DeepFool", AnyArtAttack(attack="DeepFool")),
        ("le_net", TrainingRecipe(architecture="le_net")),
        ("le_net@epochs=2.5@optimizer=sgd", TrainingRecipe(architecture="le_net", epochs=2.5, optimizer="sgd")),
        (
            "le_net@madry.eps=0.3@madry.random_start=false@model_tag=robust-1",
            TrainingRecipe(
                architecture="le_net", madry=MadryTraining(eps=0.3, random_start=False), model_tag="robust-1"
            ),
        ),
        ("spatial_smoothing", DEFENCES["spatial_smoothing"]()),  # pyright: ignore[reportCallIssue]
        ("jpeg_compression@apply_predict=false", JpegCompression(apply_predict=False)),
        (
            "gaussian_augmentation@apply_fit=true@perform_data_augmentation=true",
            GaussianAugmentation(apply_fit=True, perform_data_augmentation=True),
        ),
        (
            "baseline@target_class=3@poison_fraction=0.1@trigger.size=4@trigger.position=2_13@trigger.value=0.5",
            BaselineBackdoor(target_class=3, poison_fraction=0.1, trigger=Trigger(size=4, position=(2, 13), value=0.5)),
        ),
        (
            "baseline@target_class=3@poison_fraction=0.1@trigger.position=top_left",
            BaselineBackdoor(target_class=3, poison_fraction=0.1, trigger=Trigger(position="top_left")),
        ),
        (
            "clean_label@target_class=0@proxy_architecture=le_net@@epochs=3",
            CleanLabelBackdoor(target_class=0, proxy_architecture="le_net@epochs=3"),
        ),
        (
            "adversarial_embedding@target_class=0@poison_fraction=0.1@feature_layer=-3",
            AdversarialEmbedding(target_class=0, poison_fraction=0.1, feature_layer=-3),
        ),
        (
            "adversarial_embedding@target_class=0@poison_fraction=0.1@feature_layer=hidden",
            AdversarialEmbedding(target_class=0, poison_fraction=0.1, feature_layer="hidden"),
        ),
        ("miface", ModelInversion()),
        ("miface@start=mean@classes=3", ModelInversion(classes=(3,), start="mean")),
        ("miface@classes=7_0_3", ModelInversion(classes=(7, 0, 3))),
    ],
)
def test_a_key_holds_the_name_and_what_differs_from_the_defaults(key: str, config: Any):
    assert key_of(config) == key
    assert read(key) == config


fractions = st.floats(0, 1)
above_zero = st.floats(1e-6, 1)
names = st.text("abcXYZ019_.-@=", min_size=1, max_size=12)
seeds = st.none() | st.integers(0, 2**31 - 1)
triggers = st.builds(
    Trigger,
    pattern=st.sampled_from(["square", "checkerboard"]),
    size=st.integers(1, 4096),
    position=st.sampled_from(["top_left", "bottom_right"]) | st.tuples(st.integers(0, 99), st.integers(0, 99)),
    value=fractions,
)
configs: st.SearchStrategy[Any] = st.one_of(
    st.builds(FastGradientMethod, eps=above_zero, norm=st.sampled_from(["inf", 1, 2]), seed=seeds),
    st.builds(ProjectedGradientDescent, eps=above_zero, steps=st.integers(1, 99), norm=st.sampled_from(["inf", 2])),
    st.builds(ATTACKS["threshold"], th=st.integers(1, 255), es=st.sampled_from([0, 1])),
    st.builds(
        TrainingRecipe,
        architecture=st.sampled_from(sorted(ARCHITECTURES)),
        epochs=st.floats(0, 10_000),
        learning_rate=st.floats(1e-300, 10),
        madry=st.none() | st.builds(MadryTraining, eps=above_zero, random_start=st.booleans()),
        register_model=st.booleans(),
        weights=st.none() | names.filter(lambda text: text != "imagenet"),
    ),
    st.builds(GaussianAugmentation, apply_fit=st.just(True), sigma=fractions, perform_data_augmentation=st.booleans()),
    st.builds(BaselineBackdoor, target_class=st.integers(0, 9), poison_fraction=fractions, trigger=triggers),
    st.builds(CleanLabelBackdoor, target_class=st.integers(0, 9), proxy_architecture=st.none() | names),
    st.builds(
        AdversarialEmbedding,
        target_class=st.integers(0, 999),
        poison_fraction=fractions,
        feature_layer=st.integers(-99, 99) | names,
    ),
    st.builds(ModelInversion, classes=st.none() | st.lists(st.integers(0, 999), min_size=1, max_size=9, unique=True)),
)


@given(configs)
def test_every_config_is_read_back_from_its_key(config: Any):
    key = key_of(config)
    assert is_key(key)
    assert read(key, kept={key: config.model_dump(mode="json")}.get) == config
    assert is_short(key) or read(key) == config


@given(
    st.sampled_from(["fgm", "pgd", "le_net", "baseline", "miface", "gaussian_augmentation"]),
    st.lists(
        st.sampled_from(
            [
                "eps=0.3",
                "eps=0.30",
                "norm=2",
                "steps=7",
                "epochs=3",
                "epochs=3.0",
                "madry.eps=0.3",
                "target_class=1",
                "poison_fraction=1",
                "trigger.size=03",
                "classes=1_2",
                "sigma=-0",
                "sigma=0.1",
                "apply_fit=true",
                "x=1",
            ]
        ),
        max_size=3,
    ),
)
def test_every_key_that_is_read_is_printed_back(name: str, parts: list[str]):
    key = "@".join([name, *parts])
    try:
        config = read(key)
    except ExperimentError:
        return
    assert key_of(config) == key


@given(st.text("fgm@eps=.0123_-", max_size=30))
def test_no_text_is_anything_but_a_key_or_a_sentence(text: str):
    try:
        config = read(f"fgm{text}")
    except ExperimentError as error:
        assert str(error).startswith("attacks key ")
    else:
        assert key_of(config) == f"fgm{text}"


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("fgm@eps=0.30", ": the key of this config is written 'fgm@eps=0.3'"),
        ("fgm@norm=2@eps=0.3", ": the key of this config is written 'fgm@eps=0.3@norm=2'"),
        ("fgm@eps=0.3@norm=inf", ": the key of this config is written 'fgm@eps=0.3'"),
        ("fgm@eps=0.3@minimal=yes", ": the key of this config is written 'fgm@eps=0.3@minimal=true'"),
        ("le_net@architecture=shallow_net", ": the key of this config is written 'shallow_net'"),
        ("fgm", ", field 'eps': a value is required"),
        ("fgm@eps=2", ", field 'norm': eps is 2 in the norm inf: at most 1 is allowed, pixels span [0, 1] (8 of 255"),
        ("fgm@eps=-0.1", ", field 'eps': -0.1 is not allowed, it must be greater than 0"),
        ("fgm@eps=big", ", field 'eps': 'big' is not allowed, it must be a valid number"),
        ("pgd@eps=0.3@steps=7.5", ", field 'steps': '7.5' is not allowed, it must be a valid integer"),
        ("fgm@eps=0.3@eps=0.3", ", field 'eps': given twice"),
        ("fgm@eps", ": 'eps' is not allowed, write parameters as `@field=value`"),
        ("fgm@eps=0.3@", ": a single '@' stands at its beginning or end, write `name@field=value`"),
        ("@", ": a single '@' stands at its beginning or end, write `name@field=value`"),
        ("fgn@eps=0.3", ", field 'method': 'fgn' is not allowed"),
        ("fgm@eps.big=1", ", field 'eps.big': eps has no fields here"),
        (
            "baseline@trigger.colour=1",
            ", field 'trigger.colour': there is no such field, available: trigger.pattern, trigger.size, "
            "trigger.position, trigger.value",
        ),
        ("le_net@madry=null@madry.eps=0.3", ", field 'madry.eps': madry has no fields here"),
        ("fgm|eps=0.3", ": not allowed as a partition key, it takes 1 to 100 of the characters"),
    ],
)
def test_a_wrong_key_is_refused_in_one_sentence(key: str, message: str):
    with pytest.raises(ExperimentError) as caught:
        read(key)
    assert str(caught.value).startswith(f"attacks key {key!r}{message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "config",
    [
        TrainingRecipe(architecture="le_net", weights="models/start.keras"),
        TrainingRecipe(architecture="le_net", weights="null"),
        AnyArtAttack(attack="DeepFool", parameters={"max_iter": 3}),
        ModelInversion(classes=tuple(range(100))),
        AdversarialEmbedding(
            target_class=1,
            poison_fraction=0.2,
            feature_layer=-2,
            discriminator_layer_1_size=64,
            discriminator_layer_2_size=32,
            regularization_factor=5,
            training_split=0.9,
        ),
    ],
)
def test_a_config_that_fits_no_key_has_a_short_one_and_is_looked_up(config: Any):
    key = key_of(config)
    assert is_short(key) and is_key(key) and key.startswith(f"{key_of(config).partition('@')[0]}@config=")
    assert read(key, kept={key: config.model_dump(mode="json")}.get) == config
    assert key_of(config.model_copy(update={"seed": 5} if hasattr(config, "seed") else {"batch_size": 5})) != key


def test_a_short_key_never_stands_for_another_config():
    long = ModelInversion(classes=tuple(range(100)))
    key, other = key_of(long), ModelInversion(classes=tuple(range(99)))
    with pytest.raises(ExperimentError, match=f"^attacks key '{key}': the config of this key is not in the store, ask"):
        read(key)
    with pytest.raises(ExperimentError, match=f"^attacks key '{key}': what the store keeps for this key is another"):
        read(key, kept={key: other.model_dump(mode="json")}.get)


def test_a_key_of_another_name_is_not_written():
    with pytest.raises(ExperimentError, match="a key of this config begins with 'fgm', not with 'pgd'"):
        config_key("pgd", FastGradientMethod(eps=0.3))


@pytest.mark.parametrize(
    ("annotation", "text", "value"),
    [
        (float, "3", 3.0),
        (float, "1_0", "1_0"),
        (int, "3", 3),
        (int | str, "3", 3),
        (str | int, "3", 3),
        (str, "3", "3"),
        (str | None, "null", None),
        (bool, "true", True),
        (tuple[int, ...], "1_2", (1, 2)),
        (tuple[int, int], "1_2_3", "1_2_3"),
    ],
)
def test_a_text_is_read_by_the_type_of_its_field(annotation: Any, text: str, value: Any):
    assert parse_value(annotation, text) == value
    assert type(parse_value(annotation, text)) is type(value)
