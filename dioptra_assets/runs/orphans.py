"""What a process leaves in Dagster when it is killed: a run that says "started" for ever, and its place in a pool.

Dagster's daemon tidies up after the runs that it has launched. Here a process leads its runs itself, and there may be
no daemon; without this, the next launch would wait for a place that nobody gives back.

Why: docs/decisions/0023-materialize-leads-its-runs.md
"""

import os
import socket

import dagster as dg
import psutil

from dioptra_assets.dagster_internals import MAX_RETRIES_TAG, NOT_FINISHED_STATUSES

# Which process leads a run: host, process id, and when it began, since process ids come again. The UI shows no tag of
# that beginning.
LEADER_TAG = ".dagster/dioptra_assets_led_by"
FORMER_LEADER_TAG = "dioptra_assets/led_by"


def leader() -> dict[str, str]:
    """The tags of a run that this process leads: whose it is, and that the daemon leaves trying again to its leader."""
    return {LEADER_TAG: _identity(psutil.Process(os.getpid())), MAX_RETRIES_TAG: "0"}


def clear_leftovers(instance: dg.DagsterInstance) -> list[str]:
    """End the runs that were led by a process of this machine which is no more, and free what ended runs hold.

    Returns:
        The ids of the runs that were ended.
    """
    ended = []
    unfinished = dg.RunsFilter(statuses=NOT_FINISHED_STATUSES)
    for run in instance.get_runs(filters=unfinished):
        if _is_orphan(run.tags.get(LEADER_TAG) or run.tags.get(FORMER_LEADER_TAG, "")):
            instance.report_run_failed(run, "The process that led this run was killed.")
            ended.append(run.run_id)
    _free_places(instance)
    return ended


def end_led_runs(instance: dg.DagsterInstance) -> list[str]:
    """Cancel the runs that this process leads and that have not ended, and free what ended runs hold.

    Returns:
        The ids of the runs that were canceled.
    """
    led = instance.get_runs(filters=dg.RunsFilter(statuses=NOT_FINISHED_STATUSES, tags=leader()))
    for run in led:
        instance.report_run_canceled(run, "The process that led this run was interrupted.")
    _free_places(instance)
    return [run.run_id for run in led]


def _free_places(instance: dg.DagsterInstance) -> None:
    storage = instance.event_log_storage
    if storage.supports_global_concurrency_limits:
        for info in storage.get_concurrency_infos(sorted(storage.get_concurrency_keys())).values():
            waiting = {step.run_id for step in info.pending_steps}
            for run_id in {slot.run_id for slot in info.claimed_slots} | waiting:
                run = instance.get_run_by_id(run_id)
                if run is None or run.is_finished:
                    storage.free_concurrency_slots_for_run(run_id)


def _identity(process: psutil.Process) -> str:
    return f"{socket.gethostname()}:{process.pid}:{process.create_time():.2f}"


def _is_orphan(identity: str) -> bool:
    host, _, process = identity.partition(":")
    if host != socket.gethostname():
        return False
    try:
        return _identity(psutil.Process(int(process.split(":")[0]))) != identity
    except psutil.NoSuchProcess:
        return True
