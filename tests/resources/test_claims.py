"""One name, two checkouts, one store: neither replaces what the other computed unless it is told to."""

import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from dioptra_assets import definitions
from dioptra_assets.command_line import app
from resources.claims import ClaimedError, claim, claim_of, keep_to_claim, refuse_others
from resources.store import Cell, CellStore
from tests.conftest import EXPERIMENT, Lab, enter, skeleton

EDITED = {**EXPERIMENT, "attacks": {"fgm": {"eps": [0.2]}}}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CellStore:
    monkeypatch.delenv("DIOPTRA_ASSETS_OWNER", raising=False)
    monkeypatch.setenv("DIOPTRA_ASSETS_ENV", "")
    return CellStore(str(tmp_path / "store"))


def test_an_experiment_belongs_to_whoever_computed_it_first(store: CellStore) -> None:
    keep_to_claim(store, "digits", "/a/digits", "one")
    with pytest.raises(ClaimedError) as raised:
        keep_to_claim(store, "digits", "/b/digits", "two")
    said = str(raised.value)
    assert "belongs to /a/digits (" in said and "its file there differs from /b/digits" in said
    for way in ("Rename your folder", "`dioptra-assets claim digits`", "DIOPTRA_ASSETS_OWNER"):
        assert way in said
    assert "\n" not in said
    keep_to_claim(store, "other", "/b/other", "two")


def test_its_owner_edits_it_and_a_clone_that_says_the_same_goes_on(store: CellStore) -> None:
    keep_to_claim(store, "digits", "/a/digits", "one")
    keep_to_claim(store, "digits", "/b/digits", "one")
    assert claim_of(store, "digits").owner == "/a/digits"  # type: ignore[union-attr]
    keep_to_claim(store, "digits", "/a/digits", "two")
    with pytest.raises(ClaimedError):
        keep_to_claim(store, "digits", "/b/digits", "one")
    keep_to_claim(store, "digits", "/b/digits", "two")


def test_it_is_taken_over_when_told_so_and_a_name_is_shared_by_many_folders(
    store: CellStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_to_claim(store, "digits", "/a/digits", "one")
    claim(store, "digits", "/moved/digits", "two")
    keep_to_claim(store, "digits", "/moved/digits", "three")
    with pytest.raises(ClaimedError):
        refuse_others(store, "digits", "/a/digits", "one")
    monkeypatch.setenv("DIOPTRA_ASSETS_OWNER", "build")
    claim(store, "digits", "/builds/1/digits", "three")
    keep_to_claim(store, "digits", "/builds/2/digits", "four")
    assert claim_of(store, "digits").owner == "build"  # type: ignore[union-attr]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"owner": "/a"}', '{"owner": "/a", "digest": "one", "more": 1}'])
def test_a_claim_that_cannot_be_read_is_one_sentence_and_is_claimed_anew(store: CellStore, content: str) -> None:
    keep_to_claim(store, "digits", "/a/digits", "one")
    store.put("owners of experiments/digits.json", content.encode())
    with pytest.raises(ClaimedError) as raised:
        keep_to_claim(store, "digits", "/a/digits", "one")
    said = str(raised.value)
    assert "owners of experiments/digits.json" in said and "`dioptra-assets claim digits`" in said and "\n" not in said
    claim(store, "digits", "/a/digits", "one")
    keep_to_claim(store, "digits", "/a/digits", "one")


def test_looking_writes_nothing(store: CellStore) -> None:
    refuse_others(store, "digits", "/a/digits", "one")
    assert claim_of(store, "digits") is None
    keep_to_claim(store, "digits", "/a/digits", "one")
    assert store.cells("") == [], "a claim is no cell"


def test_a_checkout_is_moved_with_the_store_that_is_in_it(store: CellStore, tmp_path: Path) -> None:
    keep_to_claim(CellStore(str(tmp_path / "here/home/store")), "digits", str(tmp_path / "here/lab/defs/digits"), "one")
    (tmp_path / "here").rename(tmp_path / "there")
    moved = CellStore(str(tmp_path / "there/home/store"))
    keep_to_claim(moved, "digits", str(tmp_path / "there/lab/defs/digits"), "two")
    with pytest.raises(ClaimedError):
        keep_to_claim(moved, "digits", str(tmp_path / "here/lab/defs/digits"), "three")


@pytest.fixture
def second(blank: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Any]], Lab]:
    """Another checkout that uses the first one's home, with an experiment of the same name."""
    monkeypatch.delenv("DIOPTRA_ASSETS_OWNER")

    def make(attributes: dict[str, Any]) -> Lab:
        other = skeleton(tmp_path / "second")
        shutil.rmtree(other.home)
        other.home.symlink_to(blank.home)
        other.write(attributes)
        enter(monkeypatch, blank)
        return other

    return make


def config_of(lab: Lab) -> dg.ExecuteInProcessResult:
    return lab.run("architecture_config", "le_net")


def test_another_checkout_with_an_edited_file_computes_nothing_until_it_claims(
    blank: Lab,
    second: Callable[[dict[str, Any]], Lab],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert config_of(blank).success
    before, owner = blank.bytes(), claim_of(blank.store, "tiny")
    other = second(EDITED)
    refused = config_of(other)
    assert not refused.success
    assert any("ClaimedError: experiment 'tiny'" in str(event.event_specific_data) for event in refused.all_events)
    assert (blank.bytes(), claim_of(blank.store, "tiny")) == (before, owner)
    assert config_of(blank).success

    package = other.folder / other.module
    monkeypatch.setattr(definitions, "defs", other.defs)
    monkeypatch.setattr(definitions, "experiment_spec", partial(definitions.experiment_spec, package=package))

    def call(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["dioptra-assets", *arguments])
        with pytest.raises(SystemExit) as ended:
            app.main()
        return int(ended.value.code or 0)

    assert call("materialize", "tiny") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("experiment 'tiny' in ")
    assert call("clean", "tiny", "--yes") == 1
    blank.store.put("owners of experiments/tiny.json", b"{")
    assert call("materialize", "tiny") == 1
    assert "was altered or cut off" in capsys.readouterr().err
    assert call("claim", "tiny") == 0
    assert f"belongs to {package.resolve()}/defs/tiny\n" in capsys.readouterr().out
    assert call("claim", "tiny") == 0
    assert f"belongs to {package.resolve()}/defs/tiny; it belonged to" in capsys.readouterr().out
    assert config_of(other).success
    assert not config_of(blank).success
    assert blank.store.find(Cell("tiny/architecture_config", {"architecture": "le_net"}))


def test_a_second_clone_of_the_same_file_goes_on(blank: Lab, second: Callable[[dict[str, Any]], Lab]) -> None:
    assert config_of(blank).success
    assert config_of(second(dict(EXPERIMENT))).success
