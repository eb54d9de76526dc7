"""Parse the parameters of a call into typed configs and the target of an entry point.

>>> from dioptra_assets.entry_points.demos import entry_point
>>> fgm = entry_point("fgm")
>>> values = parse_parameters(fgm, parse_kwargs("-P model_architecture=le_net -P eps=0.3 -P norm=2"))
>>> config_of(fgm, values)["attack"].threat_model().budget
'L2 <= 0.3, pixels in [0, 1]'
"""

import re
import shlex
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, create_model
from pydantic_core import PydanticUndefined

from dioptra_assets.entry_points.entry_point import (
    MADRY_EPS,
    RUN_IDS,
    SWITCH,
    WORKBENCH,
    EntryPoint,
    EntryPointError,
    Target,
)
from dioptra_assets.robustness.attacks import PixelAttack, ThresholdAttack
from partitions.dynamic_keys import parse_value
from partitions.entries import ExperimentError, validate
from partitions.image_sets import SETS


def parse_kwargs(text: str) -> list[str]:
    """Split the demos' `entry_point_kwargs`: `-P eps=0.3 -P norm=2` gives `eps=0.3` and `norm=2`.

    Raises:
        EntryPointError: the text has another form.
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


def unused(entry: EntryPoint, given: Iterable[str]) -> list[str]:
    """One sentence for each parameter that is accepted but has no effect, with the reason.

    Args:
        entry: the entry point.
        given: `parameter=value`, as for :func:`parse_parameters`.
    """
    items = list(given)
    sentences = [f"{item} is not used: {reason}" for item in items if (reason := _of_item(entry.not_needed, item))]
    if (switch := next((item for item in items if item.startswith(f"{SWITCH}=")), "")) and not _switched_on(switch):
        sentences += [f"{item} is not used: {SWITCH} is false." for item in items if item.partition("=")[0] in RUN_IDS]
    return sentences


def _of_item(reasons: Mapping[str, str], item: str) -> str | None:
    """The reason given for a parameter, or for this value of it."""
    called, _, text = item.partition("=")
    return reasons.get(f"{called}={text.lower()}") or reasons.get(called)


def _switched_on(item: str) -> bool:
    return item.partition("=")[2].lower() not in {"false", "0", "no", "off", "f", "n"}


def parse_parameters(entry: EntryPoint, given: Iterable[str]) -> dict[str, Any]:
    """Typed values of the given parameters. Those without effect are left out, see :func:`unused`.

    Args:
        entry: the entry point.
        given: `parameter=value`, each parameter once. Several values of one parameter are joined by commas.

    Raises:
        EntryPointError: a parameter does not exist, is given twice, is missing, is out of bounds, has the wrong type,
            or is one of the demos' that is refused.
    """
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
                f"{where}: there is no parameter {called!r}, available: {', '.join(entry.parameters)}"
            )
        if parameter.name in values:
            raise EntryPointError(f"{where}, parameter {parameter.name!r}: given twice")
        # The demos write Adam. Names here are in lower case.
        text = text.lower() if get_origin(_plain(parameter.type)) is Literal else text
        values[parameter.name] = parse_value(parameter.type, text, between=",")
    fields: Any = {
        parameter.name: (parameter.type, Field(default=... if parameter.default is PydanticUndefined else None))
        for parameter in entry.parameters.values()
    }
    model = create_model("Parameters", __config__=ConfigDict(extra="forbid", protected_namespaces=()), **fields)
    checked = _checked(model, values, where).model_dump(exclude_unset=True)
    target_of(entry, checked)
    return checked


def config_of(entry: EntryPoint, values: Mapping[str, Any], *, model: str | None = None) -> dict[str, Any]:
    """The typed configs that an entry point makes, by section.

    Args:
        entry: the entry point.
        values: from :func:`parse_parameters`.
        model: architecture key of the proxy model, if `values` name a registered one.

    Returns:
        `architecture` (TrainingRecipe), `attack` (Attack), `poisoning` (Poisoning), `inversion` (ModelInversion) or
        `defence` (Defence); none for `infer`.

    Raises:
        EntryPointError: the values contradict each other.
    """
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
            # In the demos, `test` means testing data. On training data it would make another, harmless, kind of poison.
            own_labels = values.get("label_type") == "test" and values.get("asset") == "poisoned_training_set"
            documents["poisoning"]["label_type"] = "test" if own_labels else "train"
        case "gen_poison_clean_data":
            documents["poisoning"]["proxy_architecture"] = model or target_of(entry, values).model
    if registered := values.get("register_model_name"):
        _name_registered(documents["architecture"], registered, values, where)
    return {section: _checked(kind, documents[section], where) for section, kind in configs.items()}


def target_of(entry: EntryPoint, values: Mapping[str, Any]) -> Target:
    """What an entry point works on.

    Args:
        entry: the entry point.
        values: from :func:`parse_parameters`.

    Raises:
        EntryPointError: an image set or a model is named twice, or not at all.
    """
    where = f"entry point {entry.name!r}"
    registered, _, version = str(values.get("model") or values.get("model_name") or "").partition("/")
    if "model" in values and values.get("model_name", values["model"]) not in {registered, values["model"]}:
        raise EntryPointError(f"{where}: model and model_name name different models, give only one")
    if version and not re.fullmatch("[1-9][0-9]*", version):
        raise EntryPointError(f"{where}, parameter 'model': {values['model']!r} is not allowed, write NAME or NAME/1")
    if "model_version" in values and not registered:
        raise EntryPointError(f"{where}, parameter 'model_version': it needs a model_name, give both")
    model, architecture = values.get("model_architecture"), values.get("architecture")
    works_on_set = any(name in entry.parameters for name in RUN_IDS)
    run_id = next((values[name] for name in RUN_IDS if name in values), None) if values.get(SWITCH, True) else None
    if works_on_set and values.get(SWITCH) and not run_id:
        wanted = next(name for name in RUN_IDS if name in entry.parameters)
        raise EntryPointError(f"{where}, parameter {SWITCH!r}: give {wanted}, the MLflow run that made the set")
    if not works_on_set:
        # There is only one architecture here, that of the model.
        if model and architecture and architecture.partition("@")[0] != model and not registered:
            raise EntryPointError(
                f"{where}: model_architecture {model!r} and architecture {architecture!r} name different models, give"
                " only one"
            )
        model, architecture = architecture or model, None
    if "model" in entry.parameters and not (model or registered) and "defence" not in entry.configs:
        raise EntryPointError(f"{where}: no model is given, give model_architecture, architecture or model_name")
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
    given = [name for name in values if name.startswith("madry.")]
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
            f"{where}, parameter 'register_model_name': {name!r} is not allowed, models of this experiment are named "
            f"{before}{after}, or {before}TAG_{after} with the model_tag TAG"
        )
    if values.get("model_tag", tag) != tag:
        raise EntryPointError(f"{where}: register_model_name has the tag {tag!r}, model_tag is {values['model_tag']!r}")
    document |= {"model_tag": tag, "register_model": values.get("register_model", True)}


def _with_set(target: Target, where: str) -> Target:
    naming = list(dict.fromkeys(dimension for dimensions in SETS.values() for dimension in dimensions))
    named = [name for name in ("asset", *naming) if getattr(target, name)]
    if target.run_id:
        if named:
            raise EntryPointError(f"{where}: run_id already names the set, leave out {', '.join(named)}")
        return target
    asset = str(target.asset)
    wanted = SETS[asset]
    missing = [name for name in wanted if not getattr(target, name)]
    needless = [name for name in naming if getattr(target, name) and name not in wanted]
    if missing or needless:
        what = f"give {' and '.join(missing)}" if missing else f"leave out {' and '.join(needless)}"
        identified = f"is identified by {' and '.join(wanted)}" if wanted else "has a single cell"
        raise EntryPointError(f"{where}: {asset} {identified}: {what}")
    return target
