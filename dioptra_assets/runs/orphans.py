"""Clean up what a killed process leaves in Dagster: a run that stays "started" forever, and its slot in a pool.

Dagster's daemon cleans up after the runs it has launched. Here a process leads its runs itself, possibly without a
daemon. Without this cleanup, the next launch would wait for a slot that is never freed.

Why: docs/decisions/0023-materialize-leads-its-runs.md
"""

import os
import socket

import dagster as dg
import psutil

from dioptra_assets.dagster_internals import MAX_RETRIES_TAG, NOT_FINISHED_STATUSES

# The process that leads a run: host, process id and start time, since process ids are reused. The UI hides tags with
# this prefix.
LEADER_TAG = ".dagster/dioptra_assets_led_by"
FORMER_LEADER_TAG = "dioptra_assets/led_by"


def leader() -> dict[str, str]:
    """Tags of a run led by this process: its leader, and that the daemon must not retry it."""
    return {LEADER_TAG: _identity(psutil.Process(os.getpid())), MAX_RETRIES_TAG: "0"}


def clear_leftovers(instance: dg.DagsterInstance) -> list[str]:
    """End the runs whose leader, a process on this machine, no longer exists. Free the slots of ended runs.

    Returns:
        Ids of the ended runs.
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
    """Cancel the unfinished runs led by this process. Free the slots of ended runs.

    Returns:
        Ids of the canceled runs.
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
