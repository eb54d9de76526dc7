"""What became of each registered version: passed, failed, not judged, or waiting for its next try.

Every change of it is an event of the asset `registered_model/verdict` at the version's partition, and is kept nowhere
else: the UI, the command line, MLflow and the next look at the registry all read that.
"""

import hashlib
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

import dagster as dg
from pydantic import BaseModel, ConfigDict, ValidationError

from dioptra_assets.assets.cell_context import DIMENSIONS, asset_key
from dioptra_assets.assets.gate_evidence import gated_families
from dioptra_assets.assets.ui_metadata import shown
from dioptra_assets.dagster_internals import DATA_VERSION_TAG
from partitions.definitions import partitions_of
from partitions.experiments import BRANCH, ExperimentSpec, branch_of
from partitions.keys import ARCHITECTURE

VERDICT = f"{BRANCH}/verdict"
LONGEST_REASON = 600
# The pauses between tries, in seconds: each twice the one before.
FIRST_PAUSE, LONGEST_PAUSE = 30, 3600

Status = Literal["passed", "failed", "not judged", "waiting"]


def pause(tries: int) -> int:
    """Seconds until the next try, after so many have failed."""
    return min(FIRST_PAUSE * 2 ** (max(tries, 1) - 1), LONGEST_PAUSE)


class Verdict(BaseModel):
    """What is known of a version.

    Attributes:
        status: what became of it.
        why: the rules that do not hold, what stands in the way, or why the last try failed.
        digest: SHA-256 of the model file; empty while it has not been fetched.
        registered: when it was registered, in ms since 1970: another time is another model, whatever its number.
        inputs: hash of all that the verdict rests on; another hash asks for another verdict.
        tries: how many runs in a row have failed.
        next_try: when a waiting version is tried again, in s since 1970.
        at: when this was found, in s since 1970.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    status: Status
    why: str = ""
    digest: str = ""
    registered: int = 0
    inputs: str = ""
    tries: int = 0
    next_try: int = 0
    at: float = 0.0

    @property
    def id(self) -> str:
        """Names the verdict, whenever it is found again."""
        facts = f"{self.status}|{self.why}|{self.digest}|{self.registered}"
        return hashlib.sha256(facts.encode()).hexdigest()[:16]

    @property
    def sentence(self) -> str:
        """The status in the words that are shown everywhere."""
        if self.status == "waiting":
            when = datetime.fromtimestamp(self.next_try, UTC)
            then = f"waiting (next try at {when:%Y-%m-%d %H:%M:%S} UTC)" if self.tries else "waiting (next try at once)"
            return f"{then}: {self.why}" if self.why else then
        if self.status == "not judged":
            return f"not judged ({self.why})"
        return f"{self.status}: {self.why}" if self.why else self.status


def verdict_assets(spec: ExperimentSpec) -> list[dg.AssetSpec]:
    """`registered_model/verdict`: reported by the sensor, not computed by a run."""
    branch = branch_of(spec)
    key, partitions = asset_key(spec, VERDICT), partitions_of(branch, (ARCHITECTURE,))
    asset = dg.AssetSpec(
        key,
        deps=[asset_key(branch, "evasion_gate" if gated_families(branch) else "evasion_metrics")],
        description="What became of each registered version: passed, failed, not judged (why), or waiting (next try"
        " at). Reported by the sensor that watches the registry.",
        group_name=spec.name,
        kinds={"mlflow"},
        owners=list(spec.owners),
        partitions_def=partitions,
        metadata={DIMENSIONS: [ARCHITECTURE]},
    )
    return [asset]


def verdicts_of(experiment: str, instance: dg.DagsterInstance) -> dict[str, Verdict]:
    """`NAME@VERSION` -> what became of it, of every version that an experiment has ever watched."""
    key = dg.AssetKey([experiment, *VERDICT.split("/")])
    found = instance.event_log_storage.get_latest_tags_by_partition(
        key, dg.DagsterEventType.ASSET_MATERIALIZATION, [DATA_VERSION_TAG]
    )
    verdicts = {}
    for version, tags in found.items():
        try:
            verdicts[version] = Verdict.model_validate_json(tags.get(DATA_VERSION_TAG, ""))
        except ValidationError:
            continue  # reported by hand, in the UI
    return verdicts


def events_of(
    spec: ExperimentSpec, version: str, verdict: Verdict, metadata: Mapping[str, Any]
) -> list[dg.AssetMaterialization]:
    """What Dagster is told of a verdict."""
    key = asset_key(spec, VERDICT)
    facts: dict[str, Any] = {"verdict": verdict.status}
    facts |= {"why": verdict.why} if verdict.why else {}
    facts |= {"sha256 of the model file": verdict.digest} if verdict.digest else {}
    if verdict.status == "waiting":
        facts |= {
            "next try": dg.MetadataValue.timestamp(float(verdict.next_try or time.time())),
            "failed tries": verdict.tries,
        }
    materialization = dg.AssetMaterialization(
        key,
        description=verdict.sentence,
        partition=version,
        metadata=shown({**facts, **metadata}),
        tags={DATA_VERSION_TAG: verdict.model_dump_json(), "dagster/data_version_is_user_provided": "true"},
    )
    return [materialization]


def shortened(text: str) -> str:
    """Text that fits a tag of MLflow and a message."""
    return text if len(text) <= LONGEST_REASON else text[: LONGEST_REASON - 3] + "..."
