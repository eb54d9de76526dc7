"""Adversarial robustness of image classifiers, measured as a graph of Dagster assets.

>>> import dioptra_assets as da
>>> da.load("digits/evasion_metrics")  # doctest: +SKIP
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dioptra_assets.api.inspection import compare, history, metrics, show
    from dioptra_assets.api.loading import (
        Job,
        Report,
        catalog,
        cells,
        gates,
        get_job_by_id,
        load,
        materialize,
        submit_job,
        tracking_uri,
    )
    from dioptra_assets.api.registered_versions import follow, verdicts, versions

__all__ = [
    "Job",
    "Report",
    "catalog",
    "cells",
    "compare",
    "follow",
    "gates",
    "get_job_by_id",
    "history",
    "load",
    "materialize",
    "metrics",
    "show",
    "submit_job",
    "tracking_uri",
    "verdicts",
    "versions",
]


def __getattr__(name: str) -> Any:
    # Loaded when first used: the package itself is imported by every part of it.
    if name in __all__:
        from dioptra_assets.api import inspection, loading, registered_versions

        return next(getattr(room, name) for room in (loading, inspection, registered_versions) if hasattr(room, name))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__]
