"""The Celery app of a worker: `make worker`, or `celery -A resources.executors.celery_app worker -Q gpu,dagster -c 1`.

One worker a GPU, one task at a time, with that GPU in CUDA_VISIBLE_DEVICES.
"""

from dagster_celery.make_app import make_app
from dagster_celery.tasks import create_task

from resources.executors.engines import celery_config

app = make_app({**celery_config(), "include": ["dioptra_assets.definitions"]})
execute_plan = create_task(app)
