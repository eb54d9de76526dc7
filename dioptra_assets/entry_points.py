"""Entry points: the demos' jobs under their own names, and what each of their parameters became here.

>>> values = parse_parameters("fgm", parse_kwargs("-P model_architecture=le_net -P eps=0.3 -P norm=2"))
>>> config_of("fgm", values)["attack"].threat_model().budget
'L2 <= 0.3, pixels in [0, 1]'

Types, bounds, defaults and help of a parameter are those of the config field it sets. Beside the demos' parameters an
entry point takes every other field of its configs, under the field's own name (`engine`, `trigger.size`).
"""

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, create_model
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from dioptra_assets.robustness.architectures import ARCHITECTURES
from dioptra_assets.robustness.attacks import FastGradientMethod, PixelAttack, ThresholdAttack
from dioptra_assets.robustness.defences import DEFENCES
from dioptra_assets.robustness.inversion import ModelInversion
from dioptra_assets.robustness.poisoning import AdversarialEmbedding, BaselineBackdoor, CleanLabelBackdoor
from dioptra_assets.robustness.training import TrainingRecipe
from partitions.configs import ExperimentError, one_of, validate
from partitions.dynamic_keys import nested_model, parse_value
from partitions.keys import KEY_RULE, is_key, key_text

WORKBENCH = "workbench"

# The sets that an entry point can work on, and the dimensions that name one. Of a defended set the asset goes on with
# the name of the defence.
SETS: dict[str, tuple[str, ...]] = {
    "training_set": (),
    "testing_set": (),
    "adversarial_set": ("architecture", "attack"),
    "defended_set/": ("architecture", "attack"),
    "poisoned_training_set": ("attack",),
    "triggered_testing_set": ("attack",),
    "inverted_set": ("architecture", "attack"),
}

_BOUNDS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
    "enum": "{}",
    "const": "{}",
    "pattern": "matches {}",
}


class EntryPointError(ValueError):
    """A parameter, or an entry point, that cannot be used; one sentence, with what is allowed."""


@dataclass(frozen=True)
class Parameter:
    """A parameter of an entry point.

    Attributes:
        name: as the demos call it; one of ours as its config field is called.
        type: with its bounds, for pydantic.
        help: one line.
        default: what it is where it is not given; PydanticUndefined where it must be given.
        places: the fields that it sets: (`architecture`, `attack`, `poisoning`, `inversion` or `defence`, path of the
            field). Empty where it names a cell or a model: see :class:`Target`.
        demo: the demos have it.
    """

    name: str
    type: Any
    help: str
    default: Any = None
    places: tuple[tuple[str, str], ...] = ()
    demo: bool = True


@dataclass(frozen=True)
class EntryPoint:
    """A job of the demos.

    Attributes:
        name: as the demos call it.
        help: what it does, in one line.
        assets: the assets whose cells it materializes, below the experiment; `model` before what is made from it.
        parameters: what it takes, the demos' first.
        not_taken: parameters of the demos that have no place here, and why, in one sentence.
        configs: the typed configs that it makes, by what they configure.
        defaults: (config, path of a field) -> what it is where no parameter gives it, other than the config says.
        aliases: other names of parameters.
        example: parameters of a call that works.
    """

    name: str
    help: str
    assets: tuple[str, ...]
    parameters: dict[str, Parameter]
    not_taken: dict[str, str]
    configs: dict[str, type[BaseModel]] = field(default_factory=dict)
    defaults: dict[tuple[str, str], Any] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    example: tuple[str, ...] = ()


@dataclass(frozen=True)
class Target:
    """What an entry point works on, as its parameters name it; what is None was not named.

    Attributes:
        experiment: whose assets these are.
        model: architecture key of the model that is attacked, inverted, asked or used as the proxy model.
        model_name: the name under which it is registered in MLflow, instead of `model`. Where both are given, the key
            of the registered model is `model` or begins with `{model}@`.
        model_version: the version registered.
        asset: the set worked on, or of `gen_poison_test_data` the one made; one of `SETS`, a defended set with the name
            of its defence.
        architecture: architecture key of that set's cell.
        attack: attack key of that set's cell.
        run_id: the MLflow run of the cell that holds the set, instead of the three.
    """

    experiment: str
    model: str | None = None
    model_name: str | None = None
    model_version: int | None = None
    asset: str | None = None
    architecture: str | None = None
    attack: str | None = None
    run_id: str | None = None


class Row(NamedTuple):
    """A parameter for people: each column is text, and may be empty."""

    name: str
    type: str
    bounds: str
    default: str
    help: str


def parse_kwargs(text: str) -> list[str]:
    """The parameters in the demos' `entry_point_kwargs`: `-P eps=0.3 -P norm=2` gives `eps=0.3` and `norm=2`.

    Raises:
        EntryPointError: for anything else.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise EntryPointError(f"{text!r} cannot be read ({error}): write -P name=value") from error
    given: list[str] = []
    while words:
        word = words.pop(0)
        value = word[2:] or (words.pop(0) if words else "")
        if not word.startswith("-P") or "=" not in value:
            raise EntryPointError(f"{word!r} of {text!r} is not allowed: write -P name=value for each parameter")
        given.append(value)
    return given


def entry_point(name: str) -> EntryPoint:
    """The entry point of a name.

    Raises:
        EntryPointError: naming those that exist.
    """
    if name not in ENTRY_POINTS:
        raise EntryPointError(f"there is no entry point {name!r}, there are {', '.join(ENTRY_POINTS)}")
    return ENTRY_POINTS[name]


def parse_parameters(name: str, given: Iterable[str]) -> dict[str, Any]:
    """Typed values by parameter, of those that were given.

    Args:
        name: the entry point.
        given: `parameter=value`, each parameter once. Several values of one parameter are joined by commas.

    Raises:
        EntryPointError: for a parameter that does not exist, is given twice, must be given, is out of bounds or of the
            wrong type, and for one of the demos' that has no place here, with the reason.
    """
    entry = entry_point(name)
    where = f"entry point {entry.name!r}"
    values: dict[str, Any] = {}
    for item in given:
        called, equals, text = item.partition("=")
        if not equals:
            raise EntryPointError(f"{where}: {item!r} is not allowed, write name=value")
        if refused := next((one for one in (item, called) if one in entry.not_taken), None):
            raise EntryPointError(
                f"{where}, parameter {refused!r} is not taken: {entry.not_taken[refused]} Allowed are "
                f"{', '.join(entry.parameters)}"
            )
        parameter = entry.parameters.get(entry.aliases.get(called, called))
        if parameter is None:
            raise EntryPointError(
                f"{where}: there is no parameter {called!r}, allowed are {', '.join(entry.parameters)}"
            )
        if parameter.name in values:
            raise EntryPointError(f"{where}, parameter {parameter.name!r}: given twice")
        # The demos write Adam; no name here has capitals.
        text = text.lower() if get_origin(_plain(parameter.type)) is Literal else text
        values[parameter.name] = parse_value(parameter.type, text, between=",")
    fields: Any = {
        one.name: (one.type, Field(default=... if one.default is PydanticUndefined else None))
        for one in entry.parameters.values()
    }
    model = create_model("Parameters", __config__=ConfigDict(extra="forbid", protected_namespaces=()), **fields)
    checked = _checked(model, values, where).model_dump(exclude_unset=True)
    target_of(name, checked)
    return checked


def config_of(name: str, values: Mapping[str, Any], *, model: str | None = None) -> dict[str, Any]:
    """The typed configs that an entry point makes, by what they configure.

    Args:
        name: the entry point.
        values: from :func:`parse_parameters`.
        model: architecture key of the proxy model, where `values` name a registered one.

    Returns:
        `architecture` (TrainingRecipe), `attack` (Attack), `poisoning` (Poisoning), `inversion` (ModelInversion) or
        `defence` (Defence); none for `infer`.

    Raises:
        EntryPointError: where values do not fit together.
    """
    entry = entry_point(name)
    where = f"entry point {entry.name!r}"
    documents: dict[str, dict[str, Any]] = {section: {} for section in entry.configs}
    for (section, path), value in entry.defaults.items():
        _set(documents[section], path, value)
    for parameter in entry.parameters.values():
        for section, path in parameter.places:
            if parameter.name in values:
                _set(documents[section], path, values[parameter.name])
    configs = dict(entry.configs)
    match entry.name:
        case "train":
            _apply_defense(documents["architecture"], values, where)
        case "pt":
            configs["attack"] = {"pixel": PixelAttack, "threshold": ThresholdAttack}[values.get("method", "pixel")]
        case "gen_poison_test_data":
            # The demos' `test` is of testing data. Of training data it makes another, harmless, kind of poison.
            own_labels = values.get("label_type") == "test" and values.get("asset") == "poisoned_training_set"
            documents["poisoning"]["label_type"] = "test" if own_labels else "train"
        case "gen_poison_clean_data":
            documents["poisoning"]["proxy_architecture"] = model or target_of(name, values).model
    if registered := values.get("register_model_name"):
        _name_registered(documents["architecture"], registered, values, where)
    return {section: _checked(kind, documents[section], where) for section, kind in configs.items()}


def target_of(name: str, values: Mapping[str, Any]) -> Target:
    """What an entry point works on.

    Args:
        name: the entry point.
        values: from :func:`parse_parameters`.

    Raises:
        EntryPointError: where a set or a model is named twice, or not at all.
    """
    entry = entry_point(name)
    where = f"entry point {entry.name!r}"
    registered, _, version = str(values.get("model") or values.get("model_name") or "").partition("/")
    if "model" in values and values.get("model_name", values["model"]) not in {registered, values["model"]}:
        raise EntryPointError(f"{where}: model and model_name are two models, give one of them")
    if version and not re.fullmatch("[1-9][0-9]*", version):
        raise EntryPointError(f"{where}, parameter 'model': {values['model']!r} is not allowed, write NAME or NAME/1")
    if "model_version" in values and not registered:
        raise EntryPointError(f"{where}, parameter 'model_version': give the model_name whose version it is")
    model, architecture = values.get("model_architecture"), values.get("architecture")
    works_on_set = any(one in entry.parameters for one in _RUN_IDS)
    if not works_on_set:
        # There is one architecture here: that of the model.
        if model and architecture and architecture.partition("@")[0] != model and not registered:
            raise EntryPointError(
                f"{where}: model_architecture {model!r} and architecture {architecture!r} are two models, give one"
            )
        model, architecture = architecture or model, None
    if "model" in entry.parameters and not (model or registered) and "defence" not in entry.configs:
        raise EntryPointError(f"{where}: no model is named, give model_architecture, architecture or model_name")
    target = Target(
        experiment=values.get("experiment", WORKBENCH),
        model=model if "model" in entry.parameters else None,
        model_name=registered or None,
        model_version=values.get("model_version", int(version) if version else None),
        asset=_asset_of(entry, values),
        architecture=architecture,
        attack=values.get("attack"),
        run_id=next((values[one] for one in _RUN_IDS if one in values), None),
    )
    return _with_set(target, where) if works_on_set else target


def _asset_of(entry: EntryPoint, values: Mapping[str, Any]) -> str | None:
    if entry.name == "gen_poison_test_data":
        made = {"train": "poisoned_training_set", "test": "triggered_testing_set"}
        return values.get("asset", made[values.get("label_type", "test")])
    if any(one in values for one in _RUN_IDS):
        return values.get("asset")
    if entry.name == "train":
        return "poisoned_training_set" if "attack" in values else "training_set"
    return values.get("asset", "testing_set" if "asset" in entry.parameters else None)


def parameters_table(name: str) -> list[Row]:
    """The parameters of an entry point for `--help`, in order: name, type, bounds, default and help."""
    return [_row(one) for one in entry_point(name).parameters.values()]


def _row(parameter: Parameter) -> Row:
    schema = create_model("Parameter", value=(parameter.type, ...)).model_json_schema()["properties"]["value"]
    choices = [one for one in schema.get("anyOf", [schema]) if one.get("type") != "null"]
    names = {bool: "boolean", int: "integer", float: "number", str: "string"}
    kinds = dict.fromkeys(
        kind for one in choices for kind in ([one["type"]] if "type" in one else [names[type(x)] for x in one["enum"]])
    )
    bounds = [
        text.format(", ".join(map(key_text, one[bound])) if bound == "enum" else key_text(one[bound]))
        for one in choices
        for bound, text in _BOUNDS.items()
        if bound in one
    ]
    default = parameter.default
    shown = "required" if default is PydanticUndefined else "" if default in (None, "") else key_text(default)
    return Row(parameter.name, " or ".join(kinds), ", ".join(bounds), shown, parameter.help)


def _plain(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _checked(model: type[BaseModel], values: Mapping[str, Any], where: str) -> BaseModel:
    try:
        return validate(model, values, where)
    except ExperimentError as error:
        raise EntryPointError(str(error).replace(", field ", ", parameter ")) from error


def _set(document: dict[str, Any], path: str, value: Any) -> None:
    *outer, last = path.split(".")
    for step in outer:
        document = document.setdefault(step, {})
    document[last] = value


def _apply_defense(document: dict[str, Any], values: Mapping[str, Any], where: str) -> None:
    given = [one for one in values if one.startswith("madry.")]
    if given and not values.get("apply_defense", True):
        raise EntryPointError(f"{where}, parameter {given[0]!r}: set apply_defense to true, or leave it out")
    if values.get("apply_defense") or given:
        document.setdefault("madry", {}).setdefault("eps", MADRY_EPS)


def _name_registered(document: dict[str, Any], name: str, values: Mapping[str, Any], where: str) -> None:
    """The tag that gives a registered model its name, `{experiment}_{tag}_{architecture}`."""
    before = f"{values.get('experiment', WORKBENCH)}_"
    after = values["model_architecture"]
    tag = name.removeprefix(before).removesuffix(after).removesuffix("_")
    if "_".join(filter(None, [before.removesuffix("_"), tag, after])) != name:
        raise EntryPointError(
            f"{where}, parameter 'register_model_name': {name!r} is not allowed, models of this experiment are called "
            f"{before}{after}, or {before}TAG_{after} with the model_tag TAG"
        )
    if values.get("model_tag", tag) != tag:
        raise EntryPointError(f"{where}: register_model_name has the tag {tag!r}, model_tag is {values['model_tag']!r}")
    document |= {"model_tag": tag, "register_model": values.get("register_model", True)}


def _with_set(target: Target, where: str) -> Target:
    named = [one for one in ("asset", "architecture", "attack") if getattr(target, one)]
    if target.run_id:
        if named:
            raise EntryPointError(f"{where}: run_id names the set already, leave out {', '.join(named)}")
        return target
    asset = str(target.asset)
    wanted = next(dimensions for name, dimensions in SETS.items() if _is_set(asset, name))
    missing = [one for one in wanted if not getattr(target, one)]
    needless = [one for one in ("architecture", "attack") if getattr(target, one) and one not in wanted]
    if missing or needless:
        what = f"give {' and '.join(missing)}" if missing else f"leave out {' and '.join(needless)}"
        named = f"named by {' and '.join(wanted)}" if wanted else "there once"
        raise EntryPointError(f"{where}: {asset} is {named}: {what}")
    return target


def _is_set(asset: str, name: str) -> bool:
    return asset.startswith(name) and is_key(asset[len(name) :]) if name.endswith("/") else asset == name


# --- What the demos' parameters became -------------------------------------------------------------------------------

MADRY_EPS = 0.3
_RUN_IDS = ("run_id", "dataset_run_id", "training_dataset_run_id")


class _Fields(NamedTuple):
    """The fields of a config that an entry point takes.

    Attributes:
        section: what the config configures.
        config: its type.
        demo: the demos' parameters, `name` or `name=path of the field`.
        without: fields that are not parameters.
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
    not_taken: Mapping[str, str],
    defaults: Mapping[tuple[str, str], Any] | None = None,
    example: str = "",
) -> EntryPoint:
    own, defaults = Parameter("experiment", _EXPERIMENT, _EXPERIMENT_HELP, WORKBENCH, demo=False), defaults or {}
    parameters: dict[str, Parameter] = {}
    aliases: dict[str, str] = {}
    for one in [*taken, own]:
        for parameter in _parameters(one, defaults) if isinstance(one, _Fields) else [one]:
            before = parameters.get(parameter.name)
            joined = (*before.places, *parameter.places) if before else parameter.places
            parameters[parameter.name] = replace(before or parameter, places=joined)
    for parameter in parameters.values():
        aliases |= {path: parameter.name for _, path in parameter.places if path not in parameters}
    ordered = sorted(parameters.values(), key=lambda one: not one.demo)
    return EntryPoint(
        name=name,
        help=text,
        assets=tuple(assets.split()),
        parameters={one.name: one for one in ordered},
        not_taken=dict(not_taken),
        configs={one.section: one.config for one in taken if isinstance(one, _Fields)},
        defaults=dict(defaults),
        aliases=aliases,
        example=tuple(example.split()),
    )


def _parameters(fields: _Fields, defaults: Mapping[tuple[str, str], Any]) -> list[Parameter]:
    demo = {path or name: name for name, _, path in (one.partition("=") for one in fields.demo.split())}
    without = {"method", *fields.without.split()}
    found = dict(_leaves(fields.config))
    parameters = []
    for path in [*demo, *(path for path in found if path not in demo)]:
        if path in without or path.split(".")[0] in without:
            continue
        info = found[path]
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
    """Path and field of everything that takes a value and not fields of its own."""
    for name, info in config.model_fields.items():
        nested = nested_model(info.annotation)
        if nested:
            yield from _leaves(nested, f"{within}{name}.")
        else:
            yield f"{within}{name}", info


def _key(key: str) -> str:
    if not is_key(key):
        raise ValueError(f"{key!r} is not allowed, it takes {KEY_RULE}")
    return key


def _set_name(asset: str) -> str:
    if not any(_is_set(asset, name) for name in SETS):
        raise ValueError(f"{asset!r} is not allowed, {one_of(name + 'DEFENCE' * name.endswith('/') for name in SETS)}")
    return asset


_ANY = Field()
_EXPERIMENT = Annotated[str, Field(pattern="^[A-Za-z0-9_]{1,100}$")]
_EXPERIMENT_HELP = "The experiment whose data and assets these are."
_ARCHITECTURE = Literal[tuple(ARCHITECTURES)]  # pyright: ignore[reportInvalidTypeForm]
_KEY = Annotated[str, AfterValidator(_key)]
_VERSION = Annotated[int, Field(ge=1)]

_REGISTERED = (
    Parameter("model", str, "Registered model, NAME or NAME/VERSION."),
    Parameter("model_name", str, "Registered model; the same as model."),
    Parameter("model_version", _VERSION, "Its version. Left out: the latest."),
    Parameter("model_architecture", _ARCHITECTURE, "The model of this architecture, with the default recipe."),
)
_MODEL = (
    *_REGISTERED,
    Parameter("architecture", _KEY, "Architecture key of the model, such as le_net@epochs=3.", demo=False),
)
_SET = (
    Parameter("asset", Annotated[str, AfterValidator(_set_name)], "The set worked on.", "testing_set", demo=False),
    Parameter("architecture", _KEY, "Architecture key of the cell of that set.", demo=False),
    Parameter("attack", _KEY, "Attack key of the cell of that set.", demo=False),
)
_TAG = Parameter("register_model_name", str, "Sets model_tag: the name is {experiment}_{model_tag}_{architecture}.")

_DATA = "The images are those that the experiment declares under `data`: give its name as `experiment`."
_RUN = "A set is named by the run that made it, or by asset, architecture and attack; it has no file and no folder."
_OUTPUT = "Sets are stored as cells of assets; `testing_adversarial_METHOD.tar.gz` is an export of one."
_RANGE = "Pixels are float32 in [0, 1] everywhere, and what a model needs beyond that is a layer of the model."
_MEMORY = "Nothing here depends on the batch size, which is chosen to fit in memory."
_UNTRAINED = "Nothing is trained."
_NOTHING_RANDOM = "Nothing is drawn at random."
_CELL_SEED = "The noise is drawn from the seed of the cell, which the experiment's seed and the names of the cell give."
_NO_MODEL = "No model takes part: a trigger and a label are set."
_COMMON: dict[str, str] = {
    "seed=-1": "A seed that is left out is derived from the experiment's and logged; -1 was logged in its place.",
    "data_dir": _DATA,
    "dataset": _DATA,
    "image_size": "Images have the size that they have in the experiment's data.",
    "clip_values": _RANGE,
    "rescale": _RANGE,
    "imagenet_preprocessing": _RANGE,
    "adv_tar_name": _OUTPUT,
    "adv_data_dir": _OUTPUT,
}
_STORED = _COMMON | {
    "load_dataset_from_mlruns": "A run id that is given is used, and needs no switch.",
    "dataset_tar_name": _RUN,
    "dataset_name": _RUN,
}
_TRAINING = _STORED | {"data_dir_train": _DATA, "data_dir_test": _DATA}
_DEFENDING = _STORED | {"batch_size": _MEMORY, "def_tar_name": _OUTPUT, "def_data_dir": _OUTPUT}


def _defence(name: str, text: str, demo: str, seed: str) -> EntryPoint:
    return _make(
        name,
        text,
        f"defended_set/{name} defended_predictions",
        *_REGISTERED,
        _Fields("defence", DEFENCES[name], " ".join(f"{name}_{path}={path}" for path in demo.split())),
        Parameter("dataset_run_id", str, "MLflow run of the cell whose set is defended."),
        *_SET,
        not_taken=_DEFENDING | {"seed": seed},
        example="asset=adversarial_set architecture=le_net attack=fgm@eps=0.3",
    )


_ALL = (
    _make(
        "init_model",
        "Bring a pretrained model into the experiment, and evaluate it on the testing set.",
        "model clean_predictions",
        _Fields(
            "architecture",
            TrainingRecipe,
            "model_architecture=architecture model_tag seed",
            "epochs batch_size learning_rate optimizer validation_split early_stopping madry",
        ),
        _TAG,
        not_taken=_COMMON | {"batch_size": _MEMORY, "learning_rate": _UNTRAINED, "optimizer": _UNTRAINED},
        defaults={
            ("architecture", "epochs"): 0,
            ("architecture", "validation_split"): 0,
            ("architecture", "weights"): "imagenet",
        },
        example="model_architecture=resnet50",
    ),
    _make(
        "train",
        "Train a model, and evaluate it on the testing set.",
        "model clean_predictions poisoned_model",
        _Fields(
            "architecture",
            TrainingRecipe,
            "model_tag model_architecture=architecture epochs batch_size register_model learning_rate optimizer "
            "validation_split seed",
        ),
        _TAG,
        Parameter("apply_defense", bool, "Madry's adversarial training; its fields are madry.eps and so on.", False),
        Parameter("training_dataset_run_id", str, "MLflow run of the poisoned training set to train on."),
        Parameter("attack", _KEY, "Attack key of the poisoned training set to train on.", demo=False),
        not_taken=_TRAINING,
        example="model_architecture=le_net",
    ),
    _make(
        "infer",
        "Evaluate a model on a stored set.",
        "clean_predictions evasion_examples evasion_metrics poisoning_metrics inversion_metrics defended_predictions",
        Parameter("run_id", str, "MLflow run of the cell whose set is predicted."),
        *_REGISTERED,
        *_SET,
        not_taken=_STORED | {"batch_size": _MEMORY, "seed": _NOTHING_RANDOM},
        example="model_architecture=le_net asset=adversarial_set architecture=shallow_net attack=fgm@eps=0.3",
    ),
    _make(
        "fgm",
        "Attack the testing set with the fast gradient method.",
        "adversarial_set evasion_examples evasion_metrics",
        *_MODEL,
        _Fields("attack", FastGradientMethod, "batch_size eps eps_step minimal norm seed"),
        not_taken=_COMMON | {"target_index": "The class to reach is `target_class`, with `targeted`."},
        defaults={("attack", "eps"): 0.3},
        example="model_architecture=le_net",
    ),
    _make(
        "pt",
        "Attack the testing set with the pixel attack, or the threshold attack.",
        "adversarial_set evasion_examples evasion_metrics",
        *_MODEL,
        _Fields("attack", PixelAttack, "batch_size th es"),
        Parameter(
            "method",
            Literal["pixel", "threshold"],
            "pixel: at most th pixels change; threshold: each pixel by at most th of 255, where es is "
            f"{ThresholdAttack.model_fields['es'].default} when left out.",
            "pixel",
            demo=False,
        ),
        not_taken=_COMMON,
        defaults={("attack", "th"): 1},
        example="model_architecture=le_net",
    ),
    _make(
        "miface",
        "Reconstruct an image of each class from a model.",
        "inverted_set inversion_metrics",
        *_MODEL,
        _Fields("inversion", ModelInversion, "batch_size max_iter window_length threshold learning_rate seed"),
        not_taken=_COMMON,
        example="model_architecture=le_net",
    ),
    _make(
        "gen_poison_model",
        "Train a model with an adversarial embedding backdoor.",
        "poisoned_training_set poisoned_model triggered_testing_set poisoning_metrics",
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
        not_taken=_TRAINING
        | {"training_dataset_run_id": "The poisons are made here, from the experiment's training set."},
        defaults={("poisoning", "poison_fraction"): 0.1},
        example="model_architecture=le_net target_class_id=1",
    ),
    _make(
        "gen_poison_test_data",
        "Put the trigger on the testing set; with label_type=train, poison the training set.",
        "poisoned_training_set triggered_testing_set",
        _Fields("poisoning", BaselineBackdoor, "target_class seed poison_fraction", "label_type"),
        Parameter(
            "label_type",
            Literal["train", "test"],
            "train: poisoned_training_set, with the target class as label; test: triggered_testing_set, labels kept.",
            "test",
        ),
        Parameter(
            "asset",
            Literal["triggered_testing_set", "poisoned_training_set"],
            "The set made. Left out: as label_type says. With label_type=test, training rows keep their labels.",
            demo=False,
        ),
        not_taken=_COMMON | {"batch_size": _MEMORY, "model_architecture": _NO_MODEL},
        defaults={("poisoning", "poison_fraction"): 0.1},
        example="target_class=1",
    ),
    _make(
        "gen_poison_clean_data",
        "Poison the training set with clean labels, against a proxy model.",
        "poisoned_training_set triggered_testing_set",
        *_MODEL,
        _Fields(
            "poisoning",
            CleanLabelBackdoor,
            "target_class batch_size seed poison_fraction eps eps_step norm",
            "proxy_architecture",
        ),
        not_taken=_COMMON
        | {
            "label_type": "A clean-label poison keeps the label of its image, in training and in testing data alike.",
            "target_index": "The target is `target_class`.",
        },
        example="model_architecture=le_net target_class=1",
    ),
    _defence(
        "spatial_smoothing",
        "Smooth a stored set with a median filter.",
        "window_size apply_fit apply_predict",
        _NOTHING_RANDOM,
    ),
    _defence(
        "jpeg_compression",
        "Send a stored set through JPEG.",
        "channels_first quality apply_fit apply_predict",
        _NOTHING_RANDOM,
    ),
    _defence(
        "gaussian_augmentation",
        "Add Gaussian noise to a stored set.",
        "perform_data_augmentation ratio sigma apply_fit apply_predict",
        _CELL_SEED,
    ),
)

ENTRY_POINTS: dict[str, EntryPoint] = {entry.name: entry for entry in _ALL}
ENTRY_POINTS["mi"] = ENTRY_POINTS["miface"]
