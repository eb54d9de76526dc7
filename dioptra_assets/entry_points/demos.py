"""The entry points of the Dioptra demos under their own names, with the mapping of their parameters.

A parameter takes its type, bounds, default and help from the config field it sets. Besides the parameters of the demos,
an entry point accepts every other field of its configs by its own name (`engine`, `trigger.size`).

Why: docs/decisions/0016-an-entry-point-is-one-row.md
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, Field
from pydantic.fields import FieldInfo

from dioptra_assets.entry_points.entry_point import MADRY_EPS, SWITCH, WORKBENCH, EntryPoint, EntryPointError, Parameter
from dioptra_assets.robustness.attacks import FastGradientMethod, PixelAttack, ThresholdAttack
from dioptra_assets.robustness.defences import DEFENCES
from dioptra_assets.robustness.inversion.miface import ModelInversion
from dioptra_assets.robustness.poisoning import AdversarialEmbedding, BaselineBackdoor, CleanLabelBackdoor
from dioptra_assets.robustness.training.architectures import ARCHITECTURES
from dioptra_assets.robustness.training.loop import TrainingRecipe
from partitions.dynamic_keys import nested_model
from partitions.image_sets import checked_set
from partitions.keys import ARCHITECTURE, ATTACK, KEY_RULE, is_key


class _Fields(NamedTuple):
    """The fields of a config that an entry point accepts.

    Attributes:
        section: what the config is for, for example `attack`.
        config: its type.
        demo: parameters of the demos, each as `name` or `name=path of the field`.
        without: fields that are not exposed as parameters.
    """

    section: str
    config: type[BaseModel]
    demo: str
    without: str = ""


def _make(
    name: str,
    text: str,
    assets: str,
    *taken: Parameter | _Fields,
    not_needed: Mapping[str, str],
    not_taken: Mapping[str, str] | None = None,
    defaults: Mapping[tuple[str, str], Any] | None = None,
    example: str = "",
) -> EntryPoint:
    experiment = Parameter("experiment", _EXPERIMENT, _EXPERIMENT_HELP, WORKBENCH, demo=False)
    defaults = defaults or {}
    parameters: dict[str, Parameter] = {}
    aliases: dict[str, str] = {}
    for source in [*taken, experiment]:
        for parameter in _parameters(source, defaults) if isinstance(source, _Fields) else [source]:
            before = parameters.get(parameter.name)
            joined = (*before.places, *parameter.places) if before else parameter.places
            parameters[parameter.name] = replace(before or parameter, places=joined)
    for parameter in parameters.values():
        aliases |= {path: parameter.name for _, path in parameter.places if path not in parameters}
    ordered = sorted(parameters.values(), key=lambda parameter: not parameter.demo)
    return EntryPoint(
        name=name,
        help=text,
        assets=tuple(assets.split()),
        parameters={parameter.name: parameter for parameter in ordered},
        not_needed=dict(not_needed),
        not_taken=dict(not_taken or {}),
        configs={fields.section: fields.config for fields in taken if isinstance(fields, _Fields)},
        defaults=dict(defaults),
        aliases=aliases,
        example=tuple(example.split()),
    )


def _parameters(fields: _Fields, defaults: Mapping[tuple[str, str], Any]) -> list[Parameter]:
    demo = {path or name: name for name, _, path in (word.partition("=") for word in fields.demo.split())}
    without = {"method", *fields.without.split()}
    leaves = dict(_leaves(fields.config))
    parameters = []
    for path in [*demo, *(path for path in leaves if path not in demo)]:
        if path in without or path.split(".")[0] in without:
            continue
        info = leaves[path]
        parameters.append(
            Parameter(
                name=demo.get(path, path),
                type=_ARCHITECTURE if path == "architecture" else Annotated[info.annotation, *info.metadata, _ANY],
                help=str(info.description),
                default=MADRY_EPS if path == "madry.eps" else defaults.get((fields.section, path), info.default),
                places=((fields.section, path),),
                demo=path in demo,
            )
        )
    return parameters


def _leaves(config: type[BaseModel], within: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Path and field of everything that holds a value, not further fields."""
    for name, info in config.model_fields.items():
        nested = nested_model(info.annotation)
        if nested:
            yield from _leaves(nested, f"{within}{name}.")
        else:
            yield f"{within}{name}", info


def _key(key: str) -> str:
    if not is_key(key):
        raise ValueError(f"{key!r} is not allowed, a key has {KEY_RULE}")
    return key


_ANY = Field()
_EXPERIMENT = Annotated[str, Field(pattern="^[A-Za-z0-9_]{1,100}$")]
_EXPERIMENT_HELP = "Experiment that provides the data and holds the results."
_ARCHITECTURE = Literal[tuple(ARCHITECTURES)]  # pyright: ignore[reportInvalidTypeForm]
_KEY = Annotated[str, AfterValidator(_key)]
_SET_KEY = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.@=-]{1,200}$")]
_VERSION = Annotated[int, Field(ge=1)]
_REGISTERED = (
    Parameter("model", str, "Registered model, as NAME or NAME/VERSION."),
    Parameter("model_name", str, "Registered model. Same as model."),
    Parameter("model_version", _VERSION, "Version of the registered model. Default: the latest."),
    Parameter(
        "model_architecture", _ARCHITECTURE, "Use the model of this architecture, trained with the default recipe."
    ),
)
_MODEL = (
    *_REGISTERED,
    Parameter("architecture", _KEY, "Architecture key of the model, for example le_net@epochs=3.", demo=False),
)
_SET = (
    Parameter(
        "asset", Annotated[str, AfterValidator(checked_set)], "The image set to work on.", "testing_set", demo=False
    ),
    Parameter(ARCHITECTURE, _KEY, "Architecture key of the image set.", demo=False),
    Parameter(ATTACK, _KEY, "Attack key of the image set.", demo=False),
    Parameter("defence", _KEY, "Defence key of the image set, only for a defended_set.", demo=False),
    Parameter("image_set", _SET_KEY, "Key of the set that was defended, only for a defended_set.", demo=False),
)
_FROM_RUN = Parameter("load_dataset_from_mlruns", bool, "Whether to use the given run id.", True)
_TAG = Parameter(
    "register_model_name", str, "Name to register under, as {experiment}_{model_tag}_{architecture}. Sets model_tag."
)
_DATA = "The experiment declares its images under `data`."
_RUN = "An image set is named by the run that made it, or by asset and keys, not by a file or folder."
_OUTPUT = "Image sets are stored as cells of assets. Load them with `da.load`."
_RANGE = "Pixels are float32 in [0, 1] everywhere. Any further preprocessing is a layer of the model."
_MEMORY = "The result does not depend on the batch size, which is chosen to fit in memory."
_UNTRAINED = "Nothing is trained."
_NOTHING_RANDOM = "Nothing is drawn at random."
_CELL_SEED = "The noise uses the seed of the cell, derived from the experiment's seed and the names of the cell."
_NO_MODEL = "No model is involved: only a trigger and a label are set."
_OWN_POISONS = "The poisons are made from the experiment's training set."
_COMMON: dict[str, str] = {
    "seed=-1": "Without a seed, one is derived from the experiment's seed and logged.",
    "data_dir": _DATA,
    "dataset": _DATA,
    "image_size": "Images keep the size they have in the experiment's data.",
    "clip_values": _RANGE,
    "rescale": _RANGE,
    "imagenet_preprocessing": _RANGE,
    "adv_tar_name": _OUTPUT,
    "adv_data_dir": _OUTPUT,
}
_STORED = _COMMON | {"dataset_tar_name": _RUN, "dataset_name": _RUN}
_TRAINING = _STORED | {"data_dir_train": _DATA, "data_dir_test": _DATA}
_DEFENDING = _STORED | {"batch_size": _MEMORY, "def_tar_name": _OUTPUT, "def_data_dir": _OUTPUT}


def _defence(name: str, text: str, demo: str, seed: str) -> EntryPoint:
    return _make(
        name,
        text,
        "defended_set predictions",
        *_REGISTERED,
        _Fields("defence", DEFENCES[name], " ".join(f"{name}_{path}={path}" for path in demo.split())),
        Parameter("dataset_run_id", str, "MLflow run of the cell that holds the image set to defend."),
        _FROM_RUN,
        *_SET,
        not_needed=_DEFENDING | {"seed": seed},
        example="asset=adversarial_set architecture=le_net attack=fgm@eps=0.3",
    )


_ALL = (
    _make(
        "init_model",
        "Add a pretrained model to the experiment and evaluate it on the testing set.",
        "model clean_predictions",
        _Fields(
            "architecture",
            TrainingRecipe,
            "model_architecture=architecture model_tag seed",
            "epochs batch_size learning_rate optimizer validation_split early_stopping madry",
        ),
        _TAG,
        not_needed=_COMMON | {"batch_size": _MEMORY, "learning_rate": _UNTRAINED, "optimizer": _UNTRAINED},
        defaults={
            ("architecture", "epochs"): 0,
            ("architecture", "validation_split"): 0,
            ("architecture", "weights"): "imagenet",
        },
        example="model_architecture=resnet50",
    ),
    _make(
        "train",
        "Train a model and evaluate it on the testing set.",
        "model clean_predictions poisoned_model triggered_testing_set poisoning_examples poisoning_metrics",
        _Fields(
            "architecture",
            TrainingRecipe,
            "model_tag model_architecture=architecture epochs batch_size register_model learning_rate optimizer "
            "validation_split seed",
        ),
        _TAG,
        Parameter(
            "apply_defense", bool, "Use Madry's adversarial training. Its fields are madry.eps and so on.", False
        ),
        Parameter("training_dataset_run_id", str, "MLflow run of the poisoned training set to train on."),
        _FROM_RUN,
        Parameter("attack", _KEY, "Attack key of the poisoned training set to train on.", demo=False),
        not_needed=_TRAINING,
        example="model_architecture=le_net",
    ),
    _make(
        "infer",
        "Evaluate a model on a stored image set.",
        "predictions",
        Parameter("run_id", str, "MLflow run of the cell that holds the image set to evaluate on."),
        *_REGISTERED,
        *_SET,
        not_needed=_STORED | {"batch_size": _MEMORY, "seed": _NOTHING_RANDOM},
        example="model_architecture=le_net asset=adversarial_set architecture=shallow_net attack=fgm@eps=0.3",
    ),
    _make(
        "fgm",
        "Attack the testing set with the fast gradient method.",
        "adversarial_set evasion_examples evasion_metrics",
        *_MODEL,
        _Fields("attack", FastGradientMethod, "batch_size eps eps_step minimal norm seed"),
        not_needed=_COMMON,
        not_taken={"target_index": "give the target class as target_class, with targeted=true."},
        defaults={("attack", "eps"): 0.3},
        example="model_architecture=le_net",
    ),
    _make(
        "pt",
        "Attack the testing set with the pixel attack or the threshold attack.",
        "adversarial_set evasion_examples evasion_metrics",
        *_MODEL,
        _Fields("attack", PixelAttack, "batch_size th es"),
        Parameter(
            "method",
            Literal["pixel", "threshold"],
            "pixel: at most th pixels change. threshold: each pixel changes by at most th of 255; es then defaults to "
            f"{ThresholdAttack.model_fields['es'].default}.",
            "pixel",
            demo=False,
        ),
        not_needed=_COMMON,
        defaults={("attack", "th"): 1},
        example="model_architecture=le_net",
    ),
    _make(
        "miface",
        "Reconstruct one image per class from a model.",
        "inverted_set inversion_metrics",
        *_MODEL,
        _Fields("inversion", ModelInversion, "batch_size max_iter window_length threshold learning_rate seed"),
        not_needed=_COMMON,
        example="model_architecture=le_net",
    ),
    _make(
        "gen_poison_model",
        "Train a model with an adversarial embedding backdoor.",
        "poisoned_model model clean_predictions poisoned_training_set poison_manifest triggered_testing_set "
        "poisoning_examples poisoning_metrics",
        _Fields(
            "architecture",
            TrainingRecipe,
            "model_tag model_architecture=architecture epochs batch_size register_model learning_rate optimizer seed",
            "validation_split madry",
        ),
        _TAG,
        _Fields(
            "poisoning",
            AdversarialEmbedding,
            "training_split validation_split seed target_class_id=target_class feature_layer_index=feature_layer "
            "discriminator_layer_1_size discriminator_layer_2_size regularization_factor poison_fraction",
        ),
        not_needed=_TRAINING | {SWITCH: _OWN_POISONS, "training_dataset_run_id": _OWN_POISONS},
        not_taken={f"{SWITCH}={yes}": f"{_OWN_POISONS[:-1]}: leave it out." for yes in ("true", "1", "yes", "on")},
        defaults={("poisoning", "poison_fraction"): 0.1},
        example="model_architecture=le_net target_class_id=1",
    ),
    _make(
        "gen_poison_test_data",
        "Add the trigger to the testing set. With label_type=train, poison the training set instead.",
        "poisoned_training_set poison_manifest triggered_testing_set",
        _Fields("poisoning", BaselineBackdoor, "target_class seed poison_fraction", "label_type"),
        Parameter(
            "label_type",
            Literal["train", "test"],
            "train: poisoned_training_set, labelled with the target class. test: triggered_testing_set, labels kept.",
            "test",
        ),
        Parameter(
            "asset",
            Literal["triggered_testing_set", "poisoned_training_set"],
            "The set to make. Default: as label_type says. With label_type=test, training rows keep their labels.",
            demo=False,
        ),
        not_needed=_COMMON | {"batch_size": _MEMORY, "model_architecture": _NO_MODEL},
        defaults={("poisoning", "poison_fraction"): 0.1},
        example="target_class=1",
    ),
    _make(
        "gen_poison_clean_data",
        "Poison the training set with clean labels, against a proxy model.",
        "poisoned_training_set poison_manifest triggered_testing_set",
        *_MODEL,
        _Fields(
            "poisoning",
            CleanLabelBackdoor,
            "target_class batch_size seed poison_fraction eps eps_step norm",
            "proxy_architecture",
        ),
        not_needed=_COMMON
        | {"label_type": "A clean-label poison keeps the label of its image, in training and testing data alike."},
        not_taken={"target_index": "give the class as target_class."},
        example="model_architecture=le_net target_class=1",
    ),
    _defence(
        "spatial_smoothing",
        "Smooth a stored image set with a median filter.",
        "window_size apply_fit apply_predict",
        _NOTHING_RANDOM,
    ),
    _defence(
        "jpeg_compression",
        "Compress a stored image set with JPEG.",
        "channels_first quality apply_fit apply_predict",
        _NOTHING_RANDOM,
    ),
    _defence(
        "gaussian_augmentation",
        "Add Gaussian noise to a stored image set.",
        "perform_data_augmentation ratio sigma apply_fit apply_predict",
        _CELL_SEED,
    ),
)


ENTRY_POINTS: dict[str, EntryPoint] = {entry.name: entry for entry in _ALL}


ENTRY_POINTS["mi"] = ENTRY_POINTS["miface"]


def entry_point(name: str) -> EntryPoint:
    """The entry point with this name.

    Raises:
        EntryPointError: there is none. The message lists those available.
    """
    if name not in ENTRY_POINTS:
        raise EntryPointError(f"there is no entry point {name!r}, available: {', '.join(ENTRY_POINTS)}")
    return ENTRY_POINTS[name]
