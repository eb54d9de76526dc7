"""Reading the experiments of a project: a mistake in one is shown in its place, and the others load.

Why: docs/decisions/0036-a-mistake-is-one-experiments.md
"""

import importlib
import logging
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
from pydantic import ValidationError

from dioptra_assets.broken_experiments import broken_experiment
from partitions.entries import ExperimentError
from partitions.experiment_files import FILE_NAMES, check_files
from partitions.experiments import check_name

# Set by `dg check defs`, which must end with an error where a file is wrong.
CHECKING = "DAGSTER_IS_DEFS_VALIDATION_CLI"


def load_experiments(package: Path) -> dg.Definitions:
    """What stands below the folder `defs` of a project's package.

    Raises:
        ExperimentError: within `dg check defs` alone: a sentence for each mistake of each file.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)
        try:
            return _all_at_once(package)
        except Exception:  # noqa: BLE001 - which of the files it was is found out below
            pass
        parts = dict(_one_by_one(package))
    sentences = [part for part in parts.values() if isinstance(part, str)]
    if sentences and os.environ.get(CHECKING):
        raise ExperimentError("\n".join(sentences))
    return dg.Definitions.merge(
        *(broken_experiment(name, part) if isinstance(part, str) else part for name, part in parts.items())
    )


def mistakes_in(package: Path) -> dict[str, str]:
    """Name of each experiment that cannot be loaded -> what is wrong with its file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)
        return {name: part for name, part in _one_by_one(package) if isinstance(part, str)}


def _all_at_once(package: Path) -> dg.Definitions:
    """The folder as Dagster reads it, with the tree of components that its UI shows."""
    check_files(package / "defs")  # before Dagster reads them
    tree = _project(package)
    # Of the folder alone: `load_from_defs_folder` also imports every component that any installed package registers
    # (dagster-aws and with it boto3), to list them in the UI, which doubles the time of loading.
    return dg.Definitions.merge(tree.build_defs(package / "defs"), dg.Definitions(component_tree=tree))


def _project(package: Path) -> dg.ComponentTree:
    """The tree of a project; of an installed package, which has no project file beside it, that of its own folder."""
    beside = (package.parent, package.parent.parent)  # the package may stand in a folder `src`
    if any((folder / name).is_file() for folder in beside for name in ("pyproject.toml", "dg.toml")):
        return dg.ComponentTree.for_project(path_within_project=package)
    defs = importlib.import_module(f"{package.name}.defs")
    return dg.ComponentTree(defs_module=defs, project_root=package.parent, code_location_name=package.name)


def _one_by_one(package: Path) -> Iterator[tuple[str, dg.Definitions | str]]:
    """Each part of the folder, or the sentence that says why it could not be loaded.

    Dagster reads a tree as a whole, so that each part gets one of its own; the UI shows no tree of components then.
    """
    project = _project(package)
    for path in sorted((package / "defs").iterdir()):
        if path.name.startswith((".", "__")) or not (path.is_dir() or path.suffix == ".py"):
            continue
        try:
            yield path.stem if path.is_file() else path.name, _part(path, project)
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not stop the others
            yield path.name, _sentence(path, error)


def _part(path: Path, project: dg.ComponentTree) -> dg.Definitions:
    if path.is_dir():
        check_files(path)
        if any((path / name).is_file() for name in FILE_NAMES):
            check_name(path.name)
    module = importlib.import_module(f"{project.defs_module_name}.{path.stem if path.is_file() else path.name}")
    if path.is_file():
        return dg.load_definitions_from_module(module)
    return dg.ComponentTree.from_module(module, project.project_root).build_defs(path)


def _sentence(path: Path, error: BaseException) -> str:
    """What Dagster wrapped, at the bottom; its own text is a drawing of the whole tree."""
    cause = error
    while not isinstance(cause, ExperimentError) and cause.__cause__ is not None:
        cause = cause.__cause__
    if isinstance(cause, ExperimentError):
        return str(cause)
    file = next((path / name for name in FILE_NAMES if (path / name).is_file()), None)
    if isinstance(cause, ValidationError):
        # Dagster writes file and line into the name of the field.
        fields = (re.sub(" at .*:([0-9]+)$", r" in line \1", ".".join(map(str, one["loc"]))) for one in cause.errors())
        said = "; ".join(f"{field}: {one['msg']}" for field, one in zip(fields, cause.errors(), strict=True))
    else:
        said = " ".join(str(cause).removeprefix("Invariant failed. Description: ").split())
    if file:
        return f"experiment {path.name!r}, {file.name}: {said[:500]}"
    # Code of the project's own: where in it stands in the log.
    logging.getLogger(__name__).warning("%s could not be loaded", path, exc_info=error)
    return f"{path.parent.name}/{path.name}: {type(cause).__name__}: {said[:500]}"
