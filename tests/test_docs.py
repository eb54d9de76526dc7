"""What the documentation says is what the code does."""

import doctest
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import dioptra_assets as da
from docs import command_line, fields, report_schema
from tests.test_rooms import ARROWS

pytestmark = pytest.mark.quick

ROOT = Path(__file__).parent.parent
PACKAGES = ("dioptra_assets", "partitions", "resources")
SOURCES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
DECISIONS = ROOT / "docs" / "decisions"
CODE = [*SOURCES, *sorted((ROOT / "services").rglob("*.py"))]
WITH_EXAMPLES = [path for path in SOURCES if ">>> " in path.read_text()]


def test_the_reference_of_fields_is_the_one_the_types_give() -> None:
    assert fields.PAGE.read_text() == fields.page(), "run `python -m docs.fields`"


def test_the_page_of_commands_is_the_one_the_commands_give() -> None:
    assert command_line.PAGE.read_text() == command_line.page(), "run `python -m docs.command_line`"


def test_the_schema_of_a_report_is_the_one_the_types_give() -> None:
    assert report_schema.SCHEMA.read_bytes() == report_schema.schema(), "run `python -m docs.report_schema`"


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


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_make_target_that_a_page_names_is_there(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:`|^)make ([a-z-]+)", page.read_text(), re.MULTILINE))
    assert named <= targets


def test_the_page_of_the_architecture_names_every_room() -> None:
    table = (ROOT / "ARCHITECTURE.md").read_text()
    rooms = {room for room in ARROWS if room != "package"}
    assert {room for room in rooms if not re.search(rf"`(dioptra_assets/)?{room}(/|\.py)`", table)} == set()
    drawn = (ROOT / "docs" / "images" / "rooms.svg").read_text()
    files = {"__main__", "broken_experiments", "dagster_internals", "progress"}  # too small for a box
    assert {room for room in rooms - files if f">{room}<" not in drawn} == set()


def test_every_setting_that_the_code_reads_is_explained_on_a_page() -> None:
    setting = re.compile(r"DIOPTRA_ASSETS_[A-Z0-9_]*[A-Z0-9]")
    read = {
        name for path in [*CODE, ROOT / "Makefile", ROOT / "compose.yaml"] for name in setting.findall(path.read_text())
    }
    read -= {"DIOPTRA_ASSETS_SERVICES"}  # marks the processes of `make services-up`
    named = {name for page in PAGES for name in setting.findall(page.read_text())}
    assert {name.replace("_GRPC", "") for name in read} <= named


def test_the_page_of_the_python_interface_has_every_public_name() -> None:
    page = (ROOT / "docs" / "reference" / "python.md").read_text()
    assert sorted(re.findall(r"^::: dioptra_assets\.(\w+)$", page, re.MULTILINE)) == sorted(da.__all__)


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_examples_of_docstrings_give_what_they_say(path: Path) -> None:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted and not found.failed


@pytest.mark.heavy
def test_the_site_builds_with_strict_links_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    plain = os.environ | {"NO_COLOR": "1"}
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=plain, check=False)
    assert built.returncode == 0, built.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > len(PAGES)
    loaded = {
        path: re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=\"?(https?:[^\">]+)", path.read_text())
        for path in pages
    }
    assert not any(loaded.values()), loaded
