"""The MLflow run of one cell: what can be logged to it."""

import math
import re
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, cast

import pandas as pd

from resources.tracking.client import file_sha256, fitting, fitting_tags, transferring

if TYPE_CHECKING:
    from mlflow.entities import Param
    from mlflow.tracking import MlflowClient

MODEL_FOLDER = "model"
DIGEST_TAG = "sha256"
NON_FINITE_TAG = "non_finite_metrics"
# Of what is being asked of MLflow: an error there becomes :class:`TrackingUnavailable`, which says so.
Reaching = Callable[[str], AbstractContextManager[None]]


class CellRun:
    """The open MLflow run of one cell. Every method raises :class:`TrackingUnavailable` when MLflow is not there.

    Attributes:
        experiment_id: MLflow's id of its experiment.
        run_id: MLflow's id of the run, as `MlflowClient().get_run(run_id)` takes it.
        url: its page in the MLflow UI, or None where MLflow is a database without a server.
    """

    def __init__(
        self, reaching: Reaching, client: "MlflowClient", run_id: str, experiment_id: str, url: str | None
    ) -> None:
        self._reaching = reaching
        self._client = client
        self._non_finite: set[str] = set()
        self._model: str | None = None
        self.run_id = run_id
        self.experiment_id = experiment_id
        self.url = url

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None, **beside: Mapping[str, Any]) -> None:
        """Record numbers, and the `tags` and `params` told with them, in one request.

        NaN and infinity are left out and named in the tag `non_finite_metrics`.
        """
        self.log_points([(name, value, step or 0) for name, value in metrics.items()], **beside)  # type: ignore[arg-type]

    def log_history(self, history: pd.DataFrame) -> None:
        """Record numbers that change while a model trains, in one request.

        Args:
            history: one row per epoch and one column per metric; the step is the column `epoch` where there is one,
                else the index.
        """
        indexed = history.set_index("epoch") if "epoch" in history else history
        self.log_points([(str(n), v, int(step)) for n in indexed for step, v in indexed[n].items()])  # type: ignore[arg-type]

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record parameters, as text; text longer than MLflow stores (6,000 characters) ends with `...`."""
        if not params:
            return
        entries = _params(params)
        with self._reaching(f"logging parameters of run {self.run_id}"):
            self._client.log_batch(self.run_id, params=entries, synchronous=True)

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Record tags known only at the end, such as the data version of what the cell made."""
        from mlflow.entities import RunTag

        entries = [RunTag(name, value) for name, value in fitting_tags(tags).items()]
        with self._reaching(f"logging tags of run {self.run_id}"):
            self._client.log_batch(self.run_id, tags=entries, synchronous=True)

    def log_artifact(self, path: Path, artifact_path: str | None = None) -> None:
        """Upload a file, or a folder under its own name, below the folder `artifact_path` of the run's artefacts."""
        if not path.exists():
            raise ValueError(f"there is no file {path} to log as an artefact")
        client = transferring(self._client, sum(file.stat().st_size for file in [path, *path.rglob("*")]))
        with self._reaching(f"uploading {path.name} to run {self.run_id}"):
            cast("Any", client).log_artifact(self.run_id, str(path), artifact_path)

    def log_text(self, name: str, content: str) -> None:
        """Upload text as the UTF-8 file `name`, e.g. `tables/transfer_matrix.csv`."""
        self.log_bytes(name, content.encode())

    def log_bytes(self, name: str, content: bytes) -> None:
        """Upload bytes as the file `name`, e.g. `plots/security_curves.png`."""
        target = PurePosixPath(name)
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / target.name
            path.write_bytes(content)
            self.log_artifact(path, None if target.parent == PurePosixPath() else str(target.parent))

    def register_model(self, name: str, model_path: Path, tags: Mapping[str, str]) -> str:
        """Upload a trained model and make it a new version of a registered model. One model per run.

        Args:
            name: registered model, created where it is missing; see :func:`registered_name`.
            model_path: the `.keras` file. It is stored as it is, beside nothing that could name code to run.
            tags: of the version; its sha256 is added, and :meth:`Tracking.fetch_model` insists on it.

        Returns:
            The version.

        Raises:
            ValueError: not a `.keras` file, or the run has registered a model already.
        """
        from mlflow.exceptions import MlflowException

        self.check_model(name, model_path)
        digest = file_sha256(model_path)
        self.log_artifact(model_path, MODEL_FOLDER)
        self._model = name
        with self._reaching(f"registering {name!r}"):
            try:
                self._client.create_registered_model(name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            source = f"{self._client.get_run(self.run_id).info.artifact_uri}/{MODEL_FOLDER}"
            version = self._client.create_model_version(
                name, source, run_id=self.run_id, tags={**tags, DIGEST_TAG: digest}, await_creation_for=0
            )
        return str(version.version)

    def check_model(self, name: str, model_path: Path) -> None:
        """Refuse what :meth:`register_model` does not take."""
        if model_path.suffix != ".keras":
            raise ValueError(f"{model_path} is not a .keras file; no other format is registered")
        if self._model is not None:
            raise ValueError(f"run {self.run_id} has registered {self._model!r} already; open a run for {name!r}")

    def log_points(
        self,
        points: list[tuple[str, float, int]],
        at: int | None = None,
        *,
        tags: Mapping[str, Any] | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> None:
        """Record numbers, and what is told with them, in one request.

        Args:
            points: name, value and step of each number.
            at: in ms since 1970, by default now.
            tags: see :meth:`log_tags`.
            params: see :meth:`log_params`.
        """
        from mlflow.entities import Metric, RunTag

        now = at or int(time.time() * 1000)
        # MLflow takes fewer characters in a name than a partition key has: `fgm@eps=0.3`.
        names = {name: re.sub(r"[^\w\-. :/]", "_", name) for name, _, _ in points}
        finite = [Metric(names[n], float(value), now, step) for n, value, step in points if math.isfinite(value)]
        skipped = {n for n, value, _ in points if not math.isfinite(value)}
        self._non_finite |= skipped
        named = dict(tags or {})
        if skipped:
            named[NON_FINITE_TAG] = ", ".join(sorted(self._non_finite))
        entries = [RunTag(name, value) for name, value in fitting_tags(named).items()]
        with self._reaching(f"logging metrics of run {self.run_id}"):
            self._client.log_batch(
                self.run_id, metrics=finite, params=_params(params or {}), tags=entries, synchronous=True
            )


def _params(params: Mapping[str, Any]) -> list["Param"]:
    from mlflow.entities import Param
    from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH

    return [Param(name, fitting(str(value), MAX_PARAM_VAL_LENGTH)) for name, value in params.items()]
