"""Automation: what is asked for when something changed, and that nothing is when it was merely computed again."""

from typing import Any

import dagster as dg

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
