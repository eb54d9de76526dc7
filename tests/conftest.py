"""One small experiment, materialized once a test session, and copies of it that a test may do anything with."""

import contextlib
import functools
import hashlib
import importlib
import io
import json
import os
import shutil
import socket
import sys
import tempfile
import uuid
import warnings
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pytest
import yaml
from alembic.config import Config
from alembic.script import ScriptDirectory
from filelock import FileLock

from dioptra_assets.dagster_internals import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    CachingStaleStatusResolver,
    InstanceRef,
)
from dioptra_assets.robustness.training import loop
from dioptra_assets.runs.launch import Launched, materialize_experiment
from dioptra_assets.runs.staleness import stale_cells
from dioptra_assets.runs.step_output import to_the_log_alone
from resources.store import Cell, CellStore
from resources.tables import read_table
from tests.dagster_internals import LoadingContextForTest, _current_storage

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Tests copy homes from project to project; whose an experiment is has tests of its own.
os.environ["DIOPTRA_ASSETS_OWNER"] = "tests"

ROOT = Path(__file__).resolve().parent.parent
# What would lead a test to a home that is not its own.
SETTINGS = (
    "DAGSTER_HOME",
    "DIOPTRA_ASSETS_STORE",
    "DIOPTRA_ASSETS_MLFLOW_UI",
    "DIOPTRA_ASSETS_EXECUTOR",
    "DIOPTRA_ASSETS_SERVER",
    "DIOPTRA_ASSETS_UI_HOSTS",
    "DIOPTRA_ASSETS_UI_TOKEN",
    "DIOPTRA_ASSETS_UI_VIEWERS",
    "MLFLOW_TRACKING_TOKEN",
    "MLFLOW_TRACKING_URI",
)

EXPERIMENT: Mapping[str, Any] = {
    "description": "Digits, small enough for a test.",
    "seed": 7,
    "owners": ["team:tests"],
    "data": {"source": "digits", "image_size": [16, 16], "test_fraction": 0.1},
    "architectures": {
        "shallow_net": {"epochs": 3},
        "le_net": {"epochs": 1, "model_tag": "small"},
    },
    "attacks": {"fgm": {"eps": [0.1, 0.3]}, "weak": {"method": "fgm", "eps": 0.05}},
    "log_sets": True,
}
ARCHITECTURES = ("shallow_net", "le_net")
ATTACKS = ("fgm_0.1", "fgm_0.3", "weak")
CELLS = 2 + 3 + 2 + 2 + 2 + 2 + 3 * len(ARCHITECTURES) * len(ATTACKS) + 4


# Type that the UI shows -> what pandas makes of the stored column; a whole number beside an empty place is a float.
STORED_AS = {
    "string": {"string", "empty"},
    "bool": {"boolean", "empty"},
    "int": {"integer", "integer-na", "floating", "empty"},
    "float": {"floating", "integer", "mixed-integer-float", "empty"},
    "list[float]": {"mixed", "empty"},
    "timestamp": {"datetime64", "datetime"},
}


@dataclass(frozen=True)
class Lab:
    """A project with one experiment, `tiny`, and a home of its own.

    Attributes:
        folder: the root of the project; what Dagster, the store and MLflow keep is in its folder `home`.
    """

    folder: Path

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def store(self) -> CellStore:
        return CellStore(str(self.home / "store"))

    @property
    def module(self) -> str:
        """The name of the project's package: another for each lab, since Python imports a name once."""
        return next(path.name for path in self.folder.glob("lab_*"))

    def write(self, attributes: Mapping[str, Any], name: str = "tiny") -> Path:
        """Write an experiment file."""
        document = {"type": "dioptra_assets.experiment.Experiment", "attributes": json.loads(json.dumps(attributes))}
        return self.write_text(yaml.safe_dump(document, sort_keys=False), name)

    def write_text(self, text: str, name: str = "tiny") -> Path:
        path = self.folder / self.module / "defs" / name / "defs.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def defs(self) -> dg.Definitions:
        """The code location, read anew from the experiment files."""
        if str(self.folder) not in sys.path:
            sys.path.insert(0, str(self.folder))
        importlib.invalidate_caches()
        module = importlib.import_module(f"{self.module}.definitions")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return module.defs()

    @contextmanager
    def instance(self) -> Iterator[dg.DagsterInstance]:
        with dg.DagsterInstance.from_ref(InstanceRef.from_dir(str(self.home))) as instance:
            yield instance

    def materialize(self) -> Launched:
        """Compute what is missing or stale of the experiment."""
        self.mlflow()
        with self.instance() as instance:
            module = f"{self.module}.definitions"
            self.statuses()
            launched = materialize_experiment(self.defs(), "tiny", instance=instance, store=self.store, module=module)
        self.statuses()
        return launched

    def mlflow(self) -> str:
        """Where the MLflow of this home is; a database that is not there is copied from one that was made once."""
        database = self.home / "mlflow" / "mlflow.db"
        if not database.exists():
            database.parent.mkdir(exist_ok=True)
            database.write_bytes(empty_mlflow_database())
        return f"sqlite:///{database}"

    def run(self, asset: str, *partitions: str) -> dg.ExecuteInProcessResult:
        """One run of one asset, over a range of partitions where two are given."""
        names = (ASSET_PARTITION_RANGE_START_TAG, ASSET_PARTITION_RANGE_END_TAG)
        tags: dict[str, str] = dict(zip(names, partitions, strict=True)) if len(partitions) == 2 else {}
        self.mlflow()
        with self.instance() as instance:
            return (
                self.defs()
                .resolve_implicit_global_asset_job_def()
                .execute_in_process(
                    asset_selection=[dg.AssetKey(["tiny", *asset.split("/")])],
                    partition_key=partitions[0] if len(partitions) == 1 else None,
                    tags=tags,
                    instance=instance,
                    raise_on_error=False,
                    run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
                )
            )

    def statuses(self) -> dict[str, str]:
        """Path of every cell of the experiment -> what Dagster says of it: FRESH, STALE or MISSING.

        On the way, that our own answer for all cells at once is Dagster's for each.
        """
        graph = self.defs().resolve_asset_graph()
        with self.instance() as instance:
            resolver = CachingStaleStatusResolver(instance, graph, LoadingContextForTest(instance))
            statuses = {}
            for key in graph.get_all_asset_keys():
                definition = graph.get(key).partitions_def
                partitions = definition.get_partition_keys() if definition else [None]
                asked = {partition: resolver.get_status(key, partition).value for partition in partitions}
                ours = stale_cells(graph, key, partitions, instance)
                assert ours == {partition for partition, status in asked.items() if status != "FRESH"}, key
                for partition, status in asked.items():
                    statuses["/".join([*key.path, *(partition.split("|") if partition else [])])] = status
        return statuses

    def events(self, asset: str) -> list[dg.EventLogEntry]:
        """The materializations of an asset, oldest first."""
        with self.instance() as instance:
            key = dg.AssetKey(["tiny", *asset.split("/")])
            records = instance.fetch_materializations(key, limit=1000, ascending=True).records
        return [record.event_log_entry for record in records]

    def find(self, asset: str, **partition: str) -> Any:
        """What the store serves of a cell, or None."""
        return self.store.find(Cell(f"tiny/{asset}", partition))

    def columns_of_another_type(self) -> tuple[list[str], int]:
        """The columns of stored tables that the UI shows another type of, and how many were compared."""
        graph = self.defs().resolve_asset_graph()
        wrong, compared = [], 0
        for cell in self.store.cells("tiny"):
            node = graph.get(dg.AssetKey(cell.asset.split("/")))
            schema = node.metadata.get("dagster/column_schema")
            if schema:
                table = read_table(self.store.open(cell))
                for column in schema.columns:
                    if column.name in table:
                        kind = pd.api.types.infer_dtype(table[column.name], skipna=True)
                        compared += kind != "empty"
                        if kind not in STORED_AS[column.type]:
                            wrong.append(f"{cell.asset}: {column.name}, shown as {column.type}, is {kind}")
        return wrong, compared

    def bytes(self) -> dict[str, str]:
        """Path -> digest of everything in the store but whose an experiment is."""
        files = sorted(path for path in (self.home / "store").rglob("*") if path.is_file())
        files = [path for path in files if path.parent.name != "owners of experiments"]
        return {str(path.relative_to(self.home)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    def break_model(self, architecture: str) -> None:
        """Cut the last byte off a stored model."""
        stored = self.find("model", architecture=architecture)
        path = self.home / "store" / stored.prefix / "model.keras"
        path.write_bytes(path.read_bytes()[:-1])


def skeleton(folder: Path) -> Lab:
    """A project without an experiment, as a user would lay it out."""
    name = f"lab_{uuid.uuid4().hex[:8]}"
    (folder / name / "defs").mkdir(parents=True)
    (folder / "home").mkdir()
    shutil.copy(ROOT / "dagster.yaml", folder / "home")
    (folder / name / "__init__.py").touch()
    (folder / name / "defs" / "__init__.py").touch()
    (folder / name / "definitions.py").write_text(CODE_LOCATION)
    (folder / "pyproject.toml").write_text(PROJECT.replace("NAME", name))
    return Lab(folder)


@functools.cache
def empty_mlflow_database() -> bytes:
    """What MLflow takes seconds to make in a new home, made once a process."""
    from mlflow.tracking import MlflowClient

    # What MLflow says of it is nothing that a test has done.
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        MlflowClient(f"sqlite:///{folder}/mlflow.db").search_experiments()
        return Path(folder, "mlflow.db").read_bytes()


CODE_LOCATION = """
from pathlib import Path

import dagster as dg

from dioptra_assets.definitions import code_location


@dg.definitions
def defs():
    return code_location(Path(__file__).parent)
"""
PROJECT = """
[tool.dg]
directory_type = "project"

[tool.dg.project]
root_module = "NAME"
code_location_name = "NAME"
code_location_target_module = "NAME.definitions"
registry_modules = ["dioptra_assets.experiment"]

[tool.dg.cli]
suppress_warnings = ["project_and_activated_venv_mismatch"]
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, so that no process ends with one; those that share an experiment after one that makes it."""
    sharing = [item.path for item in items if "finished" in getattr(item, "fixturenames", ())]
    long = {item.path for item in items if item.get_closest_marker("quick") is None}
    items.sort(key=lambda item: (item.path not in long, item.path in sharing and item.path != sharing[0]))


@pytest.fixture(scope="session", autouse=True)
def no_mirrors() -> Iterator[None]:
    """As a launch does it: Dagster would start two processes a step, to mirror what the step writes."""
    with to_the_log_alone():
        yield


@pytest.fixture(scope="session", autouse=True)
def migrations_read_once() -> Iterator[None]:
    """Dagster and MLflow read all their migrations anew for each database that they open, to see that none is due."""
    read: Any = ScriptDirectory.from_config
    kept: dict[tuple[str | None, str | None], ScriptDirectory] = {}

    def from_config(config: Config) -> ScriptDirectory:
        key = config.config_file_name, config.get_main_option("script_location")
        if key not in kept:
            kept[key] = read(config)
        return kept[key]

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(ScriptDirectory, "from_config", from_config)
        yield


@pytest.fixture(autouse=True)
def no_instance_of_before() -> Iterator[None]:
    """Dagster may keep the storage of an instance that is closed as the current one of the process."""
    yield
    _current_storage.set(None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, bool, bool]:
    """Hold what is marked `quick` to what the word says, fixtures too."""
    if item.get_closest_marker("quick") is None or item.get_closest_marker("heavy"):
        return (yield)
    with pytest.MonkeyPatch.context() as monkeypatch:
        for owner, name, what in (
            (loop, "train", "trains a model"),
            (dg.DagsterInstance, "create_run", "starts a Dagster run"),
            (socket.socket, "listen", "starts a server"),
        ):
            monkeypatch.setattr(owner, name, functools.partial(pytest.fail, f"marked quick, and it {what}"))
        return (yield)


def enter(monkeypatch: pytest.MonkeyPatch, lab: Lab) -> None:
    """Make a lab's home the home of everything in this process, and of what it starts."""
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DAGSTER_HOME", str(lab.home))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """The experiment, materialized from its data to its report. Look, do not touch: other tests read it too.

    Processes of one session share it: one makes it, the others wait.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    folder, done = shared / "finished", shared / "finished.json"
    with pytest.MonkeyPatch.context() as monkeypatch, FileLock(shared / "finished.lock"):
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            lab = skeleton(folder)
            enter(monkeypatch, lab)
            lab.write(EXPERIMENT)
            launched = lab.materialize()
            assert not launched.failed and not launched.skipped, launched
            done.write_text(json.dumps([cell.path for cell in launched.computed]))
    yield Lab(folder)


@pytest.fixture
def lab(finished: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """A copy of the materialized experiment, to be edited, damaged and run."""
    copy = skeleton(tmp_path / "project")
    shutil.copytree(finished.home, copy.home, dirs_exist_ok=True)
    copy.write(EXPERIMENT)
    enter(monkeypatch, copy)
    return copy


@pytest.fixture
def looking(finished: Lab, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """The materialized experiment as this process's home, not to be changed."""
    enter(monkeypatch, finished)
    return finished


@pytest.fixture
def blank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """A project whose experiment has been written and not run."""
    new = skeleton(tmp_path / "project")
    new.write(EXPERIMENT)
    enter(monkeypatch, new)
    return new
