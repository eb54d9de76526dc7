"""Entry points: the demos' jobs under their own names, and what each of their parameters became here.

>>> values = parse_parameters("fgm", parse_kwargs("-P model_architecture=le_net -P eps=0.3 -P norm=2"))
>>> config_of("fgm", values)["attack"].threat_model().budget
'L2 <= 0.3, pixels in [0, 1]'

Types, bounds, defaults and help of a parameter are those of the config field it sets. Beside the demos' parameters an
entry point takes every other field of its configs, under the field's own name (`engine`, `trigger.size`).

Why: docs/decisions/0016-an-entry-point-is-one-row.md
"""

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, create_model
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from dioptra_assets.robustness.attacks import FastGradientMethod, PixelAttack, ThresholdAttack
from dioptra_assets.robustness.defences import DEFENCES
from dioptra_assets.robustness.inversion.miface import ModelInversion
from dioptra_assets.robustness.poisoning import AdversarialEmbedding, BaselineBackdoor, CleanLabelBackdoor
from dioptra_assets.robustness.training.architectures import ARCHITECTURES
from dioptra_assets.robustness.training.loop import TrainingRecipe
from partitions.dynamic_keys import nested_model, parse_value
from partitions.entries import ExperimentError, validate
from partitions.image_sets import SETS, checked_set
from partitions.keys import ARCHITECTURE, ATTACK, KEY_RULE, is_key, key_text

WORKBENCH = "workbench"

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
        assets: the assets below the experiment that it makes, those it was asked for first; what they are made from
            is made before where it is missing.
        parameters: what it takes, the demos' first.
        not_needed: parameters of the demos that are accepted and change nothing here, and why, in one sentence.
        not_taken: parameters of the demos that are refused, since they ask for what is not done, and why.
        configs: the typed configs that it makes, by what they configure.
        defaults: (config, path of a field) -> what it is where no parameter gives it, other than the config says.
        aliases: other names of parameters.
        example: parameters of a call that works.
    """

    name: str
    help: str
    assets: tuple[str, ...]
    parameters: dict[str, Parameter]
    not_needed: dict[str, str]
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
        asset: the set worked on, or of `gen_poison_test_data` the one made; one of `SETS`.
        architecture: architecture key of that set's cell.
        attack: attack key of that set's cell.
        defence: defence key of that set's cell, of a `defended_set`.
        image_set: key of the set that was defended, of a `defended_set`.
        run_id: the MLflow run of the cell that holds the set, instead of all these.
    """

    experiment: str
    model: str | None = None
    model_name: str | None = None
    model_version: int | None = None
    asset: str | None = None
    architecture: str | None = None
    attack: str | None = None
    run_id: str | None = None
    defence: str | None = None
    image_set: str | None = None


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


def unused(name: str, given: Iterable[str]) -> list[str]:
    """A sentence for each parameter that is accepted and changes nothing, with the reason.

    Args:
        name: the entry point.
        given: `parameter=value`, as for :func:`parse_parameters`.

    Raises:
        EntryPointError: for an unknown entry point.
    """
    entry, items = entry_point(name), list(given)
    said = [f"{one} is not used: {reason}" for one in items if (reason := _of_item(entry.not_needed, one))]
    if (switch := next((one for one in items if one.startswith(f"{_SWITCH}=")), "")) and not _switched_on(switch):
        said += [f"{one} is not used: {_SWITCH} is false." for one in items if one.partition("=")[0] in _RUN_IDS]
    return said


def _of_item(reasons: Mapping[str, str], item: str) -> str | None:
    """The reason for a parameter, or for the value that it is given."""
    called, _, text = item.partition("=")
    return reasons.get(f"{called}={text.lower()}") or reasons.get(called)


def _switched_on(item: str) -> bool:
    return item.partition("=")[2].lower() not in {"false", "0", "no", "off", "f", "n"}


def parse_parameters(name: str, given: Iterable[str]) -> dict[str, Any]:
    """Typed values by parameter, of those that were given and are used; :func:`unused` names the others.

    Args:
        name: the entry point.
        given: `parameter=value`, each parameter once. Several values of one parameter are joined by commas.

    Raises:
        EntryPointError: for a parameter that does not exist, is given twice, must be given, is out of bounds or of the
            wrong type, and for one of the demos' that is not taken, with the reason.
    """
    entry = entry_point(name)
    where = f"entry point {entry.name!r}"
    values: dict[str, Any] = {}
    for item in given:
        called, equals, text = item.partition("=")
        if not equals:
            raise EntryPointError(f"{where}: {item!r} is not allowed, write name=value")
        if reason := _of_item(entry.not_taken, item):
            raise EntryPointError(f"{where}, parameter {called!r} is not taken: {reason}")
        if _of_item(entry.not_needed, item):
            continue
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
    run_id = next((values[one] for one in _RUN_IDS if one in values), None) if values.get(_SWITCH, True) else None
    if works_on_set and values.get(_SWITCH) and not run_id:
        wanted = next(one for one in _RUN_IDS if one in entry.parameters)
        raise EntryPointError(f"{where}, parameter {_SWITCH!r}: give {wanted}, the MLflow run that made the set")
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
        asset=_asset_of(entry, values, run_id),
        architecture=architecture,
        attack=values.get("attack"),
        run_id=run_id,
        defence=values.get("defence"),
        image_set=values.get("image_set"),
    )
    return _with_set(target, where) if works_on_set else target


def _asset_of(entry: EntryPoint, values: Mapping[str, Any], run_id: str | None) -> str | None:
    if entry.name == "gen_poison_test_data":
        made = {"train": "poisoned_training_set", "test": "triggered_testing_set"}
        return values.get("asset", made[values.get("label_type", "test")])
    if run_id:
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
    naming = list(dict.fromkeys(dimension for dimensions in SETS.values() for dimension in dimensions))
    named = [one for one in ("asset", *naming) if getattr(target, one)]
    if target.run_id:
        if named:
            raise EntryPointError(f"{where}: run_id names the set already, leave out {', '.join(named)}")
        return target
    asset = str(target.asset)
    wanted = SETS[asset]
    missing = [one for one in wanted if not getattr(target, one)]
    needless = [one for one in naming if getattr(target, one) and one not in wanted]
    if missing or needless:
        what = f"give {' and '.join(missing)}" if missing else f"leave out {' and '.join(needless)}"
        named = f"named by {' and '.join(wanted)}" if wanted else "there once"
        raise EntryPointError(f"{where}: {asset} is {named}: {what}")
    return target


# --- What the demos' parameters became -------------------------------------------------------------------------------

MADRY_EPS = 0.3
_RUN_IDS = ("run_id", "dataset_run_id", "training_dataset_run_id")
_SWITCH = "load_dataset_from_mlruns"


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
    not_needed: Mapping[str, str],
    not_taken: Mapping[str, str] | None = None,
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
        not_needed=dict(not_needed),
        not_taken=dict(not_taken or {}),
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


_ANY = Field()
_EXPERIMENT = Annotated[str, Field(pattern="^[A-Za-z0-9_]{1,100}$")]
_EXPERIMENT_HELP = "The experiment whose data and assets these are."
_ARCHITECTURE = Literal[tuple(ARCHITECTURES)]  # pyright: ignore[reportInvalidTypeForm]
_KEY = Annotated[str, AfterValidator(_key)]
_SET_KEY = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.@=-]{1,200}$")]
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
    Parameter("asset", Annotated[str, AfterValidator(checked_set)], "The set worked on.", "testing_set", demo=False),
    Parameter(ARCHITECTURE, _KEY, "Architecture key of the cell of that set.", demo=False),
    Parameter(ATTACK, _KEY, "Attack key of the cell of that set.", demo=False),
    Parameter("defence", _KEY, "Defence key of the cell of that set, of a defended_set.", demo=False),
    Parameter("image_set", _SET_KEY, "Key of the set that was defended, of a defended_set.", demo=False),
)
_FROM_RUN = Parameter("load_dataset_from_mlruns", bool, "Whether a run id that is given is used.", True)
_TAG = Parameter("register_model_name", str, "Sets model_tag: the name is {experiment}_{model_tag}_{architecture}.")

_DATA = "The images are those that the experiment declares under `data`."
_RUN = "A set is named by the run that made it, or by asset and keys; it has no file and no folder."
_OUTPUT = "Sets are stored as cells of assets; `da.load` gives one."
_RANGE = "Pixels are float32 in [0, 1] everywhere, and what a model needs beyond that is a layer of the model."
_MEMORY = "Nothing here depends on the batch size, which is chosen to fit in memory."
_UNTRAINED = "Nothing is trained."
_NOTHING_RANDOM = "Nothing is drawn at random."
_CELL_SEED = "The noise is drawn from the seed of the cell, which the experiment's seed and the names of the cell give."
_NO_MODEL = "No model takes part: a trigger and a label are set."
_OWN_POISONS = "The poisons are made from the experiment's training set."
_COMMON: dict[str, str] = {
    "seed=-1": "A seed that is left out is derived from the experiment's and logged.",
    "data_dir": _DATA,
    "dataset": _DATA,
    "image_size": "Images have the size that they have in the experiment's data.",
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
        Parameter("dataset_run_id", str, "MLflow run of the cell whose set is defended."),
        _FROM_RUN,
        *_SET,
        not_needed=_DEFENDING | {"seed": seed},
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
        "Train a model, and evaluate it on the testing set.",
        "model clean_predictions poisoned_model triggered_testing_set poisoning_examples poisoning_metrics",
        _Fields(
            "architecture",
            TrainingRecipe,
            "model_tag model_architecture=architecture epochs batch_size register_model learning_rate optimizer "
            "validation_split seed",
        ),
        _TAG,
        Parameter("apply_defense", bool, "Madry's adversarial training; its fields are madry.eps and so on.", False),
        Parameter("training_dataset_run_id", str, "MLflow run of the poisoned training set to train on."),
        _FROM_RUN,
        Parameter("attack", _KEY, "Attack key of the poisoned training set to train on.", demo=False),
        not_needed=_TRAINING,
        example="model_architecture=le_net",
    ),
    _make(
        "infer",
        "Evaluate a model on a stored set.",
        "predictions",
        Parameter("run_id", str, "MLflow run of the cell whose set is predicted."),
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
        not_taken={"target_index": "give the class to reach as target_class, with targeted=true."},
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
        not_needed=_COMMON,
        defaults={("attack", "th"): 1},
        example="model_architecture=le_net",
    ),
    _make(
        "miface",
        "Reconstruct an image of each class from a model.",
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
        not_needed=_TRAINING | {_SWITCH: _OWN_POISONS, "training_dataset_run_id": _OWN_POISONS},
        not_taken={f"{_SWITCH}={yes}": f"{_OWN_POISONS[:-1]}, leave it out." for yes in ("true", "1", "yes", "on")},
        defaults={("poisoning", "poison_fraction"): 0.1},
        example="model_architecture=le_net target_class_id=1",
    ),
    _make(
        "gen_poison_test_data",
        "Put the trigger on the testing set; with label_type=train, poison the training set.",
        "poisoned_training_set poison_manifest triggered_testing_set",
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
        | {"label_type": "A clean-label poison keeps the label of its image, in training and in testing data alike."},
        not_taken={"target_index": "give the class as target_class."},
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
