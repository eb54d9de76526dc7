"""Automation: what is asked for when something changed, and that nothing is when it was merely computed again."""

import warnings
from datetime import UTC, datetime
from typing import Any

import dagster as dg
import pytest

from dioptra_assets.automation.jobs import NIGHTLY_JOB
from tests.conftest import EXPERIMENT, Lab


class Daemon:
    """Evaluates the conditions of the experiment tick by tick, as the daemon does, and runs what they ask for."""

    def __init__(self, lab: Lab, instance: dg.DagsterInstance) -> None:
        self.lab, self.instance = lab, instance
        self.cursor: Any = None

    def tick(self, *, run: bool = True) -> set[str]:
        """Paths of the cells that are asked for."""
        evaluated = dg.evaluate_automation_conditions(self.lab.defs(), self.instance, cursor=self.cursor)
        self.cursor = evaluated.cursor
        asked = set()
        for result in evaluated.results:
            for cell in result.true_subset.expensively_compute_asset_partitions():
                asked.add("/".join([*result.key.path[1:], *([cell.partition_key] if cell.partition_key else [])]))
                if run:
                    assert self.lab.run("/".join(result.key.path[1:]), *filter(None, [cell.partition_key])).success
        return asked


def automated(lab: Lab, **changes: Any) -> None:
    lab.write({**EXPERIMENT, "automation": True, **changes})


def test_an_edited_attack_asks_for_its_own_cells_alone(lab: Lab) -> None:
    automated(lab)
    with lab.instance() as instance:
        daemon = Daemon(lab, instance)
        assert daemon.tick() == set()
        automated(lab, attacks={"fgm": {"eps": [0.1, 0.3]}, "weak": {"method": "fgm", "eps": 0.06}})
        assert daemon.tick() == {f"attack_config/{key}" for key in ("fgm_0.1", "fgm_0.3", "weak")}
        assert daemon.tick(run=False) == {f"adversarial_set/{model}|weak" for model in ("le_net", "shallow_net")}


def test_what_is_computed_again_with_the_same_content_asks_for_nothing(lab: Lab) -> None:
    automated(lab)
    with lab.instance() as instance:
        daemon = Daemon(lab, instance)
        daemon.tick()
        assert lab.run("adversarial_set", "le_net|weak").success
        assert daemon.tick() == set()


def test_what_is_missing_is_asked_for_once_what_it_is_made_from_is_there(blank: Lab) -> None:
    automated(blank)
    with blank.instance() as instance:
        daemon = Daemon(blank, instance)
        first = daemon.tick()
        assert {path.split("/")[0] for path in first} == {
            "training_set",
            "testing_set",
            "architecture_config",
            "attack_config",
        }
        second = daemon.tick(run=False)
        assert {path.split("/")[0] for path in second} == {"model", "clean_predictions"}


def test_without_the_switch_nothing_is_ever_asked_for(lab: Lab) -> None:
    with lab.instance() as instance:
        assert Daemon(lab, instance).tick() == set()
    assert [sensor.name for sensor in lab.defs().sensors or []] == []
    automated(lab)
    (sensor,) = lab.defs().sensors or []
    assert (sensor.name, sensor.default_status) == ("tiny_automation", dg.DefaultSensorStatus.RUNNING)  # type: ignore[union-attr]


CELL_ASSETS = ("adversarial_set", "evasion_examples", "evasion_metrics")
NIGHTLY = {**EXPERIMENT, "schedule": "0 2 * * *"}


def due(lab: Lab) -> dg.RunRequest | dg.SkipReason:
    """What the schedule of the experiment asks for at two o'clock."""
    definitions = lab.defs()
    with (
        lab.instance() as instance,
        dg.build_schedule_context(instance, datetime(2026, 1, 1, 2, tzinfo=UTC)) as context,
    ):
        data = definitions.resolve_schedule_def("tiny_nightly").evaluate_tick(context)
    return data.run_requests[0] if data.run_requests else dg.SkipReason(data.skip_message)


def night(lab: Lab) -> dg.ExecuteInProcessResult:
    """The job of the schedule, run as it asks for it."""
    asked = due(lab)
    assert isinstance(asked, dg.RunRequest)
    quiet = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
    with lab.instance() as instance:
        return (
            lab.defs()
            .resolve_job_def(NIGHTLY_JOB)
            .execute_in_process(run_config={**asked.run_config, **quiet}, instance=instance, raise_on_error=False)
        )


def made(lab: Lab) -> list[str]:
    """Paths of the cells that were ever computed, one entry each time."""
    wanted = dg.EventRecordsFilter(dg.DagsterEventType.ASSET_MATERIALIZATION)
    with lab.instance() as instance, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        records = instance.get_event_records(wanted, limit=10_000)
    events = [record.event_log_entry.dagster_event for record in records]
    cells = [(event.asset_key, event.partition) for event in reversed(events) if event]
    return ["/".join(filter(None, [*key.path[1:], partition])) for key, partition in cells if key]


def test_a_night_computes_what_an_edit_made_stale_and_nothing_else(lab: Lab) -> None:
    lab.write({**NIGHTLY, "attacks": {"fgm": {"eps": [0.1, 0.3]}, "weak": {"method": "fgm", "eps": 0.06}}})
    before = len(made(lab))
    assert night(lab).success
    again = made(lab)[before:]
    of_the_attack = {f"{asset}/{model}|weak" for asset in CELL_ASSETS for model in ("le_net", "shallow_net")}
    of_the_attack |= {"model_sanity/le_net", "model_sanity/shallow_net"}
    over_all = {"transfer_matrix", "security_curves", "report"}
    configs = {f"attack_config/{key}" for key in ("fgm_0.1", "fgm_0.3", "weak")}  # looked at again, two unchanged
    assert set(again) - over_all - {"sanity"} == {*configs, *of_the_attack}
    assert over_all <= set(again) and len(again) == len(set(again))
    assert night(lab).success
    assert len(made(lab)) == before + len(again)


@pytest.mark.slow
def test_what_fails_at_night_is_tried_again_the_next_night(lab: Lab) -> None:
    lab.write({**NIGHTLY, "attacks": {"fgm": {"eps": [0.1, 0.3]}, "weak": {"method": "fgm", "eps": 0.06}}})
    before = lab.find("evasion_metrics", architecture="le_net", attack="weak").manifest.run_id
    path = lab.home / "store" / lab.find("model", architecture="le_net").prefix / "model.keras"
    content = path.read_bytes()
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    result = night(lab)
    assert not result.success
    (failure,) = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    assert "tiny/model/le_net" in str(failure.user_failure_data) and "altered" in str(failure.user_failure_data)
    assert lab.find("evasion_metrics", architecture="le_net", attack="weak").manifest.run_id == before
    path.write_bytes(content)
    assert night(lab).success
    assert lab.find("evasion_metrics", architecture="le_net", attack="weak").manifest.run_id != before
    assert set(lab.statuses().values()) == {"FRESH"}


def test_the_next_night_waits_until_the_last_one_has_ended(lab: Lab) -> None:
    lab.write(NIGHTLY)
    asked = due(lab)
    assert isinstance(asked, dg.RunRequest)
    with lab.instance() as instance:
        job = lab.defs().resolve_job_def(NIGHTLY_JOB)
        run = instance.create_run_for_job(
            job, run_config=asked.run_config, tags=asked.tags, status=dg.DagsterRunStatus.STARTED
        )
    skipped = due(lab)
    assert isinstance(skipped, dg.SkipReason) and run.run_id in str(skipped.skip_message)


def test_a_schedule_is_there_and_runs_where_the_experiment_asks_for_one(lab: Lab) -> None:
    assert list(lab.defs().schedules or []) == []
    lab.write(NIGHTLY)
    (schedule,) = lab.defs().schedules or []
    assert isinstance(schedule, dg.ScheduleDefinition)
    assert (schedule.cron_schedule, schedule.execution_timezone) == ("0 2 * * *", "UTC")
    assert schedule.default_status == dg.DefaultScheduleStatus.RUNNING
