"""What the documentation says is what the code does."""

import ast
import doctest
import importlib
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from docs import records, reference

pytestmark = pytest.mark.quick

ROOT = Path(__file__).parent.parent
PACKAGES = ("dioptra_assets", "partitions", "resources")
SOURCES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
# Parts of a declared library that are a distribution of their own.
COME_WITH_OTHERS = {"botocore", "celery", "click", "graphene", "graphql-core", "kombu", "pydantic-core", "websockets"}
# A program, and the library that a table is written with.
RUN_OR_NEEDED_BY_OTHERS = {"dagster-dg-cli", "tabulate"}
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
DECISIONS = ROOT / "docs" / "decisions"
CODE = [*SOURCES, *sorted((ROOT / "services").rglob("*.py"))]
WITH_EXAMPLES = [path for path in SOURCES if ">>> " in path.read_text()]


def test_the_reference_of_fields_is_the_one_the_types_give() -> None:
    assert reference.PAGE.read_text() == reference.page(), "run `python -m docs.reference`"


def test_the_schema_of_a_report_is_the_one_the_types_give() -> None:
    assert records.SCHEMA.read_bytes() == records.schema(), "run `python -m docs.records`"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_page_and_picture_that_a_page_names_is_there(page: Path) -> None:
    named = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    missing = [path for path in named if "://" not in path and not (page.parent / path).exists()]
    assert not missing


def test_each_decision_is_listed_dated_and_named_by_the_code_it_governs() -> None:
    decisions = {path.name: path.read_text() for path in DECISIONS.glob("[0-9]*.md")}
    index = (DECISIONS / "index.md").read_text()
    named = {name for path in CODE for name in re.findall(r"docs/decisions/([\w-]+\.md)", path.read_text())}
    assert named == set(decisions) == set(re.findall(r"\(([0-9][\w-]+\.md)\)", index))
    for name, text in decisions.items():
        head = re.search(r"\| (accepted|replaced by [0-9]{4}) \| [0-9]{4}-[0-9]{2}-[0-9]{2} \| (.+) \|", text)
        assert head, f"{name}: no line with status, date and the code it governs"
        for path in re.findall(r"`([^`]+)`", head.group(2)):
            assert f"docs/decisions/{name}" in (ROOT / path).read_text(), f"{path} does not name {name}"


def test_the_lock_file_names_no_address() -> None:
    assert not re.search(r"://|index-url|find-links", (ROOT / "requirements.lock").read_text())


def test_every_make_target_that_the_readme_names_is_there() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"`?make ([a-z-]+)", (ROOT / "README.md").read_text()))
    assert {target for target in targets if not re.search(rf"^{target}:", makefile, re.MULTILINE)} == set()


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_examples_of_docstrings_give_what_they_say(path: Path) -> None:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted and not found.failed


def imported(folder: str) -> set[str]:
    """What the modules of a folder import, wherever in them."""
    names = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.partition(".")[0])
    # A home in the checkout has a folder `mlflow`, which is no package.
    own = {path.name for path in ROOT.iterdir() if any(path.glob("*.py"))}
    return names - sys.stdlib_module_names - own


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(*requirements: str) -> set[str]:
    return {normal(re.split(r"[\[<>=!~ ;]", requirement)[0]) for requirement in requirements}


def test_what_is_imported_is_declared_and_what_is_declared_is_used() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    always = declared(*project["dependencies"])
    anywhere = always.union(*(declared(*extra) for extra in project["optional-dependencies"].values()))
    distributions = packages_distributions()

    def undeclared(folders: tuple[str, ...], allowed: set[str]) -> set[str]:
        return {
            name
            for folder in folders
            for name in imported(folder)
            if not {normal(one) for one in distributions.get(name, [name])} & allowed
        }

    # What comes with an extra is imported where its setting is made: an executor, S3, PyTorch.
    assert undeclared((*PACKAGES, "services", "tests", "benchmarks", "docs"), anywhere | COME_WITH_OTHERS) == set()
    used = {normal(one) for name in set().union(*map(imported, PACKAGES)) for one in distributions.get(name, [name])}
    assert always - used == RUN_OR_NEEDED_BY_OTHERS
