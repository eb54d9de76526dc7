"""MLflow's server behind a guard: `mlflow server --app-name dioptra_assets`, as `make mlflow` starts it.

By itself it answers whoever asks. Guarded, it answers its own pages and programs of this machine alone; where
`MLFLOW_TRACKING_TOKEN` is set, which MLflow's client sends of itself, whoever does not hold it is refused, and a
browser shows it once as `?token=...`. `MLFLOW_SERVER_ALLOWED_HOSTS` names further names it is reached by.
"""

import os

from mlflow.server.fastapi_app import app as mlflow_app  # noqa: TID253

from dioptra_assets.web.guard import Guard, token_of

HOSTS = os.environ.get("MLFLOW_SERVER_ALLOWED_HOSTS", "")

app = Guard(
    mlflow_app,
    hosts=[host.strip() for host in HOSTS.split(",") if host.strip() and "*" not in host],
    token=token_of("MLFLOW_TRACKING_TOKEN"),
    open_to_all=False,
)
