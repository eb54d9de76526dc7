"""The parameters of an entry point as a readable table."""

from typing import NamedTuple

from pydantic import create_model
from pydantic_core import PydanticUndefined

from dioptra_assets.entry_points.entry_point import EntryPoint, Parameter
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
    """One parameter. Each column is text and may be empty."""

    name: str
    type: str
    bounds: str
    default: str
    help: str


def parameters_table(entry: EntryPoint) -> list[Row]:
    """The parameters of an entry point for `--help`."""
    return [_row(parameter) for parameter in entry.parameters.values()]


def _row(parameter: Parameter) -> Row:
    schema = create_model("Parameter", value=(parameter.type, ...)).model_json_schema()["properties"]["value"]
    choices = [choice for choice in schema.get("anyOf", [schema]) if choice.get("type") != "null"]
    names = {bool: "boolean", int: "integer", float: "number", str: "string"}
    kinds = dict.fromkeys(
        kind
        for choice in choices
        for kind in ([choice["type"]] if "type" in choice else [names[type(value)] for value in choice["enum"]])
    )
    bounds = [
        text.format(", ".join(map(key_text, choice[bound])) if bound == "enum" else key_text(choice[bound]))
        for choice in choices
        for bound, text in _BOUNDS.items()
        if bound in choice
    ]
    default = parameter.default
    shown = "required" if default is PydanticUndefined else "" if default in (None, "") else key_text(default)
    return Row(parameter.name, " or ".join(kinds), ", ".join(bounds), shown, parameter.help)
