"""Asset checks of one cell each, without a warning at every start that Dagster may change them."""

import warnings
from typing import Any

import dagster as dg


def partitioned_check(name: str, **facts: Any) -> dg.AssetCheckSpec:
    """A check that is judged partition by partition, as `AssetCheckSpec` takes it.

    Dagster calls that a preview, and says so in every process that loads the code. The version is pinned, and a test
    looks at what it does.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.PreviewWarning)
        return dg.AssetCheckSpec(name, **facts)
