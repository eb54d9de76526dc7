"""Registered versions from Python: what became of each, their robustness over time, and judging them here and now."""

import os
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pandas as pd

from dioptra_assets.assets.registered_models import version_table
from dioptra_assets.registered_versions.verdicts import verdicts_of
from partitions.definitions import dynamic_dimension
from partitions.experiments import BRANCH
from resources import settings
from resources.instance import home_instance
from resources.store import CellStore

if TYPE_CHECKING:
    from dagster import DagsterInstance


def versions(experiment: str) -> pd.DataFrame:
    """The registered versions that an experiment has attacked: what became of their robustness over time.

    Args:
        experiment: its name.

    Returns:
        One row per version and attack: `name`, `version`, `registered` (UTC), `attack`, `n`, and `clean_accuracy` and
        `robust_accuracy`, each with its 95 % interval `_low` to `_high`.

    Raises:
        LookupError: when no registered model has been attacked.
    """
    table = version_table(CellStore(settings.store_url()), experiment, versions=_registered(experiment))
    if table.empty:
        raise LookupError(f"{experiment}: no registered model has been attacked; `watch` in its file says which are")
    return table


def verdicts(experiment: str) -> pd.DataFrame:
    """What became of every registered version that an experiment watches.

    Args:
        experiment: its name.

    Returns:
        One row per version: `version` (`NAME@VERSION`), `status` (passed, failed, not judged or waiting), `why`,
        `tries` that have failed in a row, `next_try` and `found` (UTC), and `digest`, the SHA-256 of the model file.
    """
    with home_instance() as instance:
        present = _registered(experiment, instance)
        known = {key: verdict for key, verdict in verdicts_of(experiment, instance).items() if key in present}
    rows = [
        {
            "version": key,
            "status": verdict.status,
            "why": verdict.why,
            "tries": verdict.tries,
            "next_try": pd.Timestamp(verdict.next_try, unit="s", tz="UTC") if verdict.status == "waiting" else pd.NaT,
            "found": pd.Timestamp(verdict.at, unit="s", tz="UTC"),
            "digest": verdict.digest,
        }
        for key, verdict in sorted(known.items(), key=lambda item: item[1].registered)
    ]
    return pd.DataFrame(rows, columns=["version", "status", "why", "tries", "next_try", "found", "digest"])


def follow(experiment: str, log: Callable[[str], None] = print) -> pd.DataFrame:
    """Judge the registered versions that an experiment watches, in this process; a daemon does it by itself.

    Args:
        experiment: its name, e.g. `watched`.
        log: gets a line for each run and verdict.

    Returns:
        What became of each, as :func:`verdicts` gives it.

    Raises:
        UnknownExperimentError: when there is no such experiment, or it watches nothing.
        TrackingUnavailable: when MLflow does not answer.
    """
    from dioptra_assets.definitions import defs, experiment_spec, resource_definitions
    from dioptra_assets.registered_versions.follow import follow as follow_registry
    from dioptra_assets.runs.launch import UnknownExperimentError

    spec = experiment_spec(experiment)
    if not spec.watch:
        raise UnknownExperimentError(f"experiment {experiment!r} watches nothing: its file has no `watch`")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    tracking: Any = resource_definitions()["tracking"]
    with warnings.catch_warnings(), home_instance() as instance:
        warnings.simplefilter("ignore")
        store = CellStore(settings.store_url())
        follow_registry(defs(), spec, instance=instance, store=store, tracking=tracking, log=log)
    return verdicts(experiment)


def _registered(experiment: str, instance: "DagsterInstance | None" = None) -> list[str]:
    """The versions that are partitions: those that the registry held at the last look."""
    if instance is None:
        with home_instance() as opened:
            return _registered(experiment, opened)
    return list(instance.get_dynamic_partitions(dynamic_dimension(experiment, BRANCH)))
