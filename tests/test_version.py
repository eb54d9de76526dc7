"""The version is the git tag; without git, as in a tarball or an image, it is the fallback."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.quick


def version_of(folder: Path) -> str:
    command = [sys.executable, "-m", "hatchling", "version"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


def git(folder: Path, *arguments: str) -> None:
    own = ["-c", "user.name=tests", "-c", "user.email=tests@localhost"]
    subprocess.run(["git", *own, *arguments], cwd=folder, check=True, capture_output=True)


def test_the_version_is_the_tag_counts_commits_after_it_and_has_a_fallback(tmp_path: Path) -> None:
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    fallback = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["version"]["fallback-version"]
    assert version_of(tmp_path) == fallback
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "first")
    assert re.fullmatch(rf"{re.escape(fallback.removesuffix('0'))}\d+", version_of(tmp_path)), "no tag yet"
    git(tmp_path, "tag", "v1.2.3")
    assert version_of(tmp_path) == "1.2.3"
    git(tmp_path, "commit", "--quiet", "--allow-empty", "-m", "second")
    assert version_of(tmp_path) == "1.2.4.dev1"
