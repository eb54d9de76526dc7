"""One look at the registry: which versions are new, changed or gone, what has to run, and what has been found.

Nothing is remembered between two looks but what Dagster knows anyway: the verdicts that were reported, which runs were
asked for, and what is materialized. A cursor that is lost, a daemon or a run that was killed and an MLflow that was
away lose no version, and make none twice.
"""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import dagster as dg
import pandas as pd

from dioptra_assets.assets.cell_context import asset_key
from dioptra_assets.assets.registered_models import SEPARATOR, VERSIONS
from dioptra_assets.dagster_internals import DATA_VERSION_TAG
from dioptra_assets.registered_versions.judging import gate_bench, held_up, judged, shown_gates
from dioptra_assets.registered_versions.planning import VERSIONS_PER_RUN, look
from dioptra_assets.registered_versions.registry import Seen, watched_versions
from dioptra_assets.registered_versions.run_requests import run_requests, versions_table
from dioptra_assets.registered_versions.runs_so_far import AskedRuns, Places
from dioptra_assets.registered_versions.stored import digest_of, forget, registered_at
from dioptra_assets.registered_versions.verdicts import Verdict, events_of, pause, shortened, verdicts_of
from partitions.attacks import attack_document
from partitions.definitions import dynamic_dimension
from partitions.experiments import BRANCH, ExperimentSpec, branch_of
from partitions.keys import ARCHITECTURE, ATTACK, is_key
from resources.store import CellStore
from resources.tracking.resource import Tracking

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

GIVE_UP_TAG = "dioptra_assets.give_up"
# From so many failed tries on a version is tried in a run of its own: what kills a run must not take others with it.
TRIES_TOGETHER = 1
# Seconds that one look may spend on judging; a sensor has a minute.
PATIENCE = 20


@dataclass
class Watcher:
    """Looks at the registry for one experiment.

    Attributes:
        spec: the experiment.
        graph: the asset graph.
        instance: Dagster.
        store: where cells are.
        tracking: MLflow.
        now: the time, in s since 1970.
    """

    spec: ExperimentSpec
    graph: Any
    instance: dg.DagsterInstance
    store: CellStore
    tracking: Tracking
    now: float = field(default_factory=time.time)

    @cached_property
    def branch(self) -> ExperimentSpec:
        """The experiment as its branch of registered models sees it."""
        return branch_of(self.spec)

    @cached_property
    def assets(self) -> list[dg.AssetKey]:
        """What a verdict rests on, each after those it is made from."""
        wanted = {asset_key(self.branch, "model")}
        for key in self.graph.get_all_asset_keys():
            if key.path[:2] == [self.spec.name, BRANCH] and self.graph.get(key).is_materializable:
                wanted.add(key)
        wanted.discard(asset_key(self.branch, VERSIONS))
        for key in list(wanted):
            wanted |= {one for one in self.graph.get_ancestor_asset_keys(key) if one.path[0] == self.spec.name}
        return [key for level in self.graph.toposorted_asset_keys_by_level for key in sorted(level) if key in wanted]

    @cached_property
    def gates(self) -> list[dg.AssetKey]:
        """Of these, those that a verdict is not read from: a gate that does not hold has no cell."""
        return [key for key in self.assets if key.path[-1].endswith("_gate")]

    @cached_property
    def present(self) -> list[str]:
        """The versions that are partitions, in the order that Dagster keeps."""
        return list(self.instance.get_dynamic_partitions(dynamic_dimension(self.spec.name, BRANCH)))

    @cached_property
    def runs(self) -> AskedRuns:
        """The runs that were asked for."""
        return AskedRuns(self.branch, self.instance, self.present)

    @cached_property
    def declared(self) -> str:
        """Hash of all that the file and the code say."""
        spec = self.branch
        facts = {
            "attacks": {key: attack_document(attack) for key, attack in spec.attacks.items()},
            "gates": [gate.model_dump() for gate in spec.gates],
            "seed": spec.seed,
            "code": {key.to_user_string(): self.graph.get(key).code_version for key in self.assets},
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()

    def _data_versions(self, asset: str) -> dict[str, str]:
        """Partition -> data version; of an asset without partitions under the name ``""``."""
        key = asset_key(self.branch, asset)
        if self.graph.get(key).partitions_def is None:
            event = self.instance.get_latest_materialization_event(key)
            made = event.asset_materialization if event else None
            return {"": (made.tags or {}).get(DATA_VERSION_TAG, "")} if made else {}
        found = self.instance.event_log_storage.get_latest_tags_by_partition(
            key, dg.DagsterEventType.ASSET_MATERIALIZATION, [DATA_VERSION_TAG]
        )
        return {partition: tags.get(DATA_VERSION_TAG, "") for partition, tags in found.items()}

    def look(self) -> Seen:
        """See what is in the registry, judge what can be judged, and ask for what has to run.

        Raises:
            TrackingUnavailable: MLflow does not answer.
        """
        seen = Seen()
        watched, existing = watched_versions(self.spec, self.tracking)
        for key in [key for key in watched if not is_key(key)]:
            seen.lines.append(f"{key!r} cannot be a partition key: register the model under a plainer name")
            del watched[key]
        seen.watched = watched
        seen.gone = sorted(set(self.present) - set(existing))
        seen.new = [key for key in watched if key not in self.present]
        known = verdicts_of(self.spec.name, self.instance)
        images, models = self._data_versions("testing_set"), self._data_versions("model")
        gated = self._gated()
        unsettled = []
        busy, places = self.runs.in_flight()
        for key, version in watched.items():
            before = known.get(key)
            made_from = (self.declared, version.creation_timestamp, images, models.get(key))
            inputs = hashlib.sha256(str(made_from).encode()).hexdigest()
            registered = before.registered if before else registered_at(self.branch, self.store, key)
            if registered not in (None, version.creation_timestamp):
                # Another model under the same number: nothing of the one before may be read as if it were this one's.
                forget([asset for asset in self.assets if asset.path[1] == BRANCH], self.store, key)
                before = None
            if GIVE_UP_TAG in version.tags:
                why = f"given up by a person, with the tag {GIVE_UP_TAG}"
                seen.verdicts |= {key: before} if before else {}
                self._conclude(seen, key, self._verdict("not judged", version, why=why, inputs="given up"))
                continue
            if before and before.status != "waiting" and before.inputs == inputs:
                seen.verdicts[key] = before
                if before.status == "passed" and key not in gated and key not in busy:
                    unsettled.append((key, inputs))
                continue
            if before is None or before.status != "waiting" or before.inputs != self.declared:
                # New, declared anew, or made from something else: what was found before is not what holds now.
                digest = before.digest if before else ""
                before = self._verdict("waiting", version, digest=digest, inputs=self.declared)
                self._report(seen, key, before)
            seen.verdicts[key] = before
            # One that comes back is a partition first, so that Dagster can tell what of it is stale.
            if key not in busy and not (key in seen.new and key in models):
                unsettled.append((key, inputs))
        unsettled.sort(key=lambda one: self._turn(seen.verdicts[one[0]]))
        self._advance(seen, unsettled[: 2 * VERSIONS_PER_RUN], places)
        if not seen.requests:
            seen.requests = versions_table(self.branch, self.instance, seen.verdicts)
        return seen

    def _turn(self, verdict: Verdict) -> tuple[bool, bool, float]:
        """Sorts versions: whoever has waited longest since he came, or since his last try, is first.

        Those that are to be tried later, and those that have their verdict, keep nobody from his.
        """
        return verdict.next_try > self.now, verdict.status != "waiting", verdict.at

    def _advance(self, seen: Seen, unsettled: Sequence[tuple[str, str]], places: Places) -> None:
        """Judge the versions whose numbers are up to date, and ask for what the others lack."""
        if not unsettled:
            return
        inputs = dict(unsettled)
        keys = {ARCHITECTURE: list(inputs), ATTACK: list(self.branch.attacks)}
        todo = look(self.graph, self.assets, keys, self.instance, self.store)
        failed = self.runs.failed_since(min(seen.verdicts[key].at for key in inputs))
        numbers = [key for key in self.assets if key not in self.gates]
        ready = {key for key in inputs if not todo.of(key, numbers)}
        bench = gate_bench(self.branch, self.store, self.tracking, seen, ready)
        started = time.monotonic()
        waiting = []
        for key, rests_on in inputs.items():
            version, before = seen.watched[key], seen.verdicts[key]
            if key in ready and before.status == "waiting":
                if time.monotonic() - started > PATIENCE:
                    continue  # the next look goes on
                status, why, table = judged(bench, key)
                if reason := held_up(self.branch, seen, key, table):
                    if before.why != reason:
                        self._report(seen, key, before.model_copy(update={"why": reason}))
                    continue
                self._conclude(seen, key, self._verdict(status, version, why=why, inputs=rests_on), table)
            if seen.verdicts[key].status != "waiting":
                # The cells of its gates are shown, and spare later versions a judgement; no verdict waits for them.
                passed = key in ready and seen.verdicts[key].status == "passed"
                if passed and not self.runs.failure_of(key, seen.verdicts[key].at, failed):
                    waiting.append(key)
                continue
            if (failure := self.runs.failure_of(key, before.at, failed)) is not None:
                run_id, reason, ended = failure
                if refused := shortened(self.runs.refusal(run_id, key)):
                    found = self._verdict("not judged", version, why=refused, inputs=rests_on)
                    self._conclude(seen, key, found)
                    continue
                tries = before.tries + 1
                facts = {"tries": tries, "next_try": int(self.now + pause(tries)), "why": shortened(reason)}
                facts["at"] = max(self.now, ended)  # this run has been looked at
                before = self._verdict("waiting", version, digest=before.digest, inputs=before.inputs, **facts)
                self._report(seen, key, before, {"failed run": dg.MetadataValue.dagster_run(run_id)})
            if before.next_try <= self.now:
                waiting.append(key)
            else:
                seen.lines.append(f"{key}: {before.sentence}")
        order = [key for key in self.present if key not in seen.gone] + seen.new
        alone = {key for key in waiting if seen.verdicts[key].tries > TRIES_TOGETHER}
        seen.requests = run_requests(self.branch, todo, waiting, order, at_work=places, alone=alone)

    def _gated(self) -> set[str]:
        """The versions that have every cell of every gate."""
        cells = Counter(
            key.split("|")[0] for asset in self.gates for key in self.instance.get_materialized_partitions(asset)
        )
        return {key for key, count in cells.items() if count >= len(self.gates) * len(self.branch.attacks)}

    def _conclude(self, seen: Seen, key: str, found: Verdict, table: pd.DataFrame | None = None) -> None:
        """Report a verdict, unless it is the one that was reported last."""
        found = found.model_copy(update={"digest": digest_of(self.branch, self.store, key)})
        before = seen.verdicts.get(key)
        if before and before.model_copy(update={"at": found.at}) == found:
            return
        shown = {}
        if table is not None and len(table):
            shown["gates"] = dg.MetadataValue.md(shown_gates(table))
        self._report(seen, key, found, shown)

    def _verdict(self, status: Any, version: "ModelVersion", **facts: Any) -> Verdict:
        return Verdict(**{"status": status, "registered": version.creation_timestamp, "at": self.now, **facts})

    def _report(self, seen: Seen, key: str, verdict: Verdict, metadata: dict[str, Any] | None = None) -> None:
        name, _, number = key.rpartition(SEPARATOR)
        links = {"MLflow": dg.MetadataValue.url(self.tracking.model_page(name, number)), **(metadata or {})}
        seen.events += events_of(self.spec, key, verdict, links)
        seen.verdicts[key] = verdict
        seen.lines.append(f"{key}: {verdict.sentence}")
