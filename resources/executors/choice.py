"""Where the steps of a run are executed: one setting, and what a step with a GPU asks of each engine.

| `DIOPTRA_ASSETS_EXECUTOR` | steps run | further settings |
|---|---|---|
| `in_process` (default) | one after the other in the run's process, which imports TensorFlow once | |
| `multiprocess` | each in a separate process, which reserves one of several GPUs | |
| `celery` | in warm workers (`make worker`), keep TensorFlow imported | `DIOPTRA_ASSETS_CELERY_BROKER`, see below |
| `ray` | each as a job of a Ray cluster | `RAY_ADDRESS`, default `http://127.0.0.1:8265` |
| `k8s` | each as a Kubernetes job, with the image and namespace of Dagster's `K8sRunLauncher` | |

The broker of Celery is by default `redis://127.0.0.1:6379/0`. `DIOPTRA_ASSETS_GPUS_PER_CELL` is what a step that trains
or attacks asks of its cluster (default 1; 0 where there are none), `DIOPTRA_ASSETS_CELLS_PER_RUN` how many cells of a
backfill one run takes: by default all of them in one process or with one GPU, else 10, so that a backfill spreads.

Why: docs/decisions/0021-executors-by-one-setting.md
"""

import json
import os
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import dagster as dg

EXECUTOR_VARIABLE = "DIOPTRA_ASSETS_EXECUTOR"
BROKER_VARIABLE = "DIOPTRA_ASSETS_CELERY_BROKER"
GPUS_VARIABLE = "DIOPTRA_ASSETS_GPUS_PER_CELL"
CELLS_VARIABLE = "DIOPTRA_ASSETS_CELLS_PER_RUN"
# Engine -> the module it needs, and what to install where that is missing.
ENGINES = {
    "in_process": "dagster",
    "multiprocess": "dagster",
    "celery": "dagster_celery",
    "ray": "dagster_ray",
    "k8s": "dagster_k8s",
}
# The queue of steps in the pool `gpu`; everything else goes to Dagster's own.
GPU_QUEUE = "gpu"
QUEUE_TAG = "dagster-celery/queue"
# What a Ray job must know and a node may not: names of places, no passwords, since Ray shows them to whoever looks.
RAY_SETTINGS = (
    "DAGSTER_HOME",
    "DIOPTRA_ASSETS_DATA",
    "DIOPTRA_ASSETS_STORE",
    "MLFLOW_TRACKING_URI",
    "TF_CPP_MIN_LOG_LEVEL",
    EXECUTOR_VARIABLE,
    GPUS_VARIABLE,
    CELLS_VARIABLE,
)


class SettingError(ValueError):
    """A setting in the environment is wrong; the message names it, its value and what is allowed."""


def engine() -> str:
    """The engine that was chosen.

    Raises:
        SettingError: when the engine is unknown, or its package is not installed.
    """
    name = os.environ.get(EXECUTOR_VARIABLE) or "in_process"
    if name not in ENGINES:
        raise SettingError(f"{EXECUTOR_VARIABLE}={name}: there is no such executor, available: {', '.join(ENGINES)}")
    if find_spec(ENGINES[name]) is None:
        raise SettingError(
            f"{EXECUTOR_VARIABLE}={name}: the package {ENGINES[name]} is not installed:"
            f" pip install 'dioptra-assets[{name}]'"
        )
    return name


def executor() -> dg.ExecutorDefinition:
    """Dagster's executor for the engine that was chosen.

    Raises:
        SettingError: see :func:`engine`.
    """
    name = engine()
    if name == "in_process":
        return dg.in_process_executor
    if name == "multiprocess":
        return dg.multiprocess_executor
    if name == "celery":
        return import_module("resources.executors.celery").celery_executor
    if name == "ray":
        present = [variable for variable in RAY_SETTINGS if variable in os.environ]
        address = os.environ.get("RAY_ADDRESS", "http://127.0.0.1:8265")
        config = {"ray": {"address": address, "num_cpus": 1.0, "env_vars": present}}
        return import_module("dagster_ray").ray_executor.configured(config)
    return import_module("dagster_k8s").k8s_job_executor


def celery_config() -> dict[str, Any]:
    """The configuration of the Celery app, the same for those who ask and those who work."""
    broker = os.environ.get(BROKER_VARIABLE, "redis://127.0.0.1:6379/0")
    source = {
        # A worker that is busy leaves what waits to the others.
        "worker_prefetch_multiplier": 1,
        "worker_disable_prefetch": True,
        # That a task was begun is known, so that one whose worker died can be told from one that waits.
        "task_track_started": True,
        "broker_connection_retry_on_startup": True,
        # A worker that has computed a step keeps the answer for some minutes until the broker is back.
        "broker_connection_max_retries": None,
        "result_backend_transport_options": {"retry_policy": {"max_retries": 60, "interval_max": 5}},
        "result_expires": 24 * 3600,
    }
    return {"broker": broker, "backend": broker, "config_source": source}


def gpu_tags() -> Mapping[str, Any]:
    """What a step in the pool `gpu` asks for, in the words of each engine; each passes over the words of the others.

    Raises:
        SettingError: when `DIOPTRA_ASSETS_GPUS_PER_CELL` is no number of at least 0.
    """
    gpus = gpus_per_cell()
    tags: dict[str, Any] = {
        QUEUE_TAG: GPU_QUEUE,
        "dagster-ray/config": json.dumps({"num_gpus": gpus}),
    }
    if gpus:
        # Kubernetes gives out whole devices.
        resources = {"limits": {"nvidia.com/gpu": str(max(1, round(gpus)))}}
        tolerations = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
        tags["dagster-k8s/config"] = {
            "container_config": {"resources": resources},
            "pod_spec_config": {"tolerations": tolerations},
            "merge_behavior": "DEEP",
        }
    return tags


def gpus_per_cell() -> float:
    """How many GPUs a step that trains or attacks asks for.

    Raises:
        SettingError: when `DIOPTRA_ASSETS_GPUS_PER_CELL` is no number of at least 0.
    """
    return number_setting(GPUS_VARIABLE, 1.0, "a number of at least 0", float)


def number_setting(variable: str, default: Any, allowed: str, kind: type[int] | type[float]) -> Any:
    """A number that the environment gives, or the default.

    Raises:
        SettingError: where it is none of those that are allowed.
    """
    text = os.environ.get(variable)
    if not text:
        return default
    try:
        number = kind(text)
    except ValueError:
        number = -1
    if not (0 if kind is float else 1) <= number < 1e6:
        raise SettingError(f"{variable}={text} is not allowed, it must be {allowed}")
    return number
