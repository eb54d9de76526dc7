"""Write docs/experiments.md, the reference of every field of an experiment file: `python -m docs.reference`."""

import inspect
import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from dioptra_assets.robustness.adversarial_training import MadryTraining
from dioptra_assets.robustness.attacks import ATTACKS
from dioptra_assets.robustness.data import DigitsSource, ImageFolderSource, MnistSource
from dioptra_assets.robustness.defences import DEFENCES
from dioptra_assets.robustness.inversion import INVERSIONS
from dioptra_assets.robustness.poisoning import POISONINGS
from dioptra_assets.robustness.poisoning.trigger import Trigger
from dioptra_assets.robustness.training import TrainingRecipe
from partitions.experiments import ExperimentFile, Watch
from partitions.notify import Notify

PAGE = Path(__file__).parent / "experiments.md"
ENTRIES = {"attacks": ATTACKS, "poisonings": POISONINGS, "inversions": INVERSIONS, "defences": DEFENCES}
UNASKED = """## What is computed without being asked

Nothing, unless the experiment says so (of those that are shipped `watched` does). `watch` alone adds the branch \
`registered_model/...` and a sensor that is off.

| field | what it turns on | what is computed, and when |
|---|---|---|
| `automation: true` | the sensor `EXPERIMENT_automation`, and with `watch` the sensor \
`EXPERIMENT_registered_models` | a cell that is missing, whose declaration was edited, or whose inputs have other \
content, within a minute; a new version, at the next look, every five seconds |
| `schedule: 0 2 * * *` | the schedule `EXPERIMENT_nightly`, times in UTC | every cell that is missing or stale, and \
every watched version that is new or whose attacks were edited, at two o'clock every night |

Both need the daemon (`make ui` starts it). With both, the night makes up for what the day has left: cells that \
failed are tried again, and cells that the store has lost are made again. A night computes only what another content \
has made stale: attacks are seeded, so doing one again would give the same bytes. A night that is not over when the \
next begins goes on, and the next one is left out. The cells stand in runs of their own, one an asset, and the run \
of the job `nightly` lists what it did.

A night asks the store as well as Dagster: on one machine it looks at some 1,400 cells a second, see \
[scale.md](scale.md)."""
REGISTERED = """## What becomes of a registered version

A version is a partition `NAME@VERSION` of the assets `registered_model/...`. Those that come together share their \
runs. It is always one of:

| status | meaning |
|---|---|
| `passed` | every gate that blocks holds |
| `failed` | one does not |
| `not judged` | and why: its file was refused, numbers are missing, there are no gates, or a person gave up |
| `waiting` | for its first run, or, where that failed, until the time that is said: 30 seconds, then twice as \
long each time, up to an hour |

It is shown by `dioptra-assets versions EXPERIMENT` (ends with 1 where one failed, with 3 where one was not judged \
or waits, with 2 where none was seen), by `da.verdicts("EXPERIMENT")`, in Dagster on the asset \
`registered_model/verdict`, and in MLflow in the description and the tags `dioptra_assets.EXPERIMENT.verdict`, \
`.why`, `.digest`, `.next_try` and `.link` of the version. `DIOPTRA_ASSETS_SERVER` says where Dagster's pages are, \
for the link. A version that fails for ever is given up with the tag `dioptra_assets.give_up` on the version in \
MLflow, and taken up again when the tag is taken away.

A version is its bytes: registered again, they are not attacked again; another model under an old number starts \
from nothing. A version that is deleted is no partition any more. With `notify` a webhook (Slack, or what takes \
its JSON) is told once of each version that failed, was not judged, or has failed four tries; it is tried again \
while it is away."""
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
        "# Fields of an experiment file",
        "Written by `python -m docs.reference` from the types that check the file. An unknown field is an error. A list"
        " where a parameter of an architecture or attack takes one value is a sweep; the value then stands in the key."
        " `architecture` and `method` may be left out where the entry's name is one.",
        _section("`attributes`", ExperimentFile),
        _section("`watch`", Watch),
        _section("`notify`", Notify),
        REGISTERED,
        UNASKED,
        _section("`data` with `source: digits`", DigitsSource),
        _section("`data` with `source: mnist`", MnistSource),
        _section("`data` with `source: image_folder`", ImageFolderSource),
        _section("An entry of `architectures`", TrainingRecipe),
        _section("`madry` of an entry of `architectures`", MadryTraining),
        *(
            _section(f"An entry of `{section}` with `method: {name}`", config)
            for section, methods in ENTRIES.items()
            for name, config in methods.items()
        ),
        _section("`trigger` of an entry of `poisonings`", Trigger),
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
