"""What a step does that may be one of several tries, or work for a run that has ended.

Why: docs/decisions/0024-a-remote-store-that-is-away.md
"""

from collections.abc import Sequence
from pathlib import Path

import dagster as dg

from dioptra_assets.dagster_internals import (
    FINISHED_STATUSES,
    RETRY_NUMBER_TAG,
    ROOT_RUN_ID_TAG,
    DagsterSqliteStorage,
)
from partitions.experiments import ExperimentSpec
from resources import settings
from resources.claims import keep_to_claim
from resources.store import CellStore, StoreError, StoreRefusedError, command_for

# How often, and after how long, a step whose remote store did not answer is tried again.
STORE_RETRIES = 3
STORE_RETRY_SECONDS = 10
# How Dagster's command line names the home that it makes where it is given none.
TEMPORARY_HOME = ".tmp_dagster_home_"


class RunEndedError(RuntimeError):
    """The run that this process works for has ended: what it computed must not be published any more."""


def left_to_do(
    context: dg.AssetExecutionContext, asset: dg.AssetKey, keys: Sequence[str | None]
) -> Sequence[str | None]:
    """The partitions less those that an earlier try of this run has reported; all where a person runs it again."""
    tries = {context.run_id} if context.retry_number else set()
    if RETRY_NUMBER_TAG in context.run.tags:
        root = context.run.tags[ROOT_RUN_ID_TAG]
        others = context.instance.get_run_records(dg.RunsFilter(tags={ROOT_RUN_ID_TAG: root}))
        tries |= {root, *(record.dagster_run.run_id for record in others)}
    if not tries:
        return keys
    kept: set[str | None] = set()
    for key in keys:
        wanted = dg.AssetRecordsFilter(asset_key=asset, asset_partitions=[key] if key else None)
        records = context.instance.fetch_materializations(wanted, limit=1).records
        if records and records[0].run_id in tries:
            kept.add(key)
    if kept:
        context.log.info(f"{len(kept)} of {len(keys)} cells were done by the try before this one")
    return [key for key in keys if key not in kept]


def try_again_where_the_store_is_away(context: dg.AssetExecutionContext, store: CellStore, error: Exception) -> None:
    """A server that is down comes back: the step begins again, and keeps the cells that are done.

    One that refuses will refuse again.
    """
    away = isinstance(error, StoreError) and not isinstance(error, StoreRefusedError)
    if away and store.remote and context.retry_number < STORE_RETRIES:
        context.log.warning(f"{error}: trying again in {STORE_RETRY_SECONDS} s")
        raise dg.RetryRequested(STORE_RETRIES, STORE_RETRY_SECONDS) from error


def refuse_temporary_home(context: dg.AssetExecutionContext, asset: str) -> None:
    """Without a home, `dg launch` records a run in a folder that goes with it, and would store its cells here.

    In this project's folder, `dagster.yaml` names the home to it. Elsewhere `DAGSTER_HOME` must.

    Raises:
        Failure: naming the setting, and the command that needs none.
    """
    storage = context.instance.get_ref().storage_data
    embedded = storage is not None and storage.class_name == DagsterSqliteStorage.__name__
    if embedded and Path(context.instance.root_directory).name.startswith(TEMPORARY_HOME):
        raise dg.Failure(
            f"DAGSTER_HOME is not set, so Dagster keeps the record of this run in a temporary folder: nobody would know"
            f" where the cells came from. Nothing was computed. Run `export DAGSTER_HOME={settings.home()}` first, or"
            f" `{command_for(asset, '')}`",
            allow_retries=False,
        )


def refuse_before_work(context: dg.AssetExecutionContext, store: CellStore, spec: ExperimentSpec, asset: str) -> None:
    """Refuse a step whose cells would be recorded nowhere, or replace those of another checkout.

    Raises:
        Failure: see :func:`refuse_temporary_home`.
        ClaimedError: see :func:`resources.claims.keep_to_claim`.
    """
    refuse_temporary_home(context, asset)
    if spec.folder and not spec.dynamic:  # where nothing is declared, keys carry what is meant
        try:
            keep_to_claim(store, spec.name, spec.folder, spec.digest)
        except StoreError as error:
            try_again_where_the_store_is_away(context, store, error)
            raise


def refuse_ended_run(context: dg.AssetExecutionContext) -> None:
    """Called last before a value is published: a run that was ended meanwhile publishes nothing."""
    ended = dg.RunsFilter(run_ids=[context.run_id], statuses=FINISHED_STATUSES)
    if context.instance.get_runs_count(ended) and (run := context.instance.get_run_by_id(context.run_id)):
        raise RunEndedError(
            f"run {context.run_id} ended ({run.status.value}) before this cell did: it is not published"
        )
