"""Write docs/parity.md, what became of every entry point and parameter of the demos: `python -m docs.parity`."""

from pathlib import Path
from typing import Literal, get_args, get_origin

from pydantic_core import PydanticUndefined

from dioptra_assets.entry_points import ENTRY_POINTS, EntryPoint, Parameter
from partitions.keys import key_text

PAGE = Path(__file__).parent / "parity.md"
# Values for the calls, of parameters without a default to show.
EXAMPLES = {
    "model": "workbench_le_net/1",
    "model_name": "workbench_le_net",
    "model_version": "1",
    "model_tag": "first",
    "seed": "1",
    "target_class": "1",
    "target_class_id": "1",
    "run_id": "RUN",
    "dataset_run_id": "RUN",
    "training_dataset_run_id": "RUN",
}
PLACES = {
    "model": "the model",
    "model_name": "the model",
    "model_version": "the version of the model",
    "model_architecture": "partition `architecture` of the model",
    "run_id": "the set",
    "dataset_run_id": "the set",
    "training_dataset_run_id": "the set trained on",
    "register_model_name": "architecture config, `model_tag`",
    "apply_defense": "architecture config, `madry`",
    "label_type": "which of the two sets; poisoning config, `label_type`",
}


def page() -> str:
    """The whole page, in Markdown."""
    names: dict[str, list[str]] = {}
    for name, entry in ENTRY_POINTS.items():
        names.setdefault(entry.name, []).append(name)
    sections = [
        "# What became of the demos' entry points",
        "Written by `python -m docs.parity` from the table that reads the parameters. Every parameter keeps the demos'"
        " name; the field it sets has its type, bounds, default and help, which"
        " `dioptra-assets run ENTRY_POINT --help` prints. `client` is `dioptra_assets.client`. RUN stands for the id of"
        " an MLflow run.",
        *(_section(ENTRY_POINTS[name], called) for name, called in names.items()),
    ]
    return "\n\n".join(sections) + "\n"


def calls(entry: EntryPoint) -> dict[str, list[str]]:
    """For each of the demos' parameters that is taken, the parameters of a call that gives it."""
    return {one.name: _call(entry, one) for one in entry.parameters.values() if one.demo}


def _section(entry: EntryPoint, names: list[str]) -> str:
    assets = ", ".join(f"`{asset}`" for asset in entry.assets)
    own = ", ".join(f"`{one.name}`" for one in entry.parameters.values() if not one.demo)
    rows = [
        f"| `{names[0]}` | `{name}` | {assets} | {_place(entry.parameters[name])} "
        f"| `dioptra-assets run {entry.name} {_kwargs(given)}` "
        f'| `client.submit_job(entry_point="{entry.name}", entry_point_kwargs="{_kwargs(given)}")` |'
        for name, given in calls(entry).items()
    ]
    rows += [f"| `{names[0]}` | `{name}` | – | not taken: {why} | – | – |" for name, why in entry.not_taken.items()]
    return "\n".join(
        [
            f"## {' or '.join(f'`{name}`' for name in names)}",
            "",
            f"{entry.help} Beside the demos' parameters: {own}.",
            "",
            "| entry point | parameter | here: asset | field | command line | Python |",
            "|---|---|---|---|---|---|",
            *rows,
        ]
    )


def _place(parameter: Parameter) -> str:
    if parameter.places:
        return ", ".join(f"{section} config, `{path}`" for section, path in parameter.places)
    return PLACES[parameter.name]


def _call(entry: EntryPoint, parameter: Parameter) -> list[str]:
    example = dict(one.split("=", 1) for one in entry.example)
    value = example.pop(parameter.name, None) or _example(parameter)
    if parameter.name in {"model", "model_name", "model_version"}:
        example.pop("model_architecture", None)
    if parameter.name == "model_version":
        example["model_name"] = EXAMPLES["model_name"]
    if parameter.name == "register_model_name":
        value = f"workbench_{example['model_architecture']}"
    if parameter.name.endswith("run_id"):
        example = {name: text for name, text in example.items() if name not in {"asset", "architecture", "attack"}}
    if parameter.name.endswith("perform_data_augmentation"):
        value, example = "true", {**example, "gaussian_augmentation_apply_fit": "true"}
    return [f"{name}={text}" for name, text in {**example, parameter.name: value}.items()]


def _example(parameter: Parameter) -> str:
    if parameter.default not in (None, "", PydanticUndefined):
        return key_text(parameter.default)
    choices = get_args(parameter.type) if get_origin(parameter.type) is Literal else ()
    return EXAMPLES.get(parameter.name) or ("le_net" if "le_net" in choices else "")


def _kwargs(given: list[str]) -> str:
    return " ".join(f"-P {one}" for one in given)


if __name__ == "__main__":
    PAGE.write_text(page())
