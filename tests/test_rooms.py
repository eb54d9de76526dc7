"""The rooms of the house: who may import from whom, and where what is Dagster's own comes in."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.dagster_canary import ROOM, lacking

pytestmark = pytest.mark.quick

# Room -> the rooms that it may import from: any other arrow is a wrong one, but for those to `dagster_internals`.
BELOW_ASSETS = {"partitions", "resources", "robustness"}
ARROWS = {
    "dagster_internals": set(),
    "robustness": set(),
    "progress": set(),
    "partitions": {"robustness"},
    "resources": {"robustness"},
    "records": {"resources"},
    "broken_experiments": {"partitions"},
    "experiment_loader": {"broken_experiments", "partitions"},
    "assets": {"progress", "records", *BELOW_ASSETS},
    "runs": {"assets", "broken_experiments", "partitions", "progress", "resources"},
    "registered_versions": {"assets", "runs", *BELOW_ASSETS},
    "automation": {"assets", "partitions", "registered_versions", "resources", "runs"},
    "entry_points": {"assets", "runs", *BELOW_ASSETS},
    "experiment": {"assets", "automation", "partitions", "registered_versions"},
    "definitions": {"assets", "automation", "entry_points", "experiment_loader", "partitions", "resources", "runs"},
    "housekeeping": {"assets", "broken_experiments", "partitions", "resources", "runs"},
    "api": {
        "assets",
        "broken_experiments",
        "definitions",
        "entry_points",
        "registered_versions",
        "runs",
        *BELOW_ASSETS,
    },
    "package": {"api"},
    "web": {"api", "resources", "runs"},
    "command_line": {
        "api",
        "broken_experiments",
        "definitions",
        "entry_points",
        "housekeeping",
        "package",
        "progress",
        "runs",
        *BELOW_ASSETS,
    },
    "__main__": {"command_line", "resources", "runs"},
}


def test_rooms_import_one_way() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for name, path in _modules().items()
        for module, line in _imports(path)
        if (target := _room(module)) not in (None, _room(name), "dagster_internals")
        and target not in ARROWS[str(_room(name))]
    ]
    assert wrong == []


def test_every_module_has_its_place_among_the_rooms() -> None:
    assert {_room(name) for name in _modules()} == set(ARROWS)


def test_no_room_reaches_itself() -> None:
    TopologicalSorter(ARROWS).prepare()


def test_no_file_imports_one_that_imports_it() -> None:
    """Imports for types and those inside a function count as well."""
    modules = _modules()
    graph = {name: {one for one, _ in _imports(path) if one in modules} - {name} for name, path in modules.items()}
    # The package hands out the functions of its rooms when they are asked for, and every module is below it.
    del graph["dioptra_assets"]
    TopologicalSorter({name: found - {"dioptra_assets"} for name, found in graph.items()}).prepare()


def test_what_is_dagsters_own_comes_in_through_one_room() -> None:
    files = [path for folder in ("benchmarks", "docs", "services", "tests") for path in (ROOT / folder).rglob("*.py")]
    found = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path in [*_modules().values(), *files]
        if path.name != ROOM.name
        for module, line in _imports(path)
        if module.startswith("dagster._")
    ]
    assert found == []


def test_the_pinned_release_of_dagster_has_all_that_the_room_names() -> None:
    assert lacking() == []


def test_what_a_release_of_dagster_lacks_is_named(tmp_path: Path) -> None:
    room = tmp_path / "room.py"
    room.write_text(
        "from dagster._core.storage.tags import NOT_THERE\nfrom dagster._gone import x\nfrom dagster_celery import y\n"
    )
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "dagster_canary.py", room], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.splitlines() == ["dagster._core.storage.tags.NOT_THERE", "dagster._gone.x", "dagster_celery.y"]


def _modules() -> dict[str, Path]:
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for folder in ("dioptra_assets", "resources", "partitions")
        for path in sorted((ROOT / folder).rglob("*.py"))
    }


def _room(module: str) -> str | None:
    """The room of a module of ours: the first part of its name, below `dioptra_assets` the second."""
    first, _, rest = module.partition(".")
    if first != "dioptra_assets":
        return first if first in ("resources", "partitions") else None
    return rest.partition(".")[0] or "package"


def _imports(path: Path) -> Iterator[tuple[str, int]]:
    """Every module that a file imports at any depth, `from package import module` as `package.module`."""
    ours = _modules()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: imports are absolute"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield (whole if whole in ours or node.module == "dioptra_assets" else node.module), node.lineno
