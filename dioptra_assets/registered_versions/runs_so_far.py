"""The runs that were asked for registered versions: which are at work, which failed, at what and why."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import dagster as dg

from dioptra_assets.assets.cell_context import asset_key
from dioptra_assets.assets.config_assets import ATTACK_CONFIG
from dioptra_assets.dagster_internals import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    HIDDEN_TAG_PREFIX,
    NOT_FINISHED_STATUSES,
)
from dioptra_assets.runs.launch import reasons_in
from partitions.experiments import ExperimentSpec

# The experiment that a run was asked for, and whether it makes the table of all versions: not shown in lists of runs.
WATCH_TAG = f"{HIDDEN_TAG_PREFIX}dioptra_watch"
TABLE_TAG = f"{HIDDEN_TAG_PREFIX}dioptra_versions"
# The place at work that a run takes.
PLACE_TAG = f"{HIDDEN_TAG_PREFIX}dioptra_place"
# The versions that a run is for.
VERSIONS_TAG = "dioptra/registered_models"
ENDED_BADLY = [dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
# How often it is asked whether a run has ended, in s.
ASK_SECONDS = 0.25
# So many of the runs that failed last are looked into.
MOST_FAILED = 50

Places = dict[str, int]
FailedRun = tuple[dg.RunRecord, dict[str, str]]


@dataclass(frozen=True)
class AskedRuns:
    """The runs of one experiment.

    Attributes:
        branch: the experiment as its branch of registered models sees it.
        instance: Dagster.
        present: the versions that are partitions, in the order that Dagster keeps.
    """

    branch: ExperimentSpec
    instance: dg.DagsterInstance
    present: Sequence[str]

    def in_flight(self) -> tuple[set[str], Places]:
        """The versions that runs are at work on, and how many runs there are by the place that they take."""
        busy: set[str] = set()
        places: Places = {}
        for run in self.instance.get_runs(
            dg.RunsFilter(tags={WATCH_TAG: self.branch.name}, statuses=NOT_FINISHED_STATUSES)
        ):
            busy |= self._covered(run)
            place = run.tags.get(PLACE_TAG, "")
            places[place] = places.get(place, 0) + 1
        return busy, places

    def one_has_ended(self, seconds: float) -> bool:
        """Wait until one of the runs at work has ended; False where there is none, or none ends in so many seconds."""
        ours = dg.RunsFilter(tags={WATCH_TAG: self.branch.name}, statuses=NOT_FINISHED_STATUSES)
        at_work = [run.run_id for run in self.instance.get_runs(ours)]
        until = time.monotonic() + seconds
        while at_work and time.monotonic() < until:
            unfinished = dg.RunsFilter(run_ids=at_work, statuses=NOT_FINISHED_STATUSES)
            if self.instance.get_runs_count(unfinished) < len(at_work):
                return True
            time.sleep(ASK_SECONDS)
        return False

    def failed_since(self, moment: float) -> list[FailedRun]:
        """Runs that have ended badly since a moment (s since 1970), and why; the newest first."""
        wanted = dg.RunsFilter(
            tags={WATCH_TAG: self.branch.name},
            statuses=ENDED_BADLY,
            updated_after=datetime.fromtimestamp(moment - 1, UTC),
        )
        kinds = {dg.DagsterEventType.STEP_FAILURE, dg.DagsterEventType.RUN_FAILURE}
        found = []
        for record in self.instance.get_run_records(wanted, limit=MOST_FAILED):
            entries = self.instance.all_logs(record.dagster_run.run_id, of_type=kinds)
            found.append((record, reasons_in([one.dagster_event for one in entries if one.dagster_event])))
        return found

    def failure_of(self, version: str, since: float, failed: Sequence[FailedRun]) -> tuple[str, str, float] | None:
        """Id of the last run that failed at a version after a moment, why, and when; None where none did.

        A run that failed at other versions alone has not failed at this one.
        """
        for record, reasons in failed:
            run = record.dagster_run
            ended = record.end_time or 0.0
            if ended <= since or version not in self._covered(run):
                continue
            own = [reason for path, reason in reasons.items() if version in path.split("/")]
            if own or not any(reasons):
                said = "; ".join(dict.fromkeys(own or reasons.values()))
                return run.run_id, said or f"run {run.run_id[:8]} ended {run.status.value.lower()}", ended
        return None

    def refusal(self, run_id: str, version: str) -> str:
        """Why the model of a version cannot be evaluated, as a run's checks have found; empty where it can."""
        entries = self.instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION)
        found = [one.dagster_event.asset_check_evaluation_data for one in entries if one.dagster_event]
        model = asset_key(self.branch, "model")
        failed = [one for one in found if one.asset_key == model and one.partition == version and not one.passed]
        # What comes after the first was not looked at.
        return f"{failed[0].check_name}: {failed[0].description}" if failed else ""

    def _covered(self, run: dg.DagsterRun) -> set[str]:
        """The versions in its range."""
        if TABLE_TAG in run.tags:
            return set()
        names = (ASSET_PARTITION_RANGE_START_TAG, ASSET_PARTITION_RANGE_END_TAG)
        if names[0] not in run.tags or run.asset_selection == {asset_key(self.branch, ATTACK_CONFIG)}:
            return set(self.present)  # what all of them need
        ends = [run.tags[name].split("|")[0] for name in names]
        if not all(end in self.present for end in ends):
            return set()
        first, last = sorted(self.present.index(end) for end in ends)
        return set(self.present[first : last + 1])
