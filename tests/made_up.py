"""An experiment whose graph, store and Dagster instance are real, and whose models, attacks and pictures are made up.

Every action is a process of its own, forked from one that has imported everything: it may be killed anywhere, as a
user's may, and costs a second where training and attacking would cost a minute. What is made up follows from its inputs
alone, so that a value that was made of anything else is seen.
"""

import contextlib
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from resources.store import Cell, CellStore, Destination, StoredCell

ROOT = Path(__file__).resolve().parent.parent
NAME = "tiny"
# What every process needs: imported once, in the process that all are forked from.
NEEDED = [
    "tests.made_up",
    "dioptra_assets.definitions",
    "dioptra_assets.experiment",
    "dioptra_assets.robustness.training.loop",
    "resources.sqlite",
    "dagster._core.storage.local_compute_log_manager",
    "dagster._core.storage.root",
    "alembic.command",
    "alembic.autogenerate",
    "mako.template",
    "packageurl",
    "pyarrow.parquet",
    "pyarrow.dataset",
    "rich.traceback",
    "structlog",
    "upath.core",
    "watchdog.observers",
    "dagster._core.definitions.data_version",
    "mlcroissant",
    "cyclonedx.output",
    "sklearn.datasets",
    "sklearn.metrics",
    "sklearn.model_selection",
    "jinja2",
    "PIL.Image",
    "tabulate",
    "cv2",
    "dioptra_assets.robustness.reporting.plots",
    "dioptra_assets.records.croissant",
    "dioptra_assets.records.model_card",
]
NO_COMPUTE_LOGS = """
compute_logs:
  module: dagster._core.storage.noop_compute_log_manager
  class: NoOpComputeLogManager
"""
IMAGES = 24  # of each split


@dataclass(frozen=True)
class Kill:
    """Where a process ends, or is interrupted.

    Attributes:
        point: `put`, before something is written to the store; `written`, after it; `current`, before a pointer is;
            `published`, after it; `reported`, after Dagster has booked an event.
        number: which of them, from 0.
        signal: SIGKILL, or SIGINT as Ctrl-C gives it.
    """

    point: str
    number: int
    signal: int = signal.SIGKILL


POINTS: tuple[str, ...] = ("put", "written", "current", "published", "reported")


class EndedError(Exception):
    """The process was killed, as it was told to be."""


@dataclass(frozen=True)
class Home:
    """A home of the made-up experiment.

    Attributes:
        folder: what Dagster and the store keep, and the file of the experiment.
    """

    folder: Path

    @classmethod
    def new(cls, folder: Path) -> "Home":
        folder.mkdir(parents=True)
        # One database for all runs, where Dagster's default sets one up for each; and no files of what steps print.
        settings = (ROOT / "dagster.yaml").read_text() + NO_COMPUTE_LOGS
        (folder / "dagster.yaml").write_text(settings)
        return cls(folder)

    def copy(self, folder: Path) -> "Home":
        """The same home in another place."""
        shutil.copytree(self.folder, folder)
        return Home(folder)

    def write(self, attributes: Mapping[str, Any]) -> None:
        """Write the experiment's file."""
        (self.folder / "experiment.json").write_text(json.dumps(attributes))

    def mlflow(self, *, there: bool) -> None:
        """Give MLflow, or take it away."""
        away = self.folder / "mlflow_is_away"
        away.unlink(missing_ok=True) if there else away.touch()

    @contextlib.contextmanager
    def without_store(self) -> Iterator[None]:
        """The store is away: where it was, nothing can be opened."""
        store, away = self.folder / "store", self.folder / "store_that_is_away"
        store.mkdir(exist_ok=True)
        store.rename(away)
        store.write_text("nothing can be opened here")
        try:
            yield
        finally:
            store.unlink()
            away.rename(store)

    def materialize(self, kill: Kill | None = None) -> dict[str, Any]:
        """Compute what is missing or stale; paths by what became of them."""
        return _act(_materialize, self.folder, kill)

    def run(self, asset: str, partitions: tuple[str, ...] = (), kill: Kill | None = None) -> bool:
        """One run of one asset: of a cell, or of a range of them as a backfill takes it. Whether it succeeded."""
        return _act(_run, self.folder, kill, asset, partitions)

    def look(self) -> dict[str, Any]:
        """What Dagster says of every cell, and what the store serves of it."""
        return _act(_look, self.folder, None)


def _act(action: Callable[..., Any], folder: Path, kill: Kill | None, *arguments: Any) -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(NEEDED)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(sender, action, folder, kill, *arguments))
    process.start()
    sender.close()
    try:
        result = receiver.recv() if receiver.poll(240) else TimeoutError(f"{action.__name__} waited for ever")
    except EOFError:  # it ended without an answer
        process.join()
        if not kill or process.exitcode != -kill.signal:
            raise RuntimeError(f"{action.__name__} ended with {process.exitcode}, and nobody told it to") from None
        result = EndedError()
    if isinstance(result, TimeoutError):
        process.kill()
    process.join()
    if isinstance(result, BaseException):
        raise result
    return result


def _child(sender: Any, action: Callable[..., Any], folder: Path, kill: Kill | None, *arguments: Any) -> None:
    with (folder / "log.txt").open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    for name in [name for name in os.environ if name.startswith(("DIOPTRA_ASSETS_", "MLFLOW_"))]:
        del os.environ[name]
    os.environ["DAGSTER_HOME"] = str(folder)
    make_up(folder)
    if kill:
        _arm(kill)
    try:
        result = action(folder, *arguments)
        sender.send(result)
    except KeyboardInterrupt:
        sender.send(EndedError("interrupted") if kill and kill.signal == signal.SIGINT else RuntimeError("interrupted"))
    except BaseException as error:  # noqa: BLE001 - the test is to see whatever went wrong
        traceback.print_exc()
        sender.send(RuntimeError(f"{type(error).__name__}: {error}\n{traceback.format_exc()}"))


# ---- actions, in the forked process --------------------------------------------------------------------------------


def _definitions(folder: Path) -> Any:
    import dagster as dg

    from dioptra_assets.definitions import resource_definitions
    from dioptra_assets.experiment import experiment_assets
    from partitions.experiments import parse_experiment
    from resources.executors.choice import executor

    spec = parse_experiment(NAME, json.loads((folder / "experiment.json").read_text()))
    return dg.Definitions(assets=experiment_assets(spec), resources=resource_definitions(), executor=executor())


def _instance(folder: Path) -> Any:
    import dagster as dg

    from dioptra_assets.dagster_internals import InstanceRef

    return dg.DagsterInstance.from_ref(InstanceRef.from_dir(str(folder)))


def _materialize(folder: Path) -> dict[str, Any]:
    from dioptra_assets.runs.launch import materialize_experiment

    store = CellStore(str(folder / "store"))
    with _instance(folder) as instance:
        launched = materialize_experiment(_definitions(folder), NAME, instance=instance, store=store)
    return {
        "computed": [cell.path for cell in launched.computed],
        "failed": {cell.path: why for cell, why in launched.failed.items()},
        "skipped": [cell.path for cell in launched.skipped],
        "fresh": launched.fresh,
    }


def _run(folder: Path, asset: str, partitions: tuple[str, ...]) -> bool:
    import dagster as dg

    from dioptra_assets.dagster_internals import ASSET_PARTITION_RANGE_END_TAG, ASSET_PARTITION_RANGE_START_TAG

    ends = (ASSET_PARTITION_RANGE_START_TAG, ASSET_PARTITION_RANGE_END_TAG)
    with _instance(folder) as instance:
        job = _definitions(folder).resolve_implicit_global_asset_job_def()
        return job.execute_in_process(
            asset_selection=[dg.AssetKey([NAME, *asset.split("/")])],
            partition_key=partitions[0] if len(partitions) == 1 else None,
            tags=dict(zip(ends, partitions, strict=True)) if len(partitions) == 2 else {},
            instance=instance,
            raise_on_error=False,
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        ).success


def _look(folder: Path) -> dict[str, Any]:
    from dioptra_assets.assets.cell_context import DIMENSIONS
    from dioptra_assets.runs.staleness import stale_cells
    from partitions.keys import partition_of

    store, graph = CellStore(str(folder / "store")), _definitions(folder).resolve_asset_graph()
    stale, served = [], {}
    with _instance(folder) as instance:
        for key in graph.get_all_asset_keys():
            definition = graph.get(key).partitions_def
            keys = definition.get_partition_keys() if definition else [None]
            asset, dimensions = key.to_user_string(), tuple(graph.get(key).metadata[DIMENSIONS])
            stale += [
                Cell(asset, partition_of(dimensions, one)).path for one in stale_cells(graph, key, keys, instance)
            ]
            for one in keys:
                cell = Cell(asset, partition_of(dimensions, one))
                if stored := store.find(cell, check=True):
                    stored.verify()
                    served[cell.path] = {
                        "data_version": stored.manifest.data_version,
                        "attributes": stored.manifest.attributes,
                        "files": {name: record.sha256 for name, record in stored.manifest.files.items()},
                    }
        runs = {run.run_id: run.status.value for run in instance.get_runs() if not run.is_finished}
    report = store.find(Cell(f"{NAME}/report"))
    page = report.read("report.html").decode() if report else ""
    return {"stale": sorted(stale), "served": served, "unfinished": runs, "report": page}


def _arm(kill: Kill) -> None:
    """Have this process end at a point."""
    import dagster as dg

    counts: dict[str, int] = {str(point): 0 for point in POINTS}

    def passed(*points: str) -> None:
        for point in points:
            if point == kill.point and counts[point] == kill.number:
                os.kill(os.getpid(), kill.signal)
            counts[point] += 1

    put, booked = CellStore.put, dg.DagsterInstance.store_event

    def put_and_die(self: CellStore, path: str, content: bytes) -> None:
        pointer = path.endswith("/CURRENT")
        passed("put", *["current"] * pointer)
        put(self, path, content)
        passed("written", *["published"] * pointer)

    def book_and_die(self: dg.DagsterInstance, event: Any) -> None:
        booked(self, event)
        passed("reported")

    CellStore.put = put_and_die  # type: ignore[method-assign]
    dg.DagsterInstance.store_event = book_and_die  # type: ignore[method-assign]


# ---- what is made up -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MadeUpModel:
    """A model that is nothing but the digest of what it was made from."""

    digest: str

    def count_params(self) -> int:
        return 7


def digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def generator(*parts: Any) -> np.random.Generator:
    return np.random.default_rng(int(digest(*parts)[:16], 16))


def _pixels(image_set: Any) -> str:
    found = hashlib.sha256()
    for batch in image_set.batches(1024):
        found.update(np.ascontiguousarray(batch.images, np.float32).tobytes())
    return found.hexdigest()


def make_up(folder: Path) -> None:  # noqa: PLR0915 - a list of stubs
    """Put what is made up in the place of what costs time, in this process."""
    from dioptra_assets.robustness.attacks import perturb_set
    from dioptra_assets.robustness.attacks.base import AttackedBatch
    from dioptra_assets.robustness.data import DigitsSource
    from dioptra_assets.robustness.defences import defended_model
    from dioptra_assets.robustness.evaluation import predictions
    from dioptra_assets.robustness.evaluation.reference_attack import LOSSES, ReferenceAttacks
    from dioptra_assets.robustness.reporting import plots
    from dioptra_assets.robustness.training import loop
    from resources import compute, models
    from resources.tables import to_parquet
    from resources.tracking.resource import Tracking, TrackingUnavailable

    away = folder / "mlflow_is_away"

    def train(recipe: Any, training_set: Any, *, seed: int, **_: Any) -> loop.TrainedModel:
        if recipe.learning_rate > 1:
            raise RuntimeError("this one never learns")
        seed = seed if recipe.seed is None else recipe.seed
        model = MadeUpModel(digest("model", recipe.model_dump(mode="json"), _pixels(training_set), seed))
        epochs = range(1, int(recipe.epochs) + 1)
        history = pd.DataFrame({"epoch": epochs, "loss": [1 / epoch for epoch in epochs]})
        return loop.TrainedModel(model, history, seed, len(training_set), 0)  # type: ignore[arg-type]

    def write_model(
        destination: Destination,
        model: MadeUpModel,
        history: pd.DataFrame,
        *,
        attributes: Any = None,
    ) -> StoredCell:
        with destination.writer(models.KIND) as writer:
            writer.put(models.MODEL, model.digest.encode())
            writer.put(models.HISTORY, to_parquet(history))
            return writer.commit(model.digest, attributes or {})

    def read_model(stored: StoredCell) -> MadeUpModel:
        return MadeUpModel(stored.read(models.MODEL).decode())

    def behind(model: MadeUpModel, defence: Any, seed: int, *_: Any) -> MadeUpModel:
        return MadeUpModel(digest("behind", model.digest, defence.model_dump(mode="json"), seed))

    def predict(model: MadeUpModel, image_set: Any, **_: Any) -> pd.DataFrame:
        tables = []
        for batch in image_set.batches(1024):
            classes, rows = len(image_set.class_names), range(len(batch.index))
            draws = [generator(model.digest, batch.images[row].tobytes().hex()) for row in rows]
            logits = np.stack([draw.normal(size=classes) for draw in draws])
            logits[[*rows], batch.labels] += 1.5  # right more often than not
            tables.append(predictions._table(batch, logits))
        return pd.concat(tables, ignore_index=True)

    def attack(config: Any, model: MadeUpModel, image_set: Any, *, seed: int, **_: Any) -> Iterator[AttackedBatch]:
        # The seed of this attack changes no pixel, and its batches none either.
        document = config.model_dump(mode="json", exclude={"seed", "batch_size"})
        for batch in image_set.batches(1024):
            noise = generator(model.digest, document).choice([-1, 1], size=batch.images.shape)
            count = len(batch.index)
            index = batch.index.assign(
                target_class=config.targets(batch.labels, 10),
                queries=np.ones(count, np.int64),
                zero_gradient=np.zeros(count, bool),
            )
            yield AttackedBatch(np.clip(batch.images + config.eps * noise, 0, 1).astype(np.float32), index)

    def load(source: Any, split: str, real: Any = DigitsSource.load) -> Any:
        return _first(real(source, split))

    def right_under_another_loss(reference: Any, attack: Any) -> pd.DataFrame:
        image_ids = reference._images.index["image_id"].to_numpy()
        drawn = generator(reference._model.digest, attack.model_dump(mode="json")).random(len(image_ids)) < 0.99
        return pd.DataFrame({"image_id": image_ids} | dict.fromkeys(LOSSES, drawn))

    def of_mlflow(answer: Any) -> Callable[..., Any]:
        def asked(*_: Any, **__: Any) -> Any:
            if away.exists():
                raise TrackingUnavailable("MLflow is away")
            return answer

        return asked

    _replace(loop.train, train)
    _replace(models.write_model, write_model)
    _replace(models.read_model, read_model)
    _replace(predictions.predict, predict)
    _replace(perturb_set, attack)
    _replace(defended_model, behind)
    _replace(compute.prepare_device, lambda: "CPU")
    DigitsSource.load = load  # type: ignore[method-assign,assignment]
    ReferenceAttacks.right = right_under_another_loss  # type: ignore[method-assign]
    run = MadeUpRun(away)
    for name, answer in {
        "open_run": run,
        "known_run": run,
        "end_run": None,
        "tagged_run": "",
        "has_version_of": False,
    }.items():
        setattr(Tracking, name, of_mlflow(answer))
    for name, value in list(vars(plots).items()):
        if callable(value) and getattr(value, "__module__", "") == plots.__name__ and not name.startswith("_"):
            _replace(value, _plot)


def _first(image_set: Any) -> Any:
    from dioptra_assets.robustness.image_set import ImageSet

    rows = np.arange(IMAGES)
    index = image_set.index.iloc[:IMAGES]
    return ImageSet.from_arrays(
        image_set.images(rows),
        index["label"].to_numpy(),
        image_set.class_names,
        image_ids=index["image_id"].tolist(),
        name=image_set.name,
    )


def _plot(*shown: Any, **more: Any) -> bytes:
    from dioptra_assets.robustness.image_set import encode_png

    told = [one.to_csv() if isinstance(one, pd.DataFrame) else np.asarray(one).tolist() for one in shown]
    pixels = np.frombuffer(bytes.fromhex(digest(told, str(more))), np.uint8)
    return encode_png(pixels.reshape(4, 8, 1).astype(np.float32) / 255)


class MadeUpRun:
    """An MLflow run that takes everything, until MLflow goes away."""

    url, experiment_id, run_id = None, "1", "made up"

    def __init__(self, away: Path):
        self._away = away

    def __getattr__(self, name: str) -> Callable[..., str]:
        from resources.tracking.resource import TrackingUnavailable

        if self._away.exists():
            raise TrackingUnavailable("MLflow is away")
        return lambda *_, **__: "1"


def _replace(original: Any, stub: Any) -> None:
    """Put a stub in the place of a function in every module that knows it."""
    for module in [*sys.modules.values()]:
        if getattr(module, "__name__", "").startswith(("dioptra_assets", "resources")):
            for name, value in list(vars(module).items()):
                if value is original:
                    setattr(module, name, stub)
