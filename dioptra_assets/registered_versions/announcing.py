"""Verdicts where their owners look: on the model version in MLflow, and in a message to a webhook."""

import re
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import dagster as dg

from dioptra_assets.assets.cell_context import asset_key
from dioptra_assets.dagster_internals import DATA_VERSION_TAG
from dioptra_assets.registered_versions.verdicts import VERDICT, Verdict, pause
from partitions.experiments import ExperimentSpec
from resources import settings
from resources.tracking.client import without_user
from resources.tracking.resource import Tracking, TrackingUnavailable
from resources.webhook import WebhookError, plain, post

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

    from dioptra_assets.registered_versions.registry import Seen
    from dioptra_assets.registered_versions.watcher import Watcher

# Seconds of one look at the registry that are spent on writing to it; the rest is written at the next.
PATIENCE = 10
# A version that has failed so often without a verdict is told of.
TELL_AFTER = 4
MOST_LINES = 20


def page_of(spec: ExperimentSpec, version: str) -> str:
    """Where Dagster shows a verdict."""
    asset = "/".join(asset_key(spec, VERDICT).path)
    return f"{without_user(settings.dagster_ui())}/assets/{asset}?view=partitions&partition={quote(version, safe='')}"


def marks(spec: ExperimentSpec, key: str, verdict: Verdict) -> dict[str, str | None]:
    """The tags of a model version in MLflow that say what became of it in an experiment; None takes one away."""
    prefix = f"dioptra_assets.{spec.name}"
    return {
        f"{prefix}.verdict": verdict.status,
        f"{prefix}.why": verdict.why or None,
        f"{prefix}.digest": verdict.digest or None,
        f"{prefix}.next_try": verdict.sentence.partition("(next try at ")[2].partition(")")[0] or None,
        f"{prefix}.link": page_of(spec, key),
    }


def described(spec: ExperimentSpec, key: str, verdict: Verdict, before: str) -> str:
    """The description of a model version with a paragraph on its verdict; what its owner wrote stays."""
    begin, end = f"<!-- dioptra_assets {spec.name} -->", f"<!-- /dioptra_assets {spec.name} -->"
    own = re.sub(rf"\n*{re.escape(begin)}.*?{re.escape(end)}", "", before, flags=re.DOTALL)
    sentence = plain(verdict.sentence).replace("--", "- -")
    paragraph = (
        f"{begin}\n**dioptra-assets, experiment {spec.name}**: {sentence} ([details]({page_of(spec, key)}))\n{end}"
    )
    return f"{own}\n\n{paragraph}" if own else paragraph


def write_to_registry(
    spec: ExperimentSpec, watched: Mapping[str, "ModelVersion"], verdicts: Mapping[str, Verdict], tracking: Tracking
) -> None:
    """Write to MLflow what does not stand there yet: new verdicts, and those that it was away for.

    Raises:
        TrackingUnavailable: MLflow does not answer; the next look writes the rest.
    """
    started = time.monotonic()
    for key, version in watched.items():
        verdict = verdicts.get(key)
        if verdict is None or time.monotonic() - started > PATIENCE:
            continue
        description = described(spec, key, verdict, version.description or "")
        tracking.mark_version(version, marks(spec, key, verdict), description)


def untold(spec: ExperimentSpec, verdicts: Mapping[str, Verdict], instance: dg.DagsterInstance) -> dict[str, Verdict]:
    """The verdicts that no message has told: failed, not judged, or none for a long time."""
    if not spec.gates:
        return {}
    told = instance.event_log_storage.get_latest_tags_by_partition(
        asset_key(spec, VERDICT), dg.DagsterEventType.ASSET_OBSERVATION, [DATA_VERSION_TAG]
    )
    bad = {
        key: one
        for key, one in verdicts.items()
        if one.status in ("failed", "not judged") or (one.status == "waiting" and one.tries >= TELL_AFTER)
    }
    return {key: one for key, one in bad.items() if told.get(key, {}).get(DATA_VERSION_TAG) != _subject(one)}


def tell(spec: ExperimentSpec, verdicts: Mapping[str, Verdict]) -> list[dg.AssetObservation]:
    """Send one message on some verdicts.

    Returns:
        What Dagster is told, so that none is told again.

    Raises:
        WebhookError: it was not taken.
    """
    assert spec.notify is not None
    lines = [
        f"• {plain(key)}: {plain(one.sentence)} (<{page_of(spec, key)}|details>)"
        for key, one in list(verdicts.items())[:MOST_LINES]
    ]
    if len(verdicts) > MOST_LINES:
        lines.append(f"• and {len(verdicts) - MOST_LINES} more")
    try:
        url = spec.notify.address()
    except ValueError as error:
        raise WebhookError(str(error)) from None
    post(url, f"*dioptra-assets, experiment {plain(spec.name)}*\n" + "\n".join(lines))
    return [
        dg.AssetObservation(
            asset_key(spec, VERDICT),
            partition=key,
            description="the webhook was told",
            tags={DATA_VERSION_TAG: _subject(one)},
        )
        for key, one in verdicts.items()
    ]


def _subject(verdict: Verdict) -> str:
    """What a message was about; every try of a version that waits is one subject."""
    return verdict.id if verdict.status != "waiting" else f"waiting {verdict.registered}"


def told_or_later(
    spec: ExperimentSpec,
    verdicts: Mapping[str, Verdict],
    instance: dg.DagsterInstance,
    later: Mapping[str, Any],
    now: float,
) -> tuple[list[dg.AssetObservation], dict[str, Any]]:
    """Tell what is untold, unless the webhook was away a short time ago.

    Args:
        spec: the experiment.
        verdicts: `NAME@VERSION` -> what became of it.
        instance: where it is recorded who was told.
        later: what this gave the last time.
        now: the time, in s since 1970.

    Returns:
        What Dagster is told; and where the webhook did not take it, why, when it is tried again and after how many
        tries.
    """
    if spec.notify is None or not (news := untold(spec, verdicts, instance)):
        return [], {}
    if later and now < later["next"]:
        return [], dict(later)
    try:
        return tell(spec, news), {}
    except WebhookError as error:
        tries = int(later.get("tries", 0)) + 1
        return [], {"tries": tries, "next": int(now + pause(tries)), "why": str(error), "untold": len(news)}


def announced(
    watcher: "Watcher", seen: "Seen", later: Mapping[str, Any], log: Callable[[str], None]
) -> tuple[list[dg.AssetObservation], dict[str, Any]]:
    """Write the verdicts to MLflow and tell the webhook; what is away is for the next time.

    Returns:
        What Dagster is told, and when the webhook is tried again.
    """
    try:
        write_to_registry(watcher.spec, seen.watched, seen.verdicts, watcher.tracking)
    except TrackingUnavailable as error:
        log(f"{error}; the verdicts are written when it is back")
    told, later = told_or_later(watcher.spec, seen.verdicts, watcher.instance, later, watcher.now)
    if later:
        when = datetime.fromtimestamp(later["next"], UTC)
        log(f"{later['why']}; {later['untold']} verdicts are told when it is back, next try at {when:%H:%M:%S} UTC")
    return told, later
