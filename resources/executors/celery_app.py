"""The Celery app of a worker: `make worker`, or `celery -A resources.executors.celery_app worker -Q gpu,dagster -c 1`.

One worker per GPU, one task at a time, with that GPU in CUDA_VISIBLE_DEVICES.
"""

from typing import Any, cast

# The types of dagster-celery name no arguments.
from dagster_celery.make_app import make_app  # pyright: ignore[reportUnknownVariableType]
from dagster_celery.tasks import create_task  # pyright: ignore[reportUnknownVariableType]

from resources.executors.choice import celery_config

app: Any = make_app({**celery_config(), "include": ["dioptra_assets.definitions"]})
execute_plan = cast("Any", create_task)(app)
