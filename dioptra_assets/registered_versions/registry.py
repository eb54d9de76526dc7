"""What is in the registry, and what one look at it came to."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import dagster as dg

from dioptra_assets.assets.registered_models import version_key
from dioptra_assets.registered_versions.verdicts import Verdict
from partitions.experiments import ExperimentSpec
from resources.tracking.resource import Tracking

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion


@dataclass
class Seen:
    """What one look came to.

    Attributes:
        new: versions that are no partitions yet.
        gone: partitions whose version is in the registry no more.
        requests: runs to be started.
        events: verdicts to be reported.
        verdicts: what is known of every watched version, after this look.
        watched: the watched versions, the oldest first.
        lines: what a person should read.
    """

    new: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    requests: list[dg.RunRequest] = field(default_factory=list)
    events: list[Any] = field(default_factory=list)
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    watched: dict[str, "ModelVersion"] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)

    @property
    def nothing(self) -> bool:
        """Whether there is nothing to be started and nothing to be kept."""
        return not (self.new or self.gone or self.requests or self.events)


def watched_versions(spec: ExperimentSpec, tracking: Tracking) -> tuple[dict[str, "ModelVersion"], list[str]]:
    """`NAME@VERSION` -> version of all that an experiment watches, the oldest first; and the keys of all there are.

    Raises:
        TrackingUnavailable: MLflow does not answer.
    """
    watch = spec.watch
    assert watch is not None
    versions = tracking.registered_versions()
    aliases = tracking.aliases() if watch.alias else {}
    taken = [one for one in versions if watch.takes(one.name, one.tags, aliases.get((one.name, str(one.version)), ()))]
    return (
        {version_key(one.name, one.version): one for one in taken},
        [version_key(one.name, one.version) for one in versions],
    )
