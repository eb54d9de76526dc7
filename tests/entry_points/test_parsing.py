import subprocess
import sys
from typing import Any

import pytest

from dioptra_assets.entry_points.demos import ENTRY_POINTS, entry_point
from dioptra_assets.entry_points.entry_point import EntryPointError, Target
from dioptra_assets.entry_points.help import parameters_table
from dioptra_assets.entry_points.parsing import config_of, parse_kwargs, parse_parameters, target_of
from dioptra_assets.robustness.attacks import FastGradientMethod, PixelAttack, ThresholdAttack
from dioptra_assets.robustness.defences import GaussianAugmentation, JpegCompression, SpatialSmoothing
from dioptra_assets.robustness.inversion.miface import ModelInversion
from dioptra_assets.robustness.poisoning import AdversarialEmbedding, BaselineBackdoor, CleanLabelBackdoor, Trigger
from dioptra_assets.robustness.training.loop import TrainingRecipe
from dioptra_assets.robustness.training.madry import MadryTraining
from docs import entry_points

pytestmark = pytest.mark.quick

DEFENDING = "data_dir model model_architecture batch_size load_dataset_from_mlruns dataset_run_id dataset_tar_name"
DEFENDING += " dataset_name seed"
STORED = "load_dataset_from_mlruns training_dataset_run_id"
# What the demos' documents list.
DEMOS = {
    "init_model": "data_dir model_tag model_architecture batch_size seed",
    "infer": "run_id model model_name model_version model_architecture batch_size seed dataset_tar_name dataset_name",
    "train": "model_tag data_dir_train data_dir_test model_architecture epochs batch_size register_model learning_rate"
    f" optimizer validation_split {STORED} dataset_tar_name dataset_name apply_defense seed register_model_name",
    "fgm": "data_dir model model_name model_version model_architecture batch_size eps eps_step minimal norm seed",
    "pt": "th es data_dir model model_architecture batch_size",
    "miface": "max_iter window_length threshold learning_rate",
    "mi": "max_iter window_length threshold learning_rate model_name model_version",
    "gen_poison_model": "model_tag data_dir_train data_dir_test model_architecture epochs batch_size register_model"
    f" learning_rate optimizer training_split {STORED} seed target_class_id feature_layer_index"
    " discriminator_layer_1_size discriminator_layer_2_size regularization_factor poison_fraction",
    "gen_poison_test_data": "data_dir model_architecture target_class batch_size seed poison_fraction label_type",
    "gen_poison_clean_data": "data_dir model model_architecture target_class batch_size seed poison_fraction"
    " label_type",
    "spatial_smoothing": f"{DEFENDING} spatial_smoothing_window_size spatial_smoothing_apply_fit"
    " spatial_smoothing_apply_predict",
    "jpeg_compression": f"{DEFENDING} jpeg_compression_channels_first jpeg_compression_quality"
    " jpeg_compression_apply_fit jpeg_compression_apply_predict",
    "gaussian_augmentation": f"{DEFENDING} gaussian_augmentation_perform_data_augmentation gaussian_augmentation_ratio"
    " gaussian_augmentation_sigma gaussian_augmentation_apply_fit gaussian_augmentation_apply_predict",
}


def configs(name: str, kwargs: str) -> dict[str, Any]:
    return config_of(ENTRY_POINTS[name], parse_parameters(ENTRY_POINTS[name], kwargs.split()))


def target(name: str, kwargs: str) -> Target:
    return target_of(ENTRY_POINTS[name], parse_parameters(ENTRY_POINTS[name], kwargs.split()))


def test_every_entry_point_and_parameter_of_the_demos_is_taken_or_said_to_change_nothing():
    assert set(ENTRY_POINTS) == set(DEMOS)
    for name, listed in DEMOS.items():
        entry = ENTRY_POINTS[name]
        assert set(listed.split()) <= set(entry.parameters) | set(entry.not_needed)
        assert not set(entry.parameters) & {*entry.not_needed, *entry.not_taken}
        assert {one for one in listed.split() if one in entry.parameters and not entry.parameters[one].demo} == set()


@pytest.mark.parametrize(
    ("name", "kwargs", "expected"),
    [
        ("fgm", "model_name=mnist_le_net model_version=1", {"attack": FastGradientMethod(eps=0.3)}),
        (
            "fgm",
            "model_architecture=le_net eps=0.5 eps_step=0.05 minimal=1 norm=2 batch_size=32 seed=7",
            {"attack": FastGradientMethod(eps=0.5, eps_step=0.05, minimal=True, norm=2, batch_size=32, seed=7)},
        ),
        ("pt", "model_architecture=le_net", {"attack": PixelAttack(th=1)}),
        ("pt", "model_architecture=le_net th=10 es=0", {"attack": PixelAttack(th=10, es=0)}),
        ("pt", "model_architecture=le_net th=10 method=threshold", {"attack": ThresholdAttack(th=10)}),
        (
            "miface",
            "model_architecture=le_net max_iter=10 window_length=5 threshold=0.9 learning_rate=0.2 classes=3,1",
            {
                "inversion": ModelInversion(
                    max_iter=10, window_length=5, threshold=0.9, learning_rate=0.2, classes=(3, 1)
                )
            },
        ),
        ("mi", "model_architecture=le_net", {"inversion": ModelInversion()}),
        (
            "train",
            "model_architecture=le_net epochs=3 optimizer=Adagrad register_model=False model_tag=v2",
            {
                "architecture": TrainingRecipe(
                    architecture="le_net", epochs=3, optimizer="adagrad", register_model=False, model_tag="v2"
                )
            },
        ),
        (
            "train",
            "model_architecture=le_net apply_defense=True",
            {"architecture": TrainingRecipe(architecture="le_net", madry=MadryTraining(eps=0.3))},
        ),
        (
            "train",
            "model_architecture=le_net madry.eps=0.1 madry.steps=3",
            {"architecture": TrainingRecipe(architecture="le_net", madry=MadryTraining(eps=0.1, steps=3))},
        ),
        (
            "train",
            "experiment=mnist model_architecture=le_net register_model_name=mnist_second_try_le_net",
            {"architecture": TrainingRecipe(architecture="le_net", model_tag="second_try")},
        ),
        (
            "init_model",
            "model_architecture=resnet50",
            {"architecture": TrainingRecipe(architecture="resnet50", epochs=0, validation_split=0, weights="imagenet")},
        ),
        ("infer", "model_architecture=le_net", {}),
        (
            "gen_poison_model",
            "model_architecture=le_net epochs=2 seed=5 target_class_id=3 feature_layer_index=6 training_split=0.5",
            {
                "architecture": TrainingRecipe(architecture="le_net", epochs=2, seed=5),
                "poisoning": AdversarialEmbedding(
                    target_class=3, poison_fraction=0.1, feature_layer=6, training_split=0.5, seed=5
                ),
            },
        ),
        (
            "gen_poison_test_data",
            "target_class=3 poison_fraction=0.2 trigger.position=2,3 trigger.size=4",
            {
                "poisoning": BaselineBackdoor(
                    target_class=3, poison_fraction=0.2, trigger=Trigger(position=(2, 3), size=4)
                )
            },
        ),
        (
            "gen_poison_test_data",
            "target_class=3 label_type=test asset=poisoned_training_set",
            {"poisoning": BaselineBackdoor(target_class=3, poison_fraction=0.1, label_type="test")},
        ),
        (
            "gen_poison_clean_data",
            "architecture=le_net@epochs=3 target_class=3 norm=inf eps=0.3",
            {
                "poisoning": CleanLabelBackdoor(
                    target_class=3, norm="inf", eps=0.3, proxy_architecture="le_net@epochs=3"
                )
            },
        ),
        ("spatial_smoothing", "spatial_smoothing_window_size=5", {"defence": SpatialSmoothing(window_size=5)}),
        ("jpeg_compression", "quality=75 apply_fit=true", {"defence": JpegCompression(quality=75, apply_fit=True)}),
        (
            "gaussian_augmentation",
            "gaussian_augmentation_sigma=0.1 gaussian_augmentation_apply_predict=false",
            {"defence": GaussianAugmentation(sigma=0.1, apply_predict=False)},
        ),
    ],
)
def test_the_demos_parameters_become_typed_configs(name: str, kwargs: str, expected: dict[str, Any]):
    assert configs(name, kwargs) == expected


def test_a_registered_proxy_model_is_named_once_it_was_looked_up():
    values = parse_parameters(ENTRY_POINTS["gen_poison_clean_data"], ["model=mnist_le_net/2", "target_class=3"])
    assert config_of(ENTRY_POINTS["gen_poison_clean_data"], values)["poisoning"].proxy_architecture is None
    assert (
        config_of(ENTRY_POINTS["gen_poison_clean_data"], values, model="le_net")["poisoning"].proxy_architecture
        == "le_net"
    )


@pytest.mark.parametrize(
    ("name", "kwargs", "expected"),
    [
        ("fgm", "model=a_le_net/2", Target("workbench", model_name="a_le_net", model_version=2)),
        (
            "fgm",
            "model_name=a_le_net model_version=2 model_architecture=le_net experiment=mnist",
            Target("mnist", model="le_net", model_name="a_le_net", model_version=2),
        ),
        ("fgm", "architecture=le_net@epochs=3", Target("workbench", model="le_net@epochs=3")),
        ("train", "model_architecture=le_net", Target("workbench", asset="training_set")),
        (
            "train",
            "model_architecture=le_net attack=baseline@target_class=1@poison_fraction=0.1",
            Target("workbench", asset="poisoned_training_set", attack="baseline@target_class=1@poison_fraction=0.1"),
        ),
        ("train", "model_architecture=le_net training_dataset_run_id=f00", Target("workbench", run_id="f00")),
        ("infer", "model_architecture=le_net", Target("workbench", model="le_net", asset="testing_set")),
        (
            "infer",
            "run_id=f00 model_name=mnist_le_net model_version=1",
            Target("workbench", model_name="mnist_le_net", model_version=1, run_id="f00"),
        ),
        (
            "infer",
            "model_architecture=le_net asset=adversarial_set architecture=shallow_net attack=fgm@eps=0.3",
            Target("workbench", "le_net", None, None, "adversarial_set", "shallow_net", "fgm@eps=0.3"),
        ),
        (
            "spatial_smoothing",
            "asset=triggered_testing_set attack=patch",
            Target("workbench", asset="triggered_testing_set", attack="patch"),
        ),
        ("gen_poison_test_data", "target_class=1", Target("workbench", asset="triggered_testing_set")),
        ("gen_poison_test_data", "target_class=1 label_type=train", Target("workbench", asset="poisoned_training_set")),
    ],
)
def test_parameters_name_the_cell_and_the_model_worked_on(name: str, kwargs: str, expected: Target):
    assert target(name, kwargs) == expected


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("fgn", "eps=0.3", "there is no entry point 'fgn', available: init_model, train, infer, fgm, "),
        (
            "fgm",
            "epz=0.3",
            "entry point 'fgm': there is no parameter 'epz', available: model, model_name, model_version, ",
        ),
        ("fgm", "model_architecture=le_net eps=0.3 eps=0.3", "entry point 'fgm', parameter 'eps': given twice"),
        (
            "jpeg_compression",
            "quality=3 jpeg_compression_quality=4",
            "entry point 'jpeg_compression', parameter 'jpeg_",
        ),
        ("fgm", "eps", "entry point 'fgm': 'eps' is not allowed, write name=value"),
        (
            "fgm",
            "model_architecture=le_net eps=big",
            "entry point 'fgm', parameter 'eps': 'big' is not allowed, it must be a valid number",
        ),
        (
            "fgm",
            "model_architecture=le_net norm=3",
            "entry point 'fgm', parameter 'norm': norm is '3': allowed are inf, 1 and 2",
        ),
        (
            "miface",
            "model_architecture=le_net max_iter=0",
            "entry point 'miface', parameter 'max_iter': 0 is not allowed, it must be greater than or equal to 1",
        ),
        (
            "train",
            "epochs=3",
            "entry point 'train', parameter 'model_architecture': a value is required",
        ),
        ("train", "model_architecture=lenet", "entry point 'train', parameter 'model_architecture': 'lenet' is not"),
        ("fgm", "eps=0.3", "entry point 'fgm': no model is given, give model_architecture, architecture or model_name"),
        ("fgm", "model=a model_name=b", "entry point 'fgm': model and model_name name different models, give only one"),
        ("fgm", "model=a/b", "entry point 'fgm', parameter 'model': 'a/b' is not allowed, write NAME or NAME/1"),
        (
            "fgm",
            "model_architecture=le_net architecture=shallow_net",
            "entry point 'fgm': model_architecture 'le_net' and architecture 'shallow_net' name different models, give",
        ),
        (
            "infer",
            "model_architecture=le_net asset=inverted_set architecture=le_net",
            "entry point 'infer': inverted_set is identified by architecture and attack: give attack",
        ),
        (
            "infer",
            "model_architecture=le_net attack=fgm",
            "entry point 'infer': testing_set has a single cell: leave out attack",
        ),
        (
            "infer",
            "model_architecture=le_net run_id=f00 asset=testing_set",
            "entry point 'infer': run_id already names the set, leave out asset",
        ),
        (
            "infer",
            "model_architecture=le_net asset=tar",
            "entry point 'infer', parameter 'asset': 'tar' is not allowed",
        ),
    ],
)
def test_a_wrong_parameter_is_refused_in_one_sentence(name: str, kwargs: str, message: str):
    with pytest.raises(EntryPointError) as caught:
        parse_parameters(entry_point(name), kwargs.split())
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("fgm", "model_architecture=le_net eps=2", "entry point 'fgm', parameter 'norm': eps is 2 in the norm inf"),
        ("pt", "model_architecture=le_net method=threshold th=256", "entry point 'pt', parameter 'th': 256 is not"),
        (
            "train",
            "model_architecture=le_net register_model_name=mnist_le_net",
            "entry point 'train', parameter 'register_model_name': 'mnist_le_net' is not allowed, models of this "
            "experiment are named workbench_le_net, or workbench_TAG_le_net with the model_tag TAG",
        ),
        (
            "train",
            "model_architecture=le_net apply_defense=false madry.eps=0.1",
            "entry point 'train', parameter 'madry.eps': set apply_defense to true, or leave it out",
        ),
        ("jpeg_compression", "channels_first=true", "entry point 'jpeg_compression', parameter 'channels_first': chan"),
        ("init_model", "model_architecture=le_net", "entry point 'init_model': weights 'imagenet' are not allowed for"),
    ],
)
def test_values_that_do_not_fit_together_are_refused(name: str, kwargs: str, message: str):
    with pytest.raises(EntryPointError) as caught:
        configs(name, kwargs)
    assert str(caught.value).startswith(message)


def test_kwargs_are_read_as_the_demos_write_them():
    assert parse_kwargs("-P eps=0.3 -P norm=2") == ["eps=0.3", "norm=2"]
    assert parse_kwargs("-P weights='my models/a.keras' -Ptag=a=b") == ["weights=my models/a.keras", "tag=a=b"]
    assert parse_kwargs("") == []


@pytest.mark.parametrize("text", ["eps=0.3", "-P", "-P eps", "-P eps=0.3 norm=2", "-P eps='0.3", "--eps 0.3"])
def test_other_kwargs_are_refused(text: str):
    with pytest.raises(EntryPointError, match="write -P name=value"):
        parse_kwargs(text)


def test_the_table_of_parameters_says_what_the_config_says():
    rows = {row.name: row for row in parameters_table(ENTRY_POINTS["fgm"])}
    eps = FastGradientMethod.model_fields["eps"]
    assert rows["eps"] == ("eps", "number", "above 0", "0.3", eps.description)
    assert rows["norm"][1:4] == ("string or integer", "inf, 1, 2", "inf")
    assert rows["seed"][1:4] == ("integer", "at least 0", "")
    assert {row.name: row.default for row in parameters_table(ENTRY_POINTS["gen_poison_test_data"])}[
        "target_class"
    ] == "required"
    assert all(
        row.help and "\n" not in row.help for name in ENTRY_POINTS for row in parameters_table(ENTRY_POINTS[name])
    )


def test_a_default_beside_the_config_stands_only_where_the_entry_point_needs_one():
    for entry in ENTRY_POINTS.values():
        for (section, path), value in entry.defaults.items():
            field = entry.configs[section].model_fields[path]
            assert field.is_required() or (entry.name == "init_model" and field.default != value)


@pytest.mark.parametrize("name", [name for name in ENTRY_POINTS if name != "mi"])
def test_the_call_of_the_parity_page_is_one_that_is_taken(name: str):
    given = entry_points.call(ENTRY_POINTS[name])
    assert all(item.partition("=")[2] for item in given)
    assert set(parse_parameters(ENTRY_POINTS[name], given)) == {item.partition("=")[0] for item in given}
    assert set(config_of(ENTRY_POINTS[name], parse_parameters(ENTRY_POINTS[name], given), model="le_net")) == set(
        ENTRY_POINTS[name].configs
    )


def test_the_parity_page_is_the_one_the_table_gives():
    assert entry_points.PAGE.read_text() == entry_points.page(), "run `python -m docs.entry_points`"


def test_neither_dagster_nor_tensorflow_is_imported():
    code = "import sys\nfrom dioptra_assets.entry_points import demos, help as h\n"
    code += "h.parameters_table(demos.ENTRY_POINTS['fgm'])\n"
    code += "print({'dagster', 'tensorflow', 'keras', 'art', 'mlflow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
