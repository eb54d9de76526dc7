"""What becomes of registered versions when something is in the way: outages, kills, edits; and who is told."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import dioptra_assets as da
from dioptra_assets.assets import adversarial_sets
from dioptra_assets.command_line.app import app
from dioptra_assets.registered_versions.planning import Todo, runs
from dioptra_assets.registered_versions.verdicts import LONGEST_PAUSE, pause
from dioptra_assets.robustness.data.digits import DigitsSource
from partitions.keys import ARCHITECTURE, ATTACK
from resources.store import Cell
from resources.tables import read_table
from resources.tracking.resource import Tracking, TrackingUnavailable
from tests.conftest import Lab
from tests.registry import ONE_ATTACK, Follower, at_once, client, failing, model_file, register

KEY = "team_le_net@1"


@pytest.fixture
def watching(blank: Lab) -> Lab:
    """An experiment that watches the registry, and trains nothing."""
    blank.write(ONE_ATTACK)
    return blank


def tags_of(lab: Lab, key: str = KEY) -> dict[str, str]:
    """What stands on a version in MLflow, without the name of the experiment."""
    name, _, version = key.rpartition("@")
    found = client(lab).get_model_version(name, version).tags
    return {tag.removeprefix("dioptra_assets.tiny."): value for tag, value in found.items()}


def versions_command() -> tuple[int, str]:
    """What `dioptra-assets versions` ends with and says."""
    done = CliRunner().invoke(app, ["versions", "tiny"])
    return done.exit_code, done.stdout


def metadata_of(lab: Lab, key: str) -> Any:
    """What Dagster shows of the last verdict on a version."""
    (shown, *_) = [
        event.asset_materialization.metadata
        for event in reversed(lab.events("registered_model/verdict"))
        if event.asset_materialization and event.asset_materialization.partition == key
    ]
    return shown


def metrics(lab: Lab, key: str) -> Any:
    return read_table(lab.find("registered_model/evasion_metrics", architecture=key, attack="weak"))


def test_pauses_grow_and_end() -> None:
    pauses = [pause(tries) for tries in range(1, 12)]
    assert pauses[:3] == [30, 60, 120] and pauses[-1] == LONGEST_PAUSE and pauses == sorted(pauses)


AWAY = TrackingUnavailable("MLflow did not answer")


def same(model: Any) -> Any:
    """As it is."""
    return model


def masked(model: Any) -> Any:
    """The same predictions, and a loss so flat that one step of the gradient finds nothing."""
    model.set_weights([1000 * weight for weight in model.get_weights()])
    return model


def test_a_good_version_passes_a_worse_one_fails_and_a_masked_one_is_not_judged(watching: Lab, tmp_path: Path) -> None:
    watching.write({**ONE_ATTACK, "gates": ["robust_accuracy >= 0.5", "robust_accuracy no worse than last by 0.02"]})
    good, worse, flat, again = (
        register(watching, model_file(tmp_path, change, tilt))
        for change, tilt in ((same, 0), (same, 0.5), (masked, 0), (same, 0))
    )
    follower = Follower(watching)
    follower.follow()
    verdicts = follower.verdicts
    assert {key: one.status for key, one in verdicts.items()} == {
        good: "passed",
        worse: "failed",
        flat: "not judged",
        again: "passed",
    }
    assert "no worse than last" in verdicts[worse].why and f"{good}, " in verdicts[worse].why
    assert "gradients_are_there" in verdicts[flat].why and verdicts[flat].sentence.startswith("not judged (weak: gate")
    status, said = versions_command()
    assert status == 1 and all(f"{one.status}  {key}" in said for key, one in verdicts.items())
    for key, one in verdicts.items():
        tags = tags_of(watching, key)
        assert (tags["verdict"], tags.get("why", ""), tags["digest"]) == (one.status, one.why, one.digest)
        gates = metadata_of(watching, key)["gates"].value
        assert "robust_accuracy >= 0.5" in str(gates) and (one.status in str(gates) or one.status == "not judged")
        kept = watching.find("registered_model/evasion_gate", architecture=key, attack="weak")
        assert (kept is not None) == (one.status == "passed")


def test_a_version_waits_for_the_one_before_it_that_is_tried_again(
    watching: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watching.write({**ONE_ATTACK, "gates": ["robust_accuracy no worse than last by 0.02"]})
    first = register(watching, model_file(tmp_path))
    follower = Follower(watching)
    with monkeypatch.context() as patched:
        failing(patched, Tracking, "fetch_any_model", AWAY)
        follower.follow()
    second = register(watching, model_file(tmp_path, tilt=0.5))
    follower.follow()
    assert {key: one.status for key, one in follower.verdicts.items()} == dict.fromkeys((first, second), "waiting")
    assert follower.verdicts[second].why == f"{first}, which it may be held against, has not been judged yet"
    at_once(watching, follower, first)
    follower.follow()
    assert {key: one.status for key, one in follower.verdicts.items()} == {first: "passed", second: "failed"}


NOT_YET = FileNotFoundError("there is no file digits.csv yet")


@pytest.mark.parametrize(
    ("method", "error"), [((Tracking, "fetch_any_model"), AWAY), ((DigitsSource, "load"), NOT_YET)]
)
def test_what_fails_is_tried_again_until_there_is_a_verdict(
    method: tuple[type, str], error: Exception, watching: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(watching, model_file(tmp_path))
    failing(monkeypatch, *method, error)
    follower = Follower(watching)
    follower.tick()
    assert [run["success"] for run in follower.runs] == [True, False]
    assert follower.tick() == [], "not before its time"
    verdict = follower.verdicts[KEY]
    assert (verdict.status, verdict.tries) == ("waiting", 1) and str(error) in verdict.why
    assert "next try at" in follower.skipped and KEY in follower.skipped
    assert tags_of(watching)["verdict"] == "waiting" and tags_of(watching)["next_try"].endswith("UTC")
    # A cursor that is lost loses nothing of this.
    follower.cursor = None
    assert follower.tick() == []
    at_once(watching, follower, KEY)
    follower.follow()
    assert follower.verdicts[KEY].status == "passed"
    assert tags_of(watching)["verdict"] == "passed" and "next_try" not in tags_of(watching)


def test_a_registry_that_is_away_at_a_look_loses_no_version(
    watching: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(watching, model_file(tmp_path))
    failing(monkeypatch, Tracking, "registered_versions", AWAY)
    follower = Follower(watching)
    assert follower.tick(start=False) == [] and "is found when it is back" in follower.skipped
    assert versions_command() == (2, "")
    assert follower.partitions == [] and follower.tick(start=False)
    assert follower.partitions == [KEY] and follower.verdicts[KEY].status == "waiting"
    assert versions_command() == (3, f"waiting  {KEY} (next try at once)\n")


def test_a_run_that_was_killed_is_tried_again_after_a_pause(watching: Lab, tmp_path: Path) -> None:
    register(watching, model_file(tmp_path))
    follower = Follower(watching)
    asked = follower.tick(start=False)
    for request in asked:
        run = follower.begin(request)
        assert follower.tick(start=False) != asked
        follower.kill(run)
    assert follower.tick(start=False) == []
    verdict = follower.verdicts[KEY]
    assert (verdict.status, verdict.tries) == ("waiting", 1) and "from outside" in verdict.why


def test_what_a_run_makes_possible_begins_as_it_ends_and_not_at_the_next_look(watching: Lab, tmp_path: Path) -> None:
    assert watching.run("attack_config", "weak", "weak").success
    register(watching, model_file(tmp_path))
    follower = Follower(watching)
    (request,) = follower.tick(start=False)
    run = follower.begin(request)
    follower.patience, begun = 0.5, time.monotonic()
    assert follower.tick(start=False) == [] and time.monotonic() - begun > 0.5
    assert follower.verdicts[KEY].tries == 0, "no run has ended"
    follower.patience = 60
    ending = threading.Timer(1, lambda: follower.kill(run))
    ending.start()
    assert follower.tick(start=False) == [] and follower.verdicts[KEY].tries == 1, "seen in the very look"
    ending.join()
    assert follower.tick(start=False) == [] and time.monotonic() - begun < 60, "nothing is at work"


def test_another_model_under_the_same_number_is_another_version(watching: Lab, tmp_path: Path) -> None:
    register(watching, model_file(tmp_path))
    follower = Follower(watching)
    follower.follow()
    first, before = follower.verdicts[KEY], metrics(watching, KEY)
    client(watching).delete_registered_model("team_le_net")
    register(watching, model_file(tmp_path, tilt=0.5))
    follower.tick(start=False)
    assert follower.verdicts[KEY].status == "waiting"
    assert watching.find("registered_model/evasion_metrics", architecture=KEY, attack="weak") is None
    with pytest.raises(LookupError, match="no registered model has been attacked"):
        da.versions("tiny")
    follower.follow()
    second, after = follower.verdicts[KEY], metrics(watching, KEY)
    assert (first.status, second.status) == ("passed", "failed") and first.digest != second.digest
    assert after["robust_accuracy"].item() < before["robust_accuracy"].item() - 0.1
    assert tags_of(watching)["digest"] == second.digest


def test_the_same_bytes_under_another_number_are_not_attacked_again(
    watching: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = model_file(tmp_path)
    register(watching, path)
    follower = Follower(watching)
    follower.follow()
    with monkeypatch.context() as patched:
        patched.setattr(adversarial_sets, "perturb_set", None)
        second = register(watching, path)
        follower.follow()
    numbers = [column for column in metrics(watching, KEY) if column not in ("source", "target")]
    pd.testing.assert_frame_equal(metrics(watching, KEY)[numbers], metrics(watching, second)[numbers], check_exact=True)
    assert list(metrics(watching, second)["target"]) == [second]
    images = [
        da.load("tiny/registered_model/adversarial_set", architecture=key, attack="weak").images(np.arange(5))
        for key in (KEY, second)
    ]
    assert np.array_equal(*images)
    assert follower.verdicts[KEY].digest == follower.verdicts[second].digest


def test_an_edited_attack_is_asked_for_at_the_next_look(watching: Lab, tmp_path: Path) -> None:
    register(watching, model_file(tmp_path))
    follower = Follower(watching)
    follower.follow()
    watching.write({**ONE_ATTACK, "attacks": {"weak": {"method": "fgm", "eps": 0.02}}})
    (config,) = follower.tick()
    assert [key.path[-1] for key in config.asset_selection or []] == ["attack_config"]
    assert follower.verdicts[KEY].status == "waiting"
    (cells,) = follower.tick()
    assert next(key.path[-1] for key in cells.asset_selection or []) == "adversarial_set"
    follower.follow()
    assert follower.verdicts[KEY].status == "passed"


def test_the_partition_of_a_deleted_version_goes_and_no_other(watching: Lab, tmp_path: Path) -> None:
    path = model_file(tmp_path)
    for _ in range(2):
        register(watching, path)
    follower = Follower(watching)
    follower.follow()
    client(watching).delete_model_version("team_le_net", "1")
    assert follower.tick() == [] and follower.partitions == ["team_le_net@2"]
    assert list(da.versions("tiny")["version"]) == [2]


def test_a_person_may_give_up_on_a_version_and_come_back_to_it(watching: Lab, tmp_path: Path) -> None:
    register(watching, model_file(tmp_path))
    client(watching).set_model_version_tag("team_le_net", "1", "dioptra_assets.give_up", "no time")
    follower = Follower(watching)
    assert follower.tick() == []
    assert follower.verdicts[KEY].sentence.startswith("not judged (given up by a person")
    client(watching).delete_model_version_tag("team_le_net", "1", "dioptra_assets.give_up")
    assert follower.tick(start=False)


class Hook:
    """A webhook on this machine.

    Attributes:
        texts: what it was sent.
        status: what it answers.
    """

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.status = 200
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                assert self.headers["Content-Type"] == "application/json"
                if hook.status == 200:
                    hook.texts.append(json.loads(body)["text"])
                self.send_response(hook.status)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/services/T000/B000/s3cr3t"


@pytest.fixture
def hook() -> Iterator[Hook]:
    made = Hook()
    thread = threading.Thread(target=made.server.serve_forever)
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join()


def everything_written(lab: Lab) -> bytes:
    """Every byte below a home: databases, logs, stored assets."""
    return b"".join(path.read_bytes() for path in lab.home.rglob("*") if path.is_file())


@contextmanager
def no_pause(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patched:
        patched.setattr("dioptra_assets.registered_versions.announcing.pause", lambda tries: -1)
        yield


def test_a_webhook_is_told_once_of_a_version_that_failed(
    watching: Lab, tmp_path: Path, hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEAM_WEBHOOK", hook.url)
    watching.write({**ONE_ATTACK, "notify": {"env": "TEAM_WEBHOOK"}})
    register(watching, model_file(tmp_path))
    bad = register(watching, model_file(tmp_path, tilt=0.5))
    hook.status = 503
    follower = Follower(watching)
    with no_pause(monkeypatch):
        follower.follow()
        assert hook.texts == [] and json.loads(str(follower.cursor))["tries"] >= 1
        hook.status = 200
        follower.cursor = None
        follower.tick()
        follower.cursor = None
        follower.tick()
    (text,) = hook.texts
    assert bad in text and "failed" in text and "robust_accuracy" in text and KEY not in text
    assert "robust_accuracy &gt;= 0.7" in text, "what Slack takes for mark-up is escaped"
    assert b"s3cr3t" not in everything_written(watching)


def test_a_webhook_that_is_not_there_is_named_without_its_secret(watching: Lab, tmp_path: Path) -> None:
    from partitions.notify import Notify
    from resources.webhook import WebhookError, post

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/s3cr3t"
    with pytest.raises(WebhookError, match=r"the webhook at 127\.0\.0\.1 did not answer") as caught:
        post(url, "text")
    assert caught.value.__cause__ is None and "s3cr3t" not in repr(caught.value)
    assert "s3cr3t" not in repr(Notify.model_validate({"url": url}))


def test_a_thousand_versions_are_looked_at_within_a_tick(watching: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    attacks = {f"attack_{number}": {"method": "fgm", "eps": number / 100} for number in range(1, 21)}
    watching.write({**ONE_ATTACK, "attacks": attacks})
    facts = {"name": "team_le_net", "tags": {"candidate": "yes"}, "description": ""}
    versions: Any = [SimpleNamespace(version=str(n), creation_timestamp=n, **facts) for n in range(1, 1001)]
    monkeypatch.setattr(Tracking, "registered_versions", lambda self: versions)
    monkeypatch.setattr(Tracking, "mark_version", lambda *arguments: None)
    follower = Follower(watching)
    for partitions in (0, 1000):  # at the first look none is a partition yet
        assert len(follower.partitions) == partitions
        started = time.process_time()
        asked = follower.tick(start=False)
        assert time.process_time() - started < 30, "a sensor has a minute"
        ranges = [one.tags["dagster/asset_partition_range_end"] for one in asked]
        assert ranges == ["attack_20", "team_le_net@100"], "one run of each kind at once, of a hundred versions"
    assert {one.status for one in follower.verdicts.values()} == {"waiting"} and len(follower.verdicts) == 1000


def test_a_thousand_versions_under_twenty_attacks_are_runs_that_a_page_shows() -> None:
    versions = [f"team_le_net@{number}" for number in range(1, 1001)]
    attacks = [f"attack_{number}" for number in range(20)]
    model, cells = dg.AssetKey("model"), dg.AssetKey("adversarial_set")
    dimensions = {model: (ARCHITECTURE,), cells: (ARCHITECTURE, ATTACK)}
    inputs: dict[dg.AssetKey, list[dg.AssetKey]] = {model: [], cells: [model]}
    models = {Cell("model", {ARCHITECTURE: version}) for version in versions}
    attacked = {Cell("adversarial_set", {ARCHITECTURE: v, ATTACK: a}) for v in versions for a in attacks}
    first = list(runs(Todo(dimensions, inputs, {model: models, cells: attacked}), versions, attacks))
    assert {one.assets for one in first} == {(model,)}, "no set before its model"
    second = list(runs(Todo(dimensions, inputs, {model: set(), cells: attacked}), versions, attacks))
    assert len(first) + len(second) == 20
    assert sum(len(one.cells) for one in second) == 20_000
