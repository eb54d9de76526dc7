"""The runs that Dagster is asked for."""

from collections.abc import Collection, Mapping, Sequence

import dagster as dg

from dioptra_assets.assets.cell_context import asset_key
from dioptra_assets.assets.registered_models import VERSIONS
from dioptra_assets.dagster_internals import NOT_FINISHED_STATUSES
from dioptra_assets.registered_versions.planning import Todo, Wanted, runs
from dioptra_assets.registered_versions.runs_so_far import PLACE_TAG, TABLE_TAG, VERSIONS_TAG, WATCH_TAG, Places
from dioptra_assets.registered_versions.verdicts import Verdict
from partitions.experiments import ExperimentSpec
from partitions.keys import ARCHITECTURE
from resources.executors.backfills import cells_per_run

# Runs in one place at once on a cluster; on one machine one after another, each for all that have come meanwhile.
RUNS_AT_ONCE = 16


def run_requests(
    branch: ExperimentSpec,
    todo: Todo,
    due: Sequence[str],
    versions: Sequence[str],
    *,
    at_work: Places,
    alone: Collection[str],
) -> list[dg.RunRequest]:
    """The runs that bring some versions on.

    Args:
        branch: the experiment as its branch of registered models sees it.
        todo: what is missing or stale.
        due: the versions that are brought on now, whoever has waited longest first.
        versions: all there are, in the order that Dagster keeps.
        at_work: how many runs there are already, by the place that they take.
        alone: versions that are not put into a run with others.
    """
    if not due:
        return []
    chosen = {*due, ""}
    cells = {
        key: {cell for cell in cells if cell.partition.get(ARCHITECTURE, "") in chosen}
        for key, cells in todo.cells.items()
    }
    at_once, places, requests = RUNS_AT_ONCE if cells_per_run() else 1, dict(at_work), []
    for wanted in runs(Todo(todo.dimensions, todo.inputs, cells), versions, list(branch.attacks), alone, due):
        if places.get(wanted.place, 0) < at_once:
            places[wanted.place] = places.get(wanted.place, 0) + 1
            requests.append(_run_request(branch, wanted))
    return requests


def _run_request(branch: ExperimentSpec, wanted: Wanted) -> dg.RunRequest:
    versions = list(dict.fromkeys(cell[ARCHITECTURE] for cell in wanted.cells if ARCHITECTURE in cell))
    named = ", ".join(versions[:3]) + (f" and {len(versions) - 3} more" if len(versions) > 3 else "")
    tags = {**wanted.tags, WATCH_TAG: branch.name, PLACE_TAG: wanted.place, "dagster/max_retries": "0"}
    if versions:
        tags[VERSIONS_TAG] = named
    return dg.RunRequest(asset_selection=list(wanted.assets), tags=tags)


def versions_table(
    branch: ExperimentSpec, instance: dg.DagsterInstance, verdicts: Mapping[str, Verdict]
) -> list[dg.RunRequest]:
    """The table of all versions, once after each new verdict, when no other run is at work."""
    judged_at = [one.at for one in verdicts.values() if one.status in ("passed", "failed")]
    last = instance.get_run_records(dg.RunsFilter(tags={TABLE_TAG: branch.name}), limit=1)
    if not judged_at or (last and last[0].create_timestamp.timestamp() >= max(judged_at) - 1):
        return []
    if instance.get_runs_count(dg.RunsFilter(tags={WATCH_TAG: branch.name}, statuses=NOT_FINISHED_STATUSES)):
        return []
    tags = {WATCH_TAG: branch.name, TABLE_TAG: branch.name}
    return [dg.RunRequest(asset_selection=[asset_key(branch, VERSIONS)], tags=tags)]
