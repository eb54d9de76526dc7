"""Registering models as strangers do, and following them as Dagster's daemon does."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from dioptra_assets.automation import sensors
from dioptra_assets.definitions import resource_definitions
from dioptra_assets.registered_versions.verdicts import Verdict, events_of, verdicts_of
from dioptra_assets.robustness.model_files import trial
from dioptra_assets.runs.launch import reasons_in
from partitions.experiments import BRANCH
from resources.tracking.client import file_sha256
from tests.conftest import Lab

SIDE = 8
# Nothing is trained: the models that are registered are made here, in a moment.
WATCHED: Mapping[str, Any] = {
    "seed": 7,
    "data": {"source": "digits", "image_size": [SIDE, SIDE], "test_fraction": 0.05},
    "attacks": {"fgm": {"eps": 0.3}, "weak": {"method": "fgm", "eps": 0.01}},
    "watch": {"name": "team_*", "tag": "candidate"},
    "gates": ["robust_accuracy >= 0.7 for weak", {"rule": "robust_accuracy >= 0.99 for fgm", "severity": "warn"}],
}
ONE_ATTACK: Mapping[str, Any] = {
    **WATCHED,
    "attacks": {"weak": {"method": "fgm", "eps": 0.01}},
    "gates": ["robust_accuracy >= 0.7"],
}
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


def client(lab: Lab) -> Any:
    """A client of a lab's MLflow."""
    from mlflow.tracking import MlflowClient

    return MlflowClient(lab.mlflow())


def register(lab: Lab, path: Path, name: str = "team_le_net", tags: dict[str, str] | None = None) -> str:
    """Register a file as a stranger would: a run, an artefact and a version, none of them by this project."""
    trial.known.add(file_sha256(path))  # a trial starts TensorFlow in a process of its own
    mlflow = client(lab)
    run = mlflow.create_run("0")
    mlflow.log_artifact(run.info.run_id, str(path), "data")
    if not [model for model in mlflow.search_registered_models() if model.name == name]:
        mlflow.create_registered_model(name)
    tags = {"candidate": "yes"} if tags is None else tags
    version = mlflow.create_model_version(name, f"{run.info.artifact_uri}/data", run.info.run_id, tags=tags)
    return f"{name}@{version.version}"


def classifier(tilt: float = 0.0) -> Any:
    """A linear model of the digits, right on nine images in ten; the more it is tilted, the less so."""
    import keras
    import numpy as np
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    images, ten = digits.data / 16, np.eye(10)
    weights = np.linalg.lstsq(np.c_[images, np.ones(len(images))], ten[digits.target] - 0.1, rcond=1e-2)[0]
    model = keras.Sequential([keras.Input((SIDE, SIDE, 1)), keras.layers.Flatten(), keras.layers.Dense(10)])
    noise = np.random.default_rng(1).normal(size=(64, 10)) * tilt
    model.set_weights([weights[:-1] + noise, weights[-1]])
    return model


def model_file(folder: Path, change: Callable[[Any], Any] = lambda model: model, tilt: float = 0.0) -> Path:
    """The model as a file, changed."""
    path = folder / "model.keras"
    change(classifier(tilt)).save(path)
    return path


def failing(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, error: Exception) -> None:
    """Let a method fail once before it works."""
    real, left = getattr(owner, name), [1]

    def method(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if left[0] >= 0:
            raise error
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, method)


def spec_of(lab: Lab) -> Any:
    from dioptra_assets.definitions import experiment_spec

    return experiment_spec("tiny", lab.folder / lab.module)


def at_once(lab: Lab, follower: "Follower", key: str) -> None:
    """The pause before the next try is over."""
    over = follower.verdicts[key].model_copy(update={"next_try": 0})
    with lab.instance() as instance:
        for event in events_of(spec_of(lab), key, over, {}):
            instance.report_runless_asset_event(event)


class Follower:
    """Looks at the registry tick by tick, does what the sensor asks for as Dagster's daemon would, and keeps count.

    Attributes:
        runs: assets and cells of every run that was started, and why it failed.
        skipped: what the last tick said instead.
        cursor: of the sensor.
        patience: seconds that a look waits for a run to end; those of tests end before a look, or not at all.
    """

    def __init__(self, lab: Lab):
        self.patience = 0.0
        self.lab = lab
        self.runs: list[dict[str, Any]] = []
        self.skipped = ""
        self.cursor: str | None = None

    def tick(self, *, start: bool = True) -> list[dg.RunRequest]:
        """One look; runs that it asks for are done at once, where they are started."""
        definitions = self.lab.defs()
        sensor = definitions.resolve_sensor_def("tiny_registered_models")
        resources = {name: one for name, one in resource_definitions().items() if name != "mlflow"}
        with self.lab.instance() as instance:
            with (
                dg.build_sensor_context(
                    instance, cursor=self.cursor, definitions=definitions, resources=resources
                ) as context,
                pytest.MonkeyPatch.context() as patched,
            ):
                patched.setattr(sensors, "PATIENCE_SECONDS", self.patience)
                data = sensor.evaluate_tick(context)
            self.cursor, self.skipped = data.cursor, str(data.skip_message or "")
            for request in data.dynamic_partitions_requests or []:
                if isinstance(request, dg.AddDynamicPartitionsRequest):
                    instance.add_dynamic_partitions(request.partitions_def_name, list(request.partition_keys))
                else:
                    for key in request.partition_keys:
                        instance.delete_dynamic_partition(request.partitions_def_name, key)
            for event in data.asset_events:
                instance.report_runless_asset_event(event)
            requests = list(data.run_requests or [])
            for request in requests if start else []:
                self._run(definitions, instance, request)
        return requests

    def _run(self, definitions: dg.Definitions, instance: dg.DagsterInstance, request: dg.RunRequest) -> None:
        job = definitions.resolve_implicit_global_asset_job_def()
        assets = list(request.asset_selection or [])
        result = job.execute_in_process(
            run_config=QUIET, instance=instance, tags=dict(request.tags), asset_selection=assets, raise_on_error=False
        )
        made = [
            "/".join([*event.asset_key.path[1:], *([event.partition] if event.partition else [])])
            for event in result.get_asset_materialization_events()
            if event.asset_key
        ]
        names = [key.path[-1] for key in assets]
        why = reasons_in(result.all_events)
        self.runs.append({"success": result.success, "assets": names, "made": made, "why": why})

    def begin(self, request: dg.RunRequest) -> dg.DagsterRun:
        """A run that nobody works on yet."""
        job, assets = self.lab.defs().resolve_implicit_global_asset_job_def(), frozenset(request.asset_selection or ())
        with self.lab.instance() as instance:
            return instance.create_run_for_job(job, tags=dict(request.tags), asset_selection=assets)

    def kill(self, run: dg.DagsterRun) -> None:
        """What Dagster says of a run whose process was killed."""
        with self.lab.instance() as instance:
            instance.report_run_failed(run)

    def follow(self, most: int = 12) -> int:
        """Tick until nothing is asked for; how many ticks asked for something."""
        for number in range(most):
            if not self.tick():
                return number
        raise AssertionError(f"still asking after {most} ticks: {self.runs}")

    @property
    def made(self) -> list[str]:
        """Every cell that was made, in order."""
        return [cell for run in self.runs for cell in run["made"]]

    @property
    def verdicts(self) -> dict[str, Verdict]:
        """What is known of every version."""
        with self.lab.instance() as instance:
            return verdicts_of("tiny", instance)

    @property
    def partitions(self) -> list[str]:
        with self.lab.instance() as instance:
            return list(instance.get_dynamic_partitions(f"tiny_{BRANCH}"))
