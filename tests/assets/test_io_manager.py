"""Dagster's own ways of loading give what `da.load` gives: `load_asset_value`, and inputs of a user's own assets."""

from collections.abc import Iterator
from typing import Any

import dagster as dg
import numpy as np
import pytest

import dioptra_assets as da
from dioptra_assets.assets.boundary import IO_MANAGER
from dioptra_assets.robustness.image_set import ImageSet
from resources.store import MissingCellError
from tests.conftest import Lab

ATTACKS = dg.StaticPartitionsDefinition(["fgm_0.1", "fgm_0.3", "weak"])
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


def tiny(name: str) -> dg.AssetIn:
    return dg.AssetIn(dg.AssetKey(["tiny", name]))


@dg.asset(ins={"testing_set": tiny("testing_set"), "configs": tiny("attack_config")})
def all_cells(testing_set: ImageSet, configs: dict[str, Any]) -> dict[str, float]:
    assert np.asarray(testing_set).shape == (180, 16, 16, 1)
    return {key: config.eps for key, config in configs.items()}


@dg.asset(ins={"attack": tiny("attack_config")}, partitions_def=ATTACKS)
def of_a_partition(attack: Any) -> float:
    return attack.eps


@dg.asset
def from_own(all_cells: dict[str, float]) -> int:
    return len(all_cells)


@dg.asset(io_manager_key=IO_MANAGER)
def writes_through_the_wrong_manager() -> int:
    return 1


@pytest.fixture
def running(blank: Lab) -> Iterator[tuple[dg.Definitions, dg.DagsterInstance]]:
    """A user's own assets beside an experiment that has its testing set and its attack configs."""
    own = [all_cells, of_a_partition, from_own, writes_through_the_wrong_manager]
    assert blank.run("testing_set").success and blank.run("attack_config", "fgm_0.1", "weak").success
    with blank.instance() as instance:
        yield dg.Definitions.merge(blank.defs(), dg.Definitions(assets=own)), instance


def test_dagster_loads_what_is_stored_and_the_assets_of_a_user_are_made_from_it(
    running: tuple[dg.Definitions, dg.DagsterInstance], blank: Lab
) -> None:
    defs, instance = running
    job = defs.resolve_implicit_global_asset_job_def()

    def run(*assets: str, partition_key: str | None = None) -> dg.ExecuteInProcessResult:
        return job.execute_in_process(
            asset_selection=[dg.AssetKey(asset) for asset in assets],
            partition_key=partition_key,
            instance=instance,
            raise_on_error=False,
            run_config=QUIET,
        )

    # As Dagster documents it.
    testing_set: Any = defs.load_asset_value(["tiny", "testing_set"], instance=instance)
    assert np.array_equal(np.asarray(testing_set), np.asarray(da.load("tiny/testing_set")))
    config: Any = defs.load_asset_value(["tiny", "attack_config"], partition_key="weak", instance=instance)
    assert config == da.load("tiny/attack_config", attack="weak")
    with pytest.raises(MissingCellError, match="tiny/model/le_net has not been materialized"):
        defs.load_asset_value(["tiny", "model"], partition_key="le_net", instance=instance)
    # All partitions, the one that is the asset's own, and an asset of the user's that is stored where it was.
    done = run("all_cells", "from_own")
    assert done.success and done.output_for_node("all_cells") == {"fgm_0.1": 0.1, "fgm_0.3": 0.3, "weak": 0.05}
    assert done.output_for_node("from_own") == 3
    assert run("of_a_partition", partition_key="fgm_0.3").output_for_node("of_a_partition") == 0.3
    refused = run("writes_through_the_wrong_manager")
    assert not refused.success and "stores nothing; leave out io_manager_key" in str(refused.all_events)
    # What the experiment reports is one event a cell, as before.
    assert len(blank.events("testing_set")) == 1 and len(blank.events("attack_config")) == 3
