"""Every command and every Python block of the documentation is run, or says in the line above it why it is not.

    <!-- skip: next "needs a cluster" -->
    <!-- skip: next if(not SLOW, reason="trains a model") -->

The small experiment of the tests stands in for `digits`: it has the same models, and attacks of the same names.
"""

import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import SkipTest

import pytest
import yaml
from sybil import Document, Example, Sybil
from sybil.example import NotEvaluated
from sybil.parsers.markdown import CodeBlockParser, SkipParser
from typer.testing import CliRunner

from dioptra_assets import definitions
from dioptra_assets.command_line import app, overview
from partitions.experiments import ExperimentFile, parse_experiment
from tests.conftest import EXPERIMENT, ROOT, Lab, enter, skeleton

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
# Blocks that no test runs, and that only `make test-all` does. More of them want a reason, fewer are welcome.
NEVER, SLOW = 24, 6
MARK = re.compile(
    r"<!-- skip: next (?P<condition>if\(not SLOW, reason=)?\"(?P<why>[^\"]+)\"\)? -->\n```(?P<language>\w+)"
)
# Of these pages everything runs on the shipped experiments, in a home of its own.
ON_THE_SHIPPED = {"single-jobs.md", "your-own-model.md"}
NAME_OF_THE_DEMO = re.compile(r"(?<=[\"'/ ])digits(?=[\"'/ .]|$)", re.MULTILINE)
# What the sections that a page shows are sections of.
WHOLE: dict[str, Any] = {
    "data": {"source": "digits"},
    "architectures": {"le_net": {}},
    "attacks": {"fgm": {"eps": [0.1, 0.3]}, "pgd": {"eps": 0.3}, "pgd_0.3": {"method": "pgd", "eps": 0.3}},
    "poisonings": {"baseline": {"target_class": 1, "poison_fraction": 0.1}},
}


def marks(page: Path) -> list[re.Match[str]]:
    return list(MARK.finditer(page.read_text()))


def small(text: str, page: str) -> str:
    """The text with the small experiment in the place of `digits`."""
    return text if Path(page).name in ON_THE_SHIPPED else NAME_OF_THE_DEMO.sub("tiny", text)


def run_python(example: Example) -> None:
    lines = "\n" * (example.line + example.parsed.line_offset)
    exec(compile(lines + small(example.parsed, example.path), example.path, "exec"), example.namespace)


def run_commands(example: Example) -> None:
    """Run each line of a block as the command line would, in this process."""
    for line in small(example.parsed, example.path).replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        assert words[0] == "dioptra-assets", f"{example.path}:{example.line}: {words[0]!r} is not run here: mark it"
        done = CliRunner().invoke(app.app, words[1:])
        assert done.exit_code == 0, f"{example.path}:{example.line}: {line}\n{done.output}\n{done.exception!r}"


def check_yaml(example: Example) -> None:
    """Check an experiment file, or the sections of one that a block shows; of anything else, that it is YAML."""
    document = yaml.safe_load(example.parsed)
    attributes = document.get("attributes", document)
    if set(attributes) <= set(ExperimentFile.model_fields):
        parse_experiment("shown", {**WHOLE, **attributes} if attributes is document else attributes, "/")


RUN_BY = {"python": run_python, "sh": run_commands, "yaml": check_yaml}
# Output, other programs' files, and the usage lines that Typer writes.
READ = {"text", "nginx", "console"}


def document_of(page: Path, *, slow: bool = False) -> Document:
    parsers = [SkipParser(), *map(CodeBlockParser, RUN_BY, RUN_BY.values())]
    document = Sybil(parsers=parsers).parse(page)
    document.namespace["SLOW"] = slow
    return document


def count(page: Path, *evaluators: Callable[[Example], None]) -> int:
    """How many blocks of a page there are for some evaluators, marked or not."""
    return sum(example.region.evaluator in evaluators for example in document_of(page).examples())


def run_page(page: Path, *, slow: bool = False) -> int:
    """Run the blocks of a page in their order, and count those that were."""
    ran = 0
    for example in document_of(page, slow=slow).examples():
        try:
            example.evaluate()
            ran += example.region.evaluator in RUN_BY.values()
        except (SkipTest, NotEvaluated):
            continue
    return ran


@pytest.fixture(scope="module")
def project(finished: Lab, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """A copy of the materialized experiment with a gate, for all pages: what they do to it does no harm to the next."""
    copy = skeleton(tmp_path_factory.mktemp("docs") / "project")
    shutil.copytree(finished.home, copy.home, dirs_exist_ok=True)
    copy.write({**EXPERIMENT, "gates": ["clean_accuracy >= 0.1"]})
    (copy.home / "docs").symlink_to(ROOT / "docs")
    return copy


@pytest.fixture
def at_home(project: Lab, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    """The place of a reader who has run the demo."""
    package = project.folder / project.module
    enter(monkeypatch, project)
    monkeypatch.chdir(project.home)
    monkeypatch.setattr(definitions, "defs", project.defs)
    monkeypatch.setattr(overview, "defs", project.defs)
    monkeypatch.setattr(definitions.experiment_spec, "__defaults__", (package,))
    monkeypatch.setattr(definitions.mistakes, "__defaults__", (None, package))
    yield project


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_blocks_of_a_page_run(page: Path, request: pytest.FixtureRequest) -> None:
    # A page that only shows needs no experiment.
    if count(page, run_python, run_commands) > sum(mark["language"] != "yaml" for mark in marks(page)):
        request.getfixturevalue("at_home")
    run_page(page)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ON_THE_SHIPPED))
def test_the_slow_blocks_of_a_page_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (page,) = (one for one in PAGES if one.name == name)
    blank = skeleton(tmp_path / "project")
    enter(monkeypatch, blank)
    monkeypatch.chdir(blank.home)
    assert run_page(page, slow=True) == count(page, *RUN_BY.values())


@pytest.mark.quick
def test_every_block_is_run_or_read_and_what_is_not_run_says_why() -> None:
    never, slow = [], []
    for page in PAGES:
        text = page.read_text()
        languages = re.findall(r"^[ \t]*```(.*)\n(?:.*\n)*?[ \t]*```[ \t]*$", text, re.MULTILINE)
        assert set(languages) <= {*RUN_BY, *READ}, f"{page}: {set(languages) - {*RUN_BY, *READ}}"
        found = marks(page)
        assert len(re.findall("^<!-- skip:", text, re.MULTILINE)) == len(found), (
            f"{page}: a mark that stands above no block, or without a reason"
        )
        for mark in found:
            (slow if mark["condition"] else never).append(f"{page.relative_to(ROOT)}: {mark['why']}")
            for named in re.findall(r"tests/[\w/]+\.py", mark["why"]):
                assert (ROOT / named).exists(), f"{page}: there is no {named}"
    print("not run by any test:", *never, "run by `make test-all`:", *slow, sep="\n  ")
    assert (len(never), len(slow)) == (NEVER, SLOW), "\n".join([*never, *slow])


@pytest.mark.quick
def test_every_command_that_a_page_names_is_there() -> None:
    commands = {one.name or getattr(one.callback, "__name__", "") for one in app.app.registered_commands}
    for page in PAGES:
        named = set(re.findall(r"(?<=dioptra-assets )[a-z][a-z-]+", " ".join(re.findall(r"`[^`]+`", page.read_text()))))
        assert named <= commands, f"{page}: {named - commands}"
