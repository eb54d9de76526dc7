"""Steps in warm Celery workers, each watched. Imported only where Celery was chosen.

Celery hands a task out once and forgets it: when the machine it went to dies, whoever asked waits for ever. Here a task
that was begun, and that no worker knows of any more, fails as lost, and Dagster retries the run. A worker writes a
step's events to Dagster itself, so a broker that is away for a moment disturbs no step that has begun.

Why: docs/decisions/0022-a-dead-worker-is-noticed.md
"""

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from typing import Any, Protocol, cast

import dagster as dg

# Celery has no types, and those of dagster-celery name no arguments.
from celery.exceptions import WorkerLostError  # pyright: ignore[reportMissingTypeStubs]
from celery.states import FAILURE, REVOKED, STARTED, SUCCESS  # pyright: ignore[reportMissingTypeStubs]
from dagster_celery.make_app import make_app  # pyright: ignore[reportUnknownVariableType]
from dagster_celery.tasks import create_task  # pyright: ignore[reportUnknownVariableType]
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from dioptra_assets.dagster_internals import (
    CheckStepHealthResult,
    ExecutionPlan,
    PlanOrchestrationContext,
    RetryMode,
    StepDelegatingExecutor,
    StepHandler,
    StepHandlerContext,
    pack_value,
)
from resources.executors.choice import QUEUE_TAG, celery_config

# A step's worker is asked so often, and given up after so many times in a row that it did not name the task.
ASK_SECONDS = 5
ANSWER_SECONDS = 2.0
SILENCES = 4
# A broker that does not answer is asked so often, and given up after so long.
AWAY_PAUSE_SECONDS = 2.0
AWAY_SECONDS = 300.0
AWAY = (RedisError, OperationalError, OSError)
# Where steps go that ask for no queue; `make worker` serves it.
DEFAULT_QUEUE = "dagster"


class SentTask(Protocol):
    """What is used here of Celery's `AsyncResult`."""

    id: str

    def ready(self) -> bool:
        """Whether it has ended."""
        ...

    def revoke(self, *, terminate: bool) -> None:
        """Take it back."""
        ...


class WatchedTask:
    """One task that was sent, and what its workers have said of it."""

    def __init__(self, app: Any, result: SentTask, queue: str, warn: Callable[[str], None]) -> None:
        self._app, self._result, self._queue, self._warn = app, result, queue, warn
        self._silences = 0
        self._warned = 0.0
        self._away_since: float | None = None

    def why_lost(self) -> str | None:
        """Why the step will never report its end, or None while it may."""
        try:
            reason = self._ask()
        except (*AWAY, RuntimeError) as error:  # the last is Celery's own, after retries of its own
            return self._note_away(error)
        if self._away_since is not None:
            self._away_since, self._silences = None, 0  # nobody could be asked meanwhile
        return reason

    def revoke(self) -> None:
        """Take the task back; the worker that has begun it stops."""
        self._result.revoke(terminate=True)

    def _note_away(self, error: Exception) -> str | None:
        if self._away_since is None:
            self._away_since = time.monotonic()
            self._warn(f"the broker of Celery does not answer, it is waited for {AWAY_SECONDS:.0f} s: {error}")
        elif time.monotonic() - self._away_since > AWAY_SECONDS:
            return f"the broker of Celery has not answered for {AWAY_SECONDS:.0f} s: {error}"
        return None

    def _ask(self) -> str | None:
        told = self._app.backend.get_task_meta(self._result.id)
        if told["status"] in (FAILURE, REVOKED):
            return f"Celery gave the step up: {told['result']!r}"
        if told["status"] == SUCCESS:
            return None
        if told["status"] != STARTED:
            self._warn_of_a_queue_that_is_not_served()
            return None
        worker = told["result"]["hostname"]
        inspect = self._app.control.inspect(destination=[worker], limit=1, timeout=ANSWER_SECONDS)
        answers: dict[str, Any] | None = inspect.query_task(self._result.id)
        known = (answers or {}).get(worker)
        self._silences = 0 if known else self._silences + 1
        if self._silences >= SILENCES and not self._result.ready():
            return f"Celery worker {worker} was lost while it ran this step"
        return None

    def _warn_of_a_queue_that_is_not_served(self) -> None:
        if time.monotonic() - self._warned < 60:
            return
        answers: dict[str, Any] | None = self._app.control.inspect(timeout=ANSWER_SECONDS).active_queues()
        if not any(queue["name"] == self._queue for served in (answers or {}).values() for queue in served or ()):
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


class CeleryStepHandler(StepHandler):
    """Sends steps to the workers, asks after them, and takes them back."""

    def __init__(self) -> None:
        self._app: Any = make_app(celery_config())
        self._execute_plan: Any = create_task(self._app)
        self._tasks: dict[str, WatchedTask] = {}
        self.lost: dict[str, str] = {}

    @property
    def name(self) -> str:
        """How a run's log calls it."""
        return "celery"

    def launch_step(self, step_handler_context: StepHandlerContext) -> Iterator[dg.DagsterEvent]:
        """Send the step to the queue that it asks for."""
        (key,) = step_handler_context.step_tags
        step = step_handler_context.get_step_context(key)
        queue = step_handler_context.step_tags[key].get(QUEUE_TAG, DEFAULT_QUEUE)
        job: Any = step.job
        task = self._execute_plan.si(
            execute_step_args_packed=pack_value(step_handler_context.execute_step_args), executable_dict=job.to_dict()
        )
        sentence = f"Step {key} goes to the Celery queue {queue!r}."
        yield cast("Any", dg.DagsterEvent).step_worker_starting(step, sentence, {})
        sent = patiently(lambda: task.apply_async(queue=queue, routing_key=f"{queue}.{task.task}"), step.log.warning)
        self._tasks[key] = WatchedTask(self._app, sent, queue, step.log.warning)

    def check_step_health(self, step_handler_context: StepHandlerContext) -> CheckStepHealthResult:
        """Whether the step may still report its end."""
        (key,) = step_handler_context.step_tags
        if reason := self._tasks[key].why_lost():
            self.lost[key] = reason
            return CheckStepHealthResult.unhealthy(reason)
        return CheckStepHealthResult.healthy()

    def terminate_step(self, step_handler_context: StepHandlerContext) -> Iterator[dg.DagsterEvent]:
        """Take the step back: of a run that has ended, no worker publishes anything in any case."""
        (key,) = step_handler_context.step_tags
        with suppress(*AWAY):
            self._tasks[key].revoke()
        return iter(())


class CeleryExecutor(StepDelegatingExecutor):
    """Dagster's loop over steps that run elsewhere. A lost worker fails the run itself, since Dagster retries that."""

    def __init__(self) -> None:
        self._handler = CeleryStepHandler()
        super().__init__(self._handler, retries=RetryMode.ENABLED, check_step_health_interval_seconds=ASK_SECONDS)

    def execute(
        self, plan_context: PlanOrchestrationContext, execution_plan: ExecutionPlan
    ) -> Generator[dg.DagsterEvent, Any, None]:
        """What the steps report.

        Raises:
            WorkerLostError: at the end, where a step was lost. A step that failed by itself raises nothing.
        """
        yield from super().execute(plan_context, execution_plan)
        if self._handler.lost:
            raise WorkerLostError("; ".join(f"{step}: {reason}" for step, reason in self._handler.lost.items()))


@dg.executor(name="celery", requirements=dg.multiple_process_executor_requirements(), config_schema={})
def celery_executor(context: dg.InitExecutorContext) -> CeleryExecutor:
    """Steps run in Celery workers."""
    return CeleryExecutor()
