"""Write docs/reference/experiments.md, every field of an experiment file: `python -m docs.fields`."""

import inspect
import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from dioptra_assets.robustness.attacks import ATTACKS
from dioptra_assets.robustness.data import DigitsSource, ImageFolderSource, MnistSource
from dioptra_assets.robustness.defences import DEFENCES
from dioptra_assets.robustness.inversion.miface import INVERSIONS
from dioptra_assets.robustness.poisoning import POISONINGS
from dioptra_assets.robustness.poisoning.trigger import Trigger
from dioptra_assets.robustness.training.loop import TrainingRecipe
from dioptra_assets.robustness.training.madry import MadryTraining
from partitions.experiments import ExperimentFile, Watch
from partitions.notify import Notify

PAGE = Path(__file__).parent / "reference" / "experiments.md"
ENTRIES = {"attacks": ATTACKS, "poisonings": POISONINGS, "inversions": INVERSIONS, "defences": DEFENCES}
BOUNDS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
    "enum": "one of {}",
    "pattern": "matches `{}`",
}


def page() -> str:
    """The whole page, in Markdown."""
    sections = [
        "# Experiment file",
        "Every field with its bounds and default, written by `python -m docs.fields` from the types that check the"
        " file. An unknown field is an error. Where a parameter of an architecture or attack takes one value, a list"
        " is a sweep: one entry per value, with the value in the key. `architecture` and `method` may be left out where"
        " the entry's name is one. What `watch`, `notify`, `automation` and `schedule` do:"
        " [Registered models and automation](../guides/registered-models.md).",
        _section("`attributes`", ExperimentFile),
        _section("`watch`", Watch),
        _section("`notify`", Notify),
        _section("`data`: `digits`", DigitsSource),
        _section("`data`: `mnist`", MnistSource),
        _section("`data`: `image_folder`", ImageFolderSource),
        _section("`architectures`", TrainingRecipe),
        _section("`architectures`: `madry`", MadryTraining),
        *(
            _section(f"`{section}`: `{name}`", config)
            for section, methods in ENTRIES.items()
            for name, config in methods.items()
        ),
        _section("`poisonings`: `trigger`", Trigger),
    ]
    return "\n\n".join(sections) + "\n"


def _section(title: str, model: type[BaseModel]) -> str:
    described = _described(inspect.getdoc(model) or "")
    document = model.model_json_schema()
    required, fields = document.get("required", []), document["properties"]
    rows = [
        _row(name, {"description": described.get(name, ""), **schema}, required=name in required)
        for name, schema in fields.items()
    ]
    return "\n".join([f"## {title}", "", "| field | default | allowed | what it is |", "|---|---|---|---|", *rows])


def _described(docstring: str) -> dict[str, str]:
    """The section `Attributes:` of a docstring, field by field."""
    section = docstring.partition("Attributes:")[2].split("\n\n")[0]
    entries = re.findall(r"^    (\w+): (.*(?:\n {8,}.*)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


def _row(name: str, schema: dict[str, Any], *, required: bool) -> str:
    choices = schema.get("anyOf", [schema])
    allowed = [_allowed(choice) for choice in choices if choice.get("type") != "null"]
    default = f"`{schema['default']}`" if schema.get("default") not in (None, "", [], {}) else "–"
    default = "required" if required else default
    description = " ".join(str(schema.get("description", "")).split())
    return f"| `{name}` | {default} | {' or '.join(filter(None, allowed))} | {description} |".replace("|  |", "| |")


def _allowed(schema: dict[str, Any]) -> str:
    if "const" in schema:
        return f"`{schema['const']}`"
    if "$ref" in schema:
        return "the fields below"
    kind = schema.get("type", "")
    bounds = [text.format(_listed(schema[bound])) for bound, text in BOUNDS.items() if bound in schema]
    return ", ".join([kind, *bounds] if kind else bounds)


def _listed(value: object) -> str:
    return ", ".join(f"`{one}`" for one in value) if isinstance(value, list) else str(value)


if __name__ == "__main__":
    PAGE.write_text(page())
