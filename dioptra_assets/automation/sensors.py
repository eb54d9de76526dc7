"""What is computed without being asked: new registered models, and what became stale."""

import json
from collections import Counter

import dagster as dg

from dioptra_assets.assets.cell_context import asset_key
from dioptra_assets.assets.config_assets import ATTACK_CONFIG
from dioptra_assets.automation.jobs import unfinished_night
from dioptra_assets.registered_versions.announcing import announced
from dioptra_assets.registered_versions.registry import Seen
from dioptra_assets.registered_versions.watcher import Watcher
from partitions.definitions import dynamic_dimension
from partitions.experiments import BRANCH, ExperimentSpec
from resources.store import StoreResource
from resources.tracking.resource import Tracking, TrackingUnavailable

# The daemon looks every five seconds.
INTERVAL_SECONDS = 5
# A look that came to nothing while runs are at work waits so long for one of them to end: what its cells make possible
# begins at once, and not at the next look. A sensor has a minute, and whoever registers meanwhile waits no longer.
PATIENCE_SECONDS = 10.0
MOST_LINES = 20


def registry_sensor(spec: ExperimentSpec) -> dg.SensorDefinition:
    """Follows the registry: new versions become partitions, what they lack is asked for, verdicts go to their owners.

    The cursor holds nothing but when a webhook that was away is tried again.
    """
    watch = spec.watch
    assert watch is not None
    wanted = [f"tag {watch.tag}"] * bool(watch.tag) + [f"alias {watch.alias}"] * bool(watch.alias)
    what = repr(watch.name) + (f" with the {' and the '.join(wanted)}" if wanted else "")

    @dg.sensor(
        name=f"{spec.name}_registered_models",
        asset_selection=dg.AssetSelection.key_prefixes([spec.name, BRANCH])
        | dg.AssetSelection.assets(asset_key(spec, "testing_set"), asset_key(spec, ATTACK_CONFIG)),
        minimum_interval_seconds=INTERVAL_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING if spec.automation else dg.DefaultSensorStatus.STOPPED,
        description=f"Versions of registered models {what} become partitions of `{spec.name}/{BRANCH}`, are attacked,"
        " evaluated and gated; the verdict is written to the version in MLflow.",
    )
    def sensor(
        context: dg.SensorEvaluationContext, store: StoreResource, tracking: Tracking
    ) -> dg.SensorResult | dg.SkipReason:
        assert context.repository_def is not None
        graph = context.repository_def.asset_graph
        try:
            watcher = Watcher(spec, graph, context.instance, store.cells(), tracking)
            seen = watcher.look()
            if seen.nothing and watcher.runs.one_has_ended(PATIENCE_SECONDS):
                watcher = Watcher(spec, graph, context.instance, store.cells(), tracking)
                seen = watcher.look()
        except TrackingUnavailable as error:
            return dg.SkipReason(f"{error}; what was registered meanwhile is found when it is back")
        later = json.loads(context.cursor) if context.cursor else {}
        told, later = announced(watcher, seen, later, context.log.warning)
        dimension = dg.DynamicPartitionsDefinition(name=dynamic_dimension(spec.name, BRANCH))
        partitions = [dimension.build_delete_request(seen.gone)] if seen.gone else []
        partitions += [dimension.build_add_request(seen.new)] if seen.new else []
        for line in seen.lines:
            context.log.info(line)
        # What the nightly job computes is not computed beside it.
        requests = [] if unfinished_night(context.instance, spec.name) else seen.requests
        return dg.SensorResult(
            run_requests=requests or None,
            skip_reason=None if requests else _said(seen, what),
            dynamic_partitions_requests=partitions,
            asset_events=[*seen.events, *told],
            cursor=json.dumps(later) if later else "",
        )

    return sensor


def _said(seen: Seen, what: str) -> str:
    """What a look came to that asked for no run."""
    if seen.lines:
        more = len(seen.lines) - MOST_LINES
        return "; ".join(seen.lines[:MOST_LINES]) + (f"; and {more} more" if more > 0 else "")
    counts = Counter(verdict.status for verdict in seen.verdicts.values())
    said = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    return f"nothing new: {said}" if said else f"no registered model {what}"


def automation_sensor(spec: ExperimentSpec) -> dg.AutomationConditionSensorDefinition:
    """Evaluates the conditions of an experiment's cells, see `assets/boundary.py`; on, as the experiment asks."""
    return dg.AutomationConditionSensorDefinition(
        f"{spec.name}_automation",
        target=dg.AssetSelection.groups(spec.name),
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Computes every missing or stale cell of {spec.name}.",
    )
