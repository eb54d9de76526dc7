"""Dagster's Celery executor, made to notice when a worker dies. Imported only where Celery was chosen.

Celery hands a task out once and forgets it: when the machine it went to dies, whoever asked waits for ever. Here a task
that was begun, and that no worker knows of any more, ends as lost; the run fails and Dagster retries it. A broker that
is away for a moment is waited for: the worker goes on with its step meanwhile, and the broker keeps its answer.

Why: docs/decisions/0022-a-dead-worker-is-noticed.md
"""

import time
from collections.abc import Callable, Generator
from typing import Any

import dagster as dg
from celery import Celery
from celery.exceptions import WorkerLostError
from celery.result import AsyncResult
from dagster_celery.core_execution_loop import core_celery_execution_loop
from dagster_celery.executor import CELERY_CONFIG, CeleryExecutor, _submit_task
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from dioptra_assets.dagster_internals import ExecutionPlan, PlanOrchestrationContext, RetryMode

# Workers are asked so often, and given up after so many answers in a row that did not name the task.
ASK_SECONDS = 5.0
ANSWER_SECONDS = 2.0
SILENCES = 4
# A broker that does not answer is asked so often, and given up after so long.
AWAY_PAUSE_SECONDS = 2.0
AWAY_SECONDS = 300.0
AWAY = (RedisError, OperationalError, OSError)


class WatchedTask:
    """The result of a task, as Dagster's loop asks for it each second."""

    def __init__(self, app: Celery, result: AsyncResult, queue: str, warn: Callable[[str], None]) -> None:
        self._app, self._result, self._queue, self._warn = app, result, queue, warn
        self._asked = time.monotonic()
        self._silences = 0
        self._warned = 0.0
        self._lost = ""
        self._away_since: float | None = None

    def ready(self) -> bool:
        """Whether the task has ended, one way or the other."""
        try:
            ended = self._ready()
        except (*AWAY, RuntimeError) as error:  # the last is Celery's own, after retries of its own
            self._note_away(error)
            return bool(self._lost)
        if self._away_since is not None:
            self._away_since, self._silences = None, 0  # nobody could be asked meanwhile
        return ended

    def _note_away(self, error: Exception) -> None:
        if self._away_since is None:
            self._away_since = time.monotonic()
            self._warn(f"the broker of Celery does not answer, it is waited for {AWAY_SECONDS:.0f} s: {error}")
        elif time.monotonic() - self._away_since > AWAY_SECONDS:
            self._lost = f"the broker of Celery has not answered for {AWAY_SECONDS:.0f} s: {error}"

    def _ready(self) -> bool:
        if self._result.ready():
            return True
        if not self._lost and time.monotonic() - self._asked >= ASK_SECONDS:
            self._ask()
            self._asked = time.monotonic()
        return bool(self._lost)

    def get(self) -> Any:
        """What the task gave back; raises what it raised, or that its worker was lost."""
        if self._lost:
            raise WorkerLostError(self._lost)
        return self._result.get()

    def revoke(self) -> None:
        """Take the task back; the worker that has begun it stops."""
        self._result.revoke(terminate=True)

    def _ask(self) -> None:
        inspect = self._app.control.inspect(timeout=ANSWER_SECONDS)
        begun = self._result.state == "STARTED"
        known = any(tasks for tasks in (inspect.query_task(self._result.id) or {}).values())
        if known:
            self._silences = 0
        elif begun:
            self._silences += 1
            if self._silences >= SILENCES and not self._result.ready():
                worker = (self._result.info or {}).get("hostname", "its worker")
                self._lost = f"Celery worker {worker} was lost while it ran this step"
        elif time.monotonic() - self._warned >= 60:
            queues = inspect.active_queues() or {}
            if not any(queue["name"] == self._queue for served in queues.values() for queue in served or ()):
                self._warn(f"no Celery worker serves the queue {self._queue!r}: start one with `make worker`")
                self._warned = time.monotonic()


def patiently(ask: Callable[[], Any], warn: Callable[[str], None]) -> Any:
    """What the broker gives, which is asked again while it is away.

    Raises:
        Exception: what it raised at last, after `AWAY_SECONDS`.
    """
    since = time.monotonic()
    while True:
        try:
            return ask()
        except AWAY as error:
            if time.monotonic() - since > AWAY_SECONDS:
                raise
            warn(f"the broker of Celery does not answer, it is asked again: {error}")
            time.sleep(AWAY_PAUSE_SECONDS)


class WatchedCeleryExecutor(CeleryExecutor):
    """See the head of this file."""

    def execute(
        self, plan_context: PlanOrchestrationContext, execution_plan: ExecutionPlan
    ) -> Generator[Any, Any, None]:
        """Dagster's loop, over tasks that are watched."""

        def submit(app: Celery, *step: Any) -> WatchedTask:
            result = patiently(lambda: _submit_task(app, *step), plan_context.log.warning)
            queue = step[2]
            return WatchedTask(app, result, queue, plan_context.log.warning)

        return core_celery_execution_loop(plan_context, execution_plan, step_execution_fn=submit)


@dg.executor(name="celery", config_schema=CELERY_CONFIG, requirements=dg.multiple_process_executor_requirements())
def watched_celery_executor(context: dg.InitExecutorContext) -> WatchedCeleryExecutor:
    """Steps run in Celery workers."""
    config: Any = context.executor_config
    return WatchedCeleryExecutor(
        retries=RetryMode.from_config(config["retries"]),
        broker=config["broker"],
        backend=config["backend"],
        config_source=config["config_source"],
    )
