"""The parameters of an entry point, for people."""

from typing import NamedTuple

from pydantic import create_model
from pydantic_core import PydanticUndefined

from dioptra_assets.entry_points.model import EntryPoint, Parameter
from partitions.keys import key_text

_BOUNDS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
    "enum": "{}",
    "const": "{}",
    "pattern": "matches {}",
}


class Row(NamedTuple):
    """A parameter for people: each column is text, and may be empty."""

    name: str
    type: str
    bounds: str
    default: str
    help: str


def parameters_table(entry: EntryPoint) -> list[Row]:
    """The parameters of an entry point for `--help`, in order: name, type, bounds, default and help."""
    return [_row(one) for one in entry.parameters.values()]


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
