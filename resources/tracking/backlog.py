"""What could not be logged to MLflow is kept beside the cells, and logged when MLflow is back.

A cell never waits for MLflow longer than one deadline, and never fails because of it. It logs at once where that is
possible; the remaining calls go to the store, in their order:

    mlflow-backlog/ID/...            files to upload
    mlflow-backlog/ID/entry.json     the run and its calls; written last

:func:`write_backlog` writes them to MLflow, from any user and any machine.
"""

import contextlib
import json
import tempfile
import time
import uuid
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import obstore

from resources.store import CellStore, StoreError
from resources.tracking.resource import Tracking, TrackingUnavailable
from resources.tracking.run import CellRun

FOLDER = "mlflow-backlog"  # no experiment can be called so
BACKLOG_TAG = "backlog"
WAITING = "waiting for MLflow"
# Larger files are not kept: the store holds the cell itself.
MOST_BYTES = 500 * 2**20
# Whoever began to write an entry so long ago was killed.
CLAIM_EXPIRES = timedelta(minutes=10)


class TrackedRun(CellRun):
    """The MLflow run of a cell, which keeps what MLflow does not accept now. Nothing here raises because of MLflow.

    Attributes:
        run_id: MLflow's id of the run; empty if none could be opened.
        why: why something has to wait; empty if nothing has to.
    """

    def __init__(self, tracking: Tracking, experiment: str, name: str, tags: Mapping[str, str]) -> None:
        self._entry: dict[str, Any] = {"experiment": experiment, "name": name, "tags": dict(tags), "start": _now()}
        self._calls: list[tuple[str, dict[str, Any]]] = []
        self._files: list[bytes] = []
        self._open_run: CellRun | None = None
        self._tracking = tracking
        self._non_finite: set[str] = set()
        self._model: str | None = None
        self.run_id = self.experiment_id = self.why = ""
        self.url = None
        with self._reaching():
            self._open_run = tracking.open_run(experiment, name, tags=tags)
            self.run_id, self.experiment_id = self._open_run.run_id, self._open_run.experiment_id
            self.url = self._open_run.url

    def log_params(self, params: Mapping[str, Any]) -> None:
        """See :meth:`CellRun.log_params`."""
        if params:
            self._say("log_params", params={name: str(value) for name, value in params.items()})

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """See :meth:`CellRun.log_tags`."""
        self._say("log_tags", tags={name: str(value) for name, value in tags.items()})

    def log_points(
        self,
        points: list[tuple[str, float, int]],
        at: int | None = None,
        *,
        tags: Mapping[str, Any] | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> None:
        """See :meth:`CellRun.log_points`."""
        plain = [(name, float(value), step) for name, value, step in points]
        told = {"tags": tags, "params": params}
        beside = {what: {name: str(value) for name, value in facts.items()} for what, facts in told.items() if facts}
        self._say("log_points", points=plain, at=at or _now(), **beside)

    def log_artifact(self, path: Path, artifact_path: str | None = None) -> None:
        """See :meth:`CellRun.log_artifact`."""
        self._say("log_artifact", path=path, artifact_path=artifact_path)

    def register_model(self, name: str, model_path: Path, tags: Mapping[str, str]) -> str:
        """See :meth:`CellRun.register_model`; the version is :data:`WAITING` where MLflow has to wait for it."""
        self.check_model(name, model_path)
        version = self._say("register_model", name=name, model_path=model_path, tags=dict(tags))
        self._model = name
        return str(version or WAITING)

    def close(self, status: str, store: CellStore) -> None:
        """End the run; what could not be logged goes to the store, also after an interrupt."""
        if not self.why and self._open_run:
            with self._reaching():
                self._tracking.end_run(self.run_id, status)
        if self.why:
            entry = {**self._entry, "run_id": self.run_id, "status": status, "end": _now(), "calls": self._calls}
            folder = f"{FOLDER}/{uuid.uuid4().hex}"
            for number, content in enumerate(self._files):
                store.put(f"{folder}/{number}", content)
            store.put(f"{folder}/entry.json", json.dumps(entry).encode())

    def _say(self, call: str, **arguments: Any) -> Any:
        if self._open_run and not self.why:
            with self._reaching():
                return getattr(self._open_run, call)(**arguments)
        for name in ("path", "model_path"):
            if isinstance(path := arguments.get(name), Path):
                # A folder, or what is too large to be kept twice, is in the store as a cell already.
                if not path.is_file() or path.stat().st_size > MOST_BYTES:
                    return None
                arguments[name] = {"file": len(self._files), "name": path.name}
                self._files.append(path.read_bytes())
        self._calls.append((call, arguments))
        return None

    @contextmanager
    def _reaching(self) -> Generator[None]:
        try:
            yield
        except TrackingUnavailable as error:
            self.why = str(error)


@contextmanager
def tracked_run(
    tracking: Tracking,
    store: CellStore,
    experiment: str,
    name: str,
    *,
    tags: Mapping[str, str],
    params: Mapping[str, Any],
    log: Callable[[str], None],
) -> Generator[TrackedRun]:
    """The MLflow run of a cell, closed whatever happens in the body: FINISHED, FAILED, or KILLED on an interrupt.

    Args:
        tracking: MLflow.
        store: keeps what cannot be logged now.
        experiment: name of the MLflow experiment.
        name: shown as the name of the run.
        tags: of the run.
        params: of the run.
        log: called with a line if something has to wait.
    """
    run = TrackedRun(tracking, experiment, name, tags)
    status = "FINISHED"
    try:
        run.log_params(params)
        yield run
    except BaseException as error:
        status = "FAILED" if isinstance(error, Exception) else "KILLED"
        raise
    finally:
        try:
            run.close(status, store)
            if run.why:
                log(f"{name} is not logged to MLflow yet, its record waits in {store.url}/{FOLDER}: {run.why}")
        except StoreError as error:
            log(f"{name} is not logged to MLflow: {run.why}; nor could it be kept: {error}")


# Tags of the entry, run id, and the address of its page.
WrittenRun = tuple[dict[str, str], str, str | None]


@dataclass
class Written:
    """What :func:`write_backlog` did.

    Attributes:
        runs: the MLflow run that each entry was written to.
        waiting: how many entries still wait.
        why: why they do; empty if none does.
    """

    runs: list[WrittenRun] = field(default_factory=list[WrittenRun])
    waiting: int = 0
    why: str = ""


def write_backlog(tracking: Tracking, store: CellStore) -> Written:
    """Log to MLflow what waits, the oldest first; stops at the first entry that MLflow does not accept.

    An interrupted entry is resumed: its run is found by its tag, and repeating a call has no further effect. Two
    processes at once do not write an entry twice.

    Raises:
        StoreError: the store cannot be read.
    """
    entries = [path.rpartition("/")[0] for path in store.sizes(FOLDER) if path.endswith("/entry.json")]
    contents = {entry: _content(store, entry) for entry in entries}
    done = Written(waiting=len(entries))
    for entry in sorted(entries, key=lambda entry: contents[entry].get("start", 0)):
        if not _claimed(store, entry):
            continue  # another process is at it
        try:
            if content := _content(store, entry):  # and was not done with it before the claim
                run = _write(tracking, store, entry, content)
                _remove(store, [*store.sizes(f"{FOLDER}/{entry}")], entry)
                done.runs.append((content["tags"], run.run_id, run.url))
            done.waiting -= 1
        except TrackingUnavailable as error:
            done.why = str(error)
            break
        finally:
            _remove(store, ["claim"], entry)
    return done


def copy_backlog(store: CellStore, other: CellStore) -> None:
    """Copy what waits for MLflow to another store; each `entry.json` is written last, as in the original."""
    paths = [f"{FOLDER}/{name}" for name in store.sizes(FOLDER) if not name.endswith("/claim")]
    for path in sorted(paths, key=lambda path: path.endswith("/entry.json")):
        if (content := store.get(path)) is not None:  # else it was logged in the meantime
            other.put(path, content)


def _content(store: CellStore, entry: str) -> dict[str, Any]:
    return json.loads(store.get(f"{FOLDER}/{entry}/entry.json") or b"{}")


def _remove(store: CellStore, names: list[str], entry: str) -> None:
    """Remove files of an entry: `entry.json` after the files to upload, the claim last."""
    for name in sorted(names, key=lambda name: (name == "claim", name == "entry.json")):
        with contextlib.suppress(FileNotFoundError):
            obstore.delete(store.objects, f"{FOLDER}/{entry}/{name}")


def _claimed(store: CellStore, entry: str) -> bool:
    path = f"{FOLDER}/{entry}/claim"
    try:
        obstore.put(store.objects, path, b"", mode="create")
    except obstore.exceptions.AlreadyExistsError:
        try:
            made = obstore.head(store.objects, path)["last_modified"]
        except FileNotFoundError:
            return False
        if datetime.now(UTC) - made < CLAIM_EXPIRES:
            return False
        obstore.put(store.objects, path, b"")
    return True


def _write(tracking: Tracking, store: CellStore, entry: str, content: Mapping[str, Any]) -> CellRun:
    run_id = content["run_id"] or tracking.tagged_run(content["experiment"], BACKLOG_TAG, entry)
    tags = {**content["tags"], BACKLOG_TAG: entry}
    if run_id:
        run = tracking.known_run(run_id)
    else:
        run = tracking.open_run(content["experiment"], content["name"], tags=tags, start=content["start"])
    with tempfile.TemporaryDirectory() as folder:
        for call, arguments in content["calls"]:
            given = dict(arguments)
            for name in ("path", "model_path"):
                if isinstance(given.get(name), dict):
                    file: dict[str, Any] = given[name]
                    path = Path(folder, Path(file["name"]).name)
                    kept = store.get(f"{FOLDER}/{entry}/{file['file']}")
                    if kept is None:
                        break  # an earlier try was cut off while it tidied up: the file is in MLflow
                    path.write_bytes(kept)
                    given[name] = path
            else:
                if call != "register_model" or not tracking.has_version_of(given["name"], run.run_id):
                    getattr(run, call)(**given)
    tracking.end_run(run.run_id, content["status"], end=content["end"])
    return run


def _now() -> int:
    return int(time.time() * 1000)
