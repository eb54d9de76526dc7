"""Write docs/reference/entry-points.md, what became of the demos' entry points: `python -m docs.entry_points`."""

from pathlib import Path

from pydantic_core import PydanticUndefined

from dioptra_assets.entry_points.demos import ENTRY_POINTS
from dioptra_assets.entry_points.entry_point import EntryPoint, Parameter
from dioptra_assets.entry_points.help import parameters_table
from partitions.keys import key_text

PAGE = Path(__file__).parent / "reference" / "entry-points.md"
# Why the test of the pages does not run the calls.
NOT_RUN = "trains or attacks; tests/entry_points/test_job.py runs every entry point with every parameter"
# Values for the calls, of parameters without a default to show.
EXAMPLES = {
    "model_name": "workbench_le_net",
    "model_version": "1",
    "model_tag": "first",
    "seed": "1",
    "target_class": "1",
    "target_class_id": "1",
    "run_id": "RUN",
    "dataset_run_id": "RUN",
}
# Beside the value of another parameter, or of a call on the experiment's own images, they say nothing or the same.
LEFT_OUT = {"model", "load_dataset_from_mlruns", "training_dataset_run_id", "minimal"}
PLACES = {
    "model": "the model",
    "model_name": "the model",
    "model_version": "the version of the model",
    "model_architecture": "partition `architecture` of the model",
    "run_id": "the set",
    "dataset_run_id": "the set",
    "training_dataset_run_id": "the set trained on",
    "load_dataset_from_mlruns": "whether the run id is used",
    "register_model_name": "`architecture_config`: `model_tag`",
    "apply_defense": "`architecture_config`: `madry`",
    "label_type": "which of the two sets; `poisoning_config`: `label_type`",
}


def page() -> str:
    """The whole page, in Markdown."""
    names: dict[str, list[str]] = {}
    for name, entry in ENTRY_POINTS.items():
        names.setdefault(entry.name, []).append(name)
    sections = [
        "# Entry points of NIST's demos",
        "What became of every entry point and parameter of the demos, written by `python -m docs.entry_points` from the"
        " table that reads the parameters. Every parameter keeps its name in the demos; bounds, default and help are"
        " those of the field that it sets. RUN stands for the id of an MLflow run.",
        "An entry point is run by `dioptra-assets run ENTRY_POINT -P name=value ...`, in Python by"
        ' `da.submit_job(entry_point="ENTRY_POINT", entry_point_kwargs="-P name=value ...")`, and in the UI from the'
        " launchpad of the job `entry_point`. `dioptra-assets run ENTRY_POINT --help` lists what it takes:"
        " [Single jobs](../guides/single-jobs.md).",
        *(_section(ENTRY_POINTS[name], called) for name, called in names.items()),
        _unused(),
    ]
    return "\n\n".join(sections) + "\n"


def call(entry: EntryPoint) -> list[str]:
    """The parameters of a call that gives every parameter of the demos that can stand beside the others."""
    example = dict(one.split("=") for one in entry.example if one.startswith("model_architecture="))
    given = {
        one.name: example.get(one.name) or _example(one)
        for one in entry.parameters.values()
        if one.demo and one.name not in LEFT_OUT
    }
    if "model_name" in given:
        given.pop("model_architecture", None)
    if "register_model_name" in given:
        given["register_model_name"] = "_".join(["workbench", given["model_tag"], given["model_architecture"]])
    if "gaussian_augmentation_perform_data_augmentation" in given:
        given |= {f"gaussian_augmentation_{one}": "true" for one in ("perform_data_augmentation", "apply_fit")}
    return [f"{name}={text}" for name, text in given.items()]


def _section(entry: EntryPoint, names: list[str]) -> str:
    own = ", ".join(f"`{one.name}`" for one in entry.parameters.values() if not one.demo)
    refused = [f"`{name}` is refused: {why}" for name, why in entry.not_taken.items() if "=" not in name]
    rows = [
        f"| `{row.name}` | {_place(entry.parameters[row.name])} | {row.bounds or row.type} | {row.default or '–'} |"
        for row in parameters_table(entry)
        if entry.parameters[row.name].demo
    ]
    return "\n".join(
        [
            f"## {' or '.join(f'`{name}`' for name in names)}",
            "",
            f"{entry.help} Makes {', '.join(f'`{asset}`' for asset in entry.assets)}. Further"
            f" parameters: {own}. {' '.join(refused)}".strip(),
            "",
            f'<!-- skip: next "{NOT_RUN}" -->',
            "```sh",
            f"dioptra-assets run {entry.name} {_folded([f'-P {one}' for one in call(entry)])}",
            "```",
            "",
            "| parameter | sets | allowed | default |",
            "|---|---|---|---|",
            *rows,
        ]
    )


def _folded(words: list[str], at_once: int = 3) -> str:
    """Words of a command, a few on a line."""
    lines = [" ".join(words[start : start + at_once]) for start in range(0, len(words), at_once)]
    return " \\\n    ".join(lines)


def _place(parameter: Parameter) -> str:
    if parameter.places:
        return ", ".join(
            f"{'partition `defence`' if section == 'defence' else f'`{section}_config`'}: `{path}`"
            for section, path in parameter.places
        )
    return PLACES[parameter.name]


def _unused() -> str:
    """What is accepted and changes nothing, once for all entry points."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for name, entry in ENTRY_POINTS.items():
        for parameter, why in entry.not_needed.items() if name == entry.name else ():
            reasons.setdefault((parameter, why), []).append(f"`{name}`")
    all_of_them = len({entry.name for entry in ENTRY_POINTS.values()})
    rows = [
        f"| `{parameter}` | {'all' if len(names) == all_of_them else ', '.join(names)} | {why} |"
        for (parameter, why), names in sorted(reasons.items(), key=lambda one: -len(one[1]))
    ]
    return "\n".join(
        [
            "## Accepted, but not needed",
            "",
            "The demos' command lines run as they are written. These parameters change nothing here, and the job says"
            " so.",
            "",
            "| parameter | of | why |",
            "|---|---|---|",
            *rows,
        ]
    )


def _example(parameter: Parameter) -> str:
    if parameter.name in EXAMPLES:
        return EXAMPLES[parameter.name]
    if parameter.default not in (None, "", PydanticUndefined):
        return key_text(parameter.default)
    return ""


if __name__ == "__main__":
    PAGE.write_text(page())
