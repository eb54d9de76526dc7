"""Entries of an experiment file <-> typed configs, and what is said when an entry is wrong.

An entry is a name and its parameters. A list where a parameter takes one value is a sweep: one config for each value,
with the value in the key (`fgm` with `eps: [0.1, 0.3]` gives `fgm_0.1` and `fgm_0.3`).

Why: docs/decisions/0006-typed-closed-configs.md
Why: docs/decisions/0028-coded-by-names.md
"""

import hashlib
import itertools
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ValidationError

from partitions.keys import KEY_RULE, is_key, key_text


class ExperimentError(ValueError):
    """An experiment file that cannot be used; one sentence per mistake."""


Config = TypeVar("Config", bound=BaseModel)


def expand(
    experiment: str,
    section: str,
    entries: Mapping[str, Any],
    model_of: Callable[[str, dict[str, Any]], tuple[type[Config], dict[str, Any]]],
    limit: int | None = None,
) -> dict[str, Config]:
    """Partition key -> typed config, for every entry of a section and every value of its sweeps.

    Args:
        experiment: its name, for messages.
        section: `attacks` or `architectures`, for messages.
        entries: entry name -> parameters, as read from YAML.
        model_of: from an entry's name and parameters, the type of its config and the parameters with defaults that the
            name implies; raises ValueError for an unknown name.
        limit: the most configs that a section may come to; None for any number.

    Raises:
        ExperimentError: naming experiment, entry, field, value and what is allowed.
    """
    configs: dict[str, Config] = {}
    for entry, parameters in entries.items():
        where = f"experiment {experiment!r}, {section} entry {entry!r}"
        if parameters is not None and not isinstance(parameters, Mapping):
            raise ExperimentError(f"{where}: {parameters!r} is not allowed, write parameters as `name: value`")
        given = dict(cast("Mapping[str, Any]", parameters or {}))
        swept = [name for name, value in given.items() if isinstance(value, list)]
        for name in swept:
            if not given[name]:
                raise ExperimentError(
                    f"{where}, field {name!r}: an empty list is not allowed, give one value or several"
                )
        refuse_more_cells(where, len(configs) + math.prod(len(given[name]) for name in swept), limit)
        for values in itertools.product(*(given[name] for name in swept)):
            key = "_".join([str(entry), *(key_text(value) for value in values)])
            if not is_key(key):
                raise ExperimentError(
                    f"{where}: the name {key!r} is not allowed as a partition key, it takes {KEY_RULE}"
                )
            if key in configs:
                raise ExperimentError(
                    f"{where}: the name {key!r} is given twice, each entry and sweep value needs its own"
                )
            try:
                model, values_given = model_of(str(entry), given | dict(zip(swept, values, strict=True)))
            except ValueError as error:
                raise ExperimentError(f"{where}, {error}") from error
            configs[key] = validate(model, values_given, where)
    return configs


def refuse_more_cells(where: str, cells: int, limit: int | None) -> None:
    """Refuse a sweep that comes to more cells than an experiment takes, before any of them is made.

    Raises:
        ExperimentError: naming the number, the limit and the field that raises it.
    """
    if limit is not None and cells > limit:
        raise ExperimentError(
            f"{where}: {cells:,} cells are not allowed, at most {limit:,}; sweep over fewer values, or"
            " raise the field 'cell_limit' of the experiment"
        )


def validate(model: type[Config], values: Mapping[str, Any], where: str, within: str = "") -> Config:
    """A typed config.

    Args:
        model: its type.
        values: what the file says.
        where: experiment and entry, for messages.
        within: the field of the file that `values` is the value of, for messages.

    Raises:
        ExperimentError: one sentence for each mistake: where, field, value and what is allowed.
    """
    try:
        config = model.model_validate(values)
    except ValidationError as error:
        mistakes = [_sentence(mistake, where, within, model) for mistake in error.errors(include_url=False)]
        raise ExperimentError("\n".join(mistakes)) from error
    if mixed := [
        f"{where}, field {path!r}: {value!r} is not allowed, it must be {allowed}"
        for path, value, allowed in _mixed_up(values, config, within)
    ]:
        raise ExperimentError("\n".join(mixed))
    return config


def _mixed_up(given: Any, read: Any, path: str) -> Iterator[tuple[str, Any, str]]:
    """Booleans that were read as numbers, and numbers that were read as booleans: pydantic takes `true` for 1.0."""
    if isinstance(given, Mapping):
        values = cast("Mapping[Any, Any]", given)
        fields: Mapping[Any, Any] = (
            cast("Mapping[Any, Any]", read)
            if isinstance(read, Mapping)
            else {name: getattr(read, str(name), None) for name in values}
        )
        for name, value in values.items():
            yield from _mixed_up(value, fields.get(name), f"{path}.{name}" if path else str(name))
    elif isinstance(given, list | tuple) and isinstance(read, list | tuple):
        pairs = zip(cast("Sequence[Any]", given), cast("Sequence[Any]", read), strict=False)
        for place, (item, item_read) in enumerate(pairs):
            yield from _mixed_up(item, item_read, f"{path}.{place}")
    elif isinstance(given, bool) and isinstance(read, int | float) and not isinstance(read, bool):
        yield path, given, "a number"
    elif isinstance(read, bool) and isinstance(given, int | float) and not isinstance(given, bool):
        yield path, given, "true or false"


def one_of(names: Iterable[str]) -> str:
    """The part of a message that says which names are allowed."""
    allowed = list(names)
    return f"it must be {'one of ' * (len(allowed) > 1)}{', '.join(allowed)}"


def _sentence(mistake: Any, where: str, within: str, model: type[BaseModel]) -> str:
    path = ".".join(filter(None, [within, *map(str, mistake["loc"])]))
    field = f", field {path!r}" if path else ""
    value = repr(mistake["input"])
    value = value if len(value) <= 80 else f"{value[:80]}..."
    if path.endswith(".[key]"):
        section = path.split(".")[0]
        return f"{where}, {section} entry {value}: the name is not text, write it in quotes"
    match mistake["type"]:
        case "extra_forbidden":
            fault = f"there is no such field, available: {', '.join(model.model_fields)}"
        case "missing":
            fault = "a value is required"
        case "value_error":
            fault = str(mistake["ctx"]["error"])
        case "too_short":
            fault = f"{value} is not allowed, at least {mistake['ctx']['min_length']} must be given"
        case "dict_type":
            fault = f"{value} is not allowed, write parameters as `name: value`"
        case _:
            allowed = re.sub(r"^\w+ should (be )?", "it must \\1", mistake["msg"]).partition(", unable to")[0]
            fault = f"{value} is not allowed, {allowed.replace('tuple', 'list')}"
    return f"{where}{field}: {fault}"


def edition(version: str, *shown: object) -> str:
    """The code version of an asset that shows entries of an experiment file: it changes when they are edited.

    Without it, an asset over all cells would not be stale when an entry is removed: no remaining cell has changed.

    Args:
        version: raised when the computation changes.
        shown: JSON values; the order of names counts where they are given as a list.
    """
    return f"{version}-{config_hash({'shown': shown})[:12]}"


def config_hash(document: Mapping[str, Any]) -> str:
    """The hash of a config's values."""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
