"""Self-describing partition keys: `fgm@eps=0.3@norm=2` <-> a config.

Such a key names what no experiment file declares. It is a method or architecture and those of its fields that differ
from their defaults, in the order of the fields, so that one config has one key:

- numbers, booleans and names stand as in YAML: `eps=0.3`, `epochs=3`, `target_class=-1`, `minimal=true`, `norm=inf`;
- what is left out, where it is not by default, is `null`;
- several values are joined by `_`: `classes=0_3_7`, `trigger.position=2_3`;
- a field of a field follows a dot: `madry.eps=0.3`;
- an `@` within a value is doubled: `proxy_architecture=le_net@@epochs=3`.

A text is read by the type of its field: `2` is a number in one and a name in another.

A config that does not fit a key, because it is too long or holds what no key takes (a path, a dictionary), has the
short key `fgm@config=DIGEST`. The digest is that of the whole config, which is kept beside the cells: see
:func:`config_digest`. What is kept under another digest is refused, so a short key never means another config.

Why: docs/decisions/0015-a-dynamic-key-carries-its-config.md
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeGuard, TypeVar, Union, cast, get_args, get_origin

from pydantic import BaseModel, ValidationError

from partitions.entries import ExperimentError, validate
from partitions.keys import KEY_RULE, is_key, key_text

Config = TypeVar("Config", bound=BaseModel)

# The field that the name of a key is the value of, in whichever of them a config has.
NAMED_BY = ("method", "architecture")
SHORT = "config"
_PART = re.compile(r"(?:[^@]|@@)+")
_SHORT_KEY = re.compile(rf"[^@=]+@{SHORT}=[0-9a-f]{{16}}")
_UNREAD = object()


def config_key(name: str, config: BaseModel) -> str:
    """The key of a config: one that carries it where it fits, else a short one.

    Args:
        name: its method, or of a training recipe its architecture.
        config: an attack, training recipe, defence, poisoning or inversion config.

    Raises:
        ExperimentError: when the config has another name.
    """
    named = _name_of(config)
    if name != named:
        raise ExperimentError(f"a key of this config begins with {named!r}, not with {name!r}")
    return _carrying_key(name, config) or short_key(name, config.model_dump(mode="json"))


def short_key(name: str, document: Mapping[str, Any]) -> str:
    """The key that names JSON values by their digest."""
    return f"{name}@{SHORT}={config_digest(document)}"


def is_short(key: str) -> bool:
    """Whether a key names a config by its digest alone, so that the config must be looked up."""
    return _SHORT_KEY.fullmatch(key) is not None


def config_digest(document: Mapping[str, Any]) -> str:
    """The digest in the short key of a config: of its JSON values, every field given."""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:16]


def _carrying_key(name: str, config: BaseModel) -> str | None:
    """The key that carries a config; None where no key can."""
    parts = {field: _write(value) for field, value in _differing(config).items()}
    key = "@".join([name, *(f"{field}={_quote(text or '')}" for field, text in parts.items())])
    if None in parts.values() or not is_key(key):
        return None
    try:
        written = {field: text for field, text in parts.items() if text is not None}
        read = type(config).model_validate(_values(type(config), name, written, key))
    except ValidationError:
        return None
    return key if read == config else None


def parse_config_key(
    key: str,
    section: str,
    model_of: Callable[[str, dict[str, Any]], tuple[type[Config], dict[str, Any]]],
    kept: Callable[[str], Mapping[str, Any] | None] = lambda key: None,
) -> tuple[str, Config]:
    """The name and the config of a key.

    Args:
        key: as :func:`config_key` writes it.
        section: `attacks`, `architectures`, ..., for messages.
        model_of: as of :func:`partitions.entries.expand`: from name and values, the type of the config and the values
            with those that the name implies; raises ValueError for an unknown name.
        kept: the JSON values of the config of a short key; None where they are not known.

    Raises:
        ExperimentError: naming key, field, value and what is allowed; also for a key that is not written as
            :func:`config_key` would, naming the one that is, and for a short one whose config is not kept.
    """
    where = f"{section} key {key!r}"
    if not is_key(key):
        raise ExperimentError(f"{where}: not allowed as a partition key, it takes {KEY_RULE}")
    name, parts = _split(key, where)
    try:
        model, implied = model_of(name, {})
    except ValueError as error:
        raise ExperimentError(f"{where}, {error}") from error
    if is_short(key):
        return name, validate(model, implied | dict(looked_up(key, kept, where)), where)
    config = validate(model, implied | _values(model, name, parts, where), where)
    canonical = config_key(_name_of(config), config)
    if canonical != key:
        raise ExperimentError(f"{where}: the key of this config is written {canonical!r}")
    return name, config


def looked_up(key: str, kept: Callable[[str], Mapping[str, Any] | None], where: str) -> Mapping[str, Any]:
    """The JSON values that a short key names.

    Raises:
        ExperimentError: where they are not kept, or others are.
    """
    document = kept(key)
    if document is None:
        raise ExperimentError(
            f"{where}: the config of this key is not in the store, ask for it once more by all its parameters"
        )
    if not key.endswith(f"@{SHORT}={config_digest(document)}"):
        raise ExperimentError(f"{where}: what the store keeps for this key is another config, {dict(document)}")
    return document


def parse_value(annotation: Any, text: str, between: str = "_") -> Any:
    """A text read as a value of a type. Text that does not fit is returned as it is, for the type to refuse.

    Args:
        annotation: the type: bool, int, float, str, None, a Literal, tuple, union or Annotated of such.
        text: the text.
        between: what stands between the values of a tuple.
    """
    value = _read(annotation, text, between)
    return text if value is _UNREAD else value


def nested_model(annotation: Any) -> type[BaseModel] | None:
    """The config that a field of this type holds, where it holds one."""
    choices: tuple[Any, ...] = get_args(annotation) if get_origin(annotation) in {Union, UnionType} else (annotation,)
    return next((choice for choice in choices if is_model(choice)), None)


def is_model(annotation: Any) -> TypeGuard[type[BaseModel]]:
    """Whether a type is that of a config."""
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _read(annotation: Any, text: str, between: str) -> Any:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _read(arguments[0], text, between)
    if origin in {Union, UnionType}:
        # A name can look like anything, so what is more than a name comes first.
        readings = (_read(choice, text, between) for choice in sorted(arguments, key=lambda choice: choice is str))
        return next((value for value in readings if value is not _UNREAD), _UNREAD)
    if origin is Literal:
        return next((choice for choice in arguments if key_text(choice) == text), _UNREAD)
    if origin is tuple:
        texts = text.split(between)
        types = [arguments[0]] * len(texts) if arguments[-1] is Ellipsis else list(arguments)
        values = [_read(*pair, between) for pair in zip(types, texts, strict=False)]
        return _UNREAD if len(types) != len(texts) or _UNREAD in values else tuple(values)
    return _READERS.get(annotation, lambda text: _UNREAD)(text)


_READERS: dict[Any, Callable[[str], Any]] = {
    NoneType: lambda text: None if text == "null" else _UNREAD,
    bool: lambda text: {"true": True, "false": False}.get(text, _UNREAD),
    int: lambda text: int(text) if re.fullmatch(r"-?[0-9]{1,100}", text) else _UNREAD,
    # Not every text that Python takes for a number: `1_0` is none in YAML.
    float: lambda text: float(text) if re.fullmatch(r"-?[0-9]+(\.[0-9]+)?(e-?[0-9]+)?", text) else _UNREAD,
    str: lambda text: text,
}


def _name_of(config: BaseModel) -> str:
    return next(str(getattr(config, field)) for field in NAMED_BY if field in type(config).model_fields)


def _differing(config: BaseModel, within: str = "") -> dict[str, Any]:
    """Path -> value of the fields that differ from their defaults."""
    differing: dict[str, Any] = {}
    for field, info in type(config).model_fields.items():
        value, path = getattr(config, field), f"{within}{field}"
        if path in NAMED_BY or value == info.get_default(call_default_factory=True):
            continue
        differing |= _differing(value, f"{path}.") if isinstance(value, BaseModel) else {path: value}
    return differing


def _write(value: Any) -> str | None:
    """A value as it is written in a key; None where a key cannot hold it."""
    if isinstance(value, tuple):
        texts = [_write(item) for item in cast("tuple[Any, ...]", value)]
        return None if None in texts else "_".join(map(str, texts))
    if isinstance(value, float):
        # As short as YAML allows: 3, not 3.0; 1e16, since `+` is no character of a key; and one zero, not two.
        return repr(value + 0.0).removesuffix(".0").replace("e+", "e")
    if value is None or isinstance(value, bool | int | str):
        return key_text(value)
    return None


def _quote(text: str) -> str:
    return text.replace("@", "@@")


def _split(key: str, where: str) -> tuple[str, dict[str, str]]:
    """The name, and path -> text of the fields."""
    parts = _PART.findall(key)
    if "@".join(parts) != key:
        raise ExperimentError(f"{where}: a single '@' stands at its beginning or end, write `name@field=value`")
    texts: dict[str, str] = {}
    for part in parts[1:]:
        field, equals, text = part.partition("=")
        if not equals:
            raise ExperimentError(f"{where}: {part!r} is not allowed, write parameters as `@field=value`")
        if field in texts:
            raise ExperimentError(f"{where}, field {field!r}: given twice")
        texts[field] = text.replace("@@", "@")
    return parts[0].replace("@@", "@"), texts


def _values(model: type[BaseModel], name: str, parts: Mapping[str, str], where: str) -> dict[str, Any]:
    """The fields that a key gives, as a type's validation takes them."""
    values: dict[str, Any] = {field: name for field in NAMED_BY if field in model.model_fields}
    for path, text in parts.items():
        *outer, field = path.split(".")
        holder, place, within = model, values, ""
        for step in outer:
            nested = nested_model(_field(holder, step, path, within, where))
            inner = place.setdefault(step, {})
            if nested is None or not isinstance(inner, dict):
                raise ExperimentError(f"{where}, field {path!r}: {within}{step} has no fields here")
            place = cast("dict[str, Any]", inner)
            holder, within = nested, f"{within}{step}."
        place[field] = parse_value(_field(holder, field, path, within, where), text)
    return values


def _field(model: type[BaseModel], field: str, path: str, within: str, where: str) -> Any:
    """The type of a field."""
    if field not in model.model_fields:
        allowed = ", ".join(f"{within}{known}" for known in model.model_fields)
        raise ExperimentError(f"{where}, field {path!r}: there is no such field, available: {allowed}")
    return model.model_fields[field].annotation


@dataclass(frozen=True)
class KeyedConfigs(Mapping[str, Any]):
    """Key -> config, for any key. Nothing is declared, so iterating over it gives nothing.

    Attributes:
        section: what the configs configure, for messages.
        model_of: as `expand` takes it.
        kept: the JSON values of the config of a short key; None where they are not known.
    """

    section: str
    model_of: Callable[[str, dict[str, Any]], tuple[type[Any], dict[str, Any]]]
    kept: Callable[[str], Mapping[str, Any] | None] = lambda key: None

    def __getitem__(self, key: str) -> Any:
        """The config that a key carries or stands for; raises ExperimentError where it has none."""
        return parse_config_key(key, self.section, self.model_of, self.kept)[1]

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0

    def __bool__(self) -> bool:
        """True: configs may be added, so their assets exist."""
        return True
