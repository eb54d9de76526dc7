"""Editing one entry makes exactly its cells stale; computing the same again changes nothing."""

from typing import Any

import pytest

from tests.assets.test_boundary import assets, causes, failures
from tests.conftest import ARCHITECTURES, ATTACKS, EXPERIMENT, Lab

# What goes over all entries of the file shows each of them by name, and the report all that it declares.
TOLD = {f"tiny/{asset}" for asset in ("transfer_matrix", "security_curves", "sanity", "report")}
REPORT = {"tiny/report"}
OF_MODELS = {f"tiny/model_sanity/{architecture}" for architecture in ARCHITECTURES}


def edited(section: str, entry: str, **parameters: Any) -> dict[str, Any]:
    return {**EXPERIMENT, section: {**EXPERIMENT[section], entry: {**EXPERIMENT[section][entry], **parameters}}}


def stale(lab: Lab) -> set[str]:
    statuses = lab.statuses()
    assert set(statuses.values()) <= {"FRESH", "STALE"}
    return {path for path, status in statuses.items() if status == "STALE"}


def of_attack(asset: str, attack: str) -> set[str]:
    return {f"tiny/{asset}/{architecture}/{attack}" for architecture in ARCHITECTURES}


def test_editing_one_eps_makes_exactly_the_cells_of_that_attack_stale(lab: Lab) -> None:
    lab.write(edited("attacks", "weak", eps=0.07))
    assert stale(lab) == REPORT | {f"tiny/attack_config/{attack}" for attack in ATTACKS}, "the file was edited"

    assert lab.run("attack_config", ATTACKS[0], ATTACKS[-1]).success

    assert stale(lab) == REPORT | of_attack("adversarial_set", "weak")

    before = lab.bytes()
    launched = lab.materialize()

    assert not launched.failed and not launched.skipped
    attack_cells = set().union(
        *(of_attack(asset, "weak") for asset in ("adversarial_set", "evasion_examples", "evasion_metrics"))
    )
    assert {cell.path for cell in launched.computed} == attack_cells | OF_MODELS | TOLD
    assert stale(lab) == set()
    after = lab.bytes()
    touched = {path for path in after if after[path] != before.get(path)}
    recomputed = {f"store/{cell.path}/" for cell in launched.computed}
    assert {path for path in touched if not path.startswith(tuple(recomputed))} == set()


@pytest.mark.parametrize(
    ("edit", "cell", "sentence"),
    [
        (
            edited("attacks", "weak", eps=0.07),
            ("adversarial_set", "le_net|weak"),
            "tiny/attack_config weak was edited since it was materialized (eps 0.05 -> 0.07): materialize it first,"
            " `dioptra-assets materialize tiny --asset 'attack_config' --cell 'weak'`",
        ),
        (
            edited("architectures", "le_net", epochs=2),
            ("model", "le_net"),
            "tiny/architecture_config le_net was edited since it was materialized (epochs 1.0 -> 2.0): materialize it"
            " first, `dioptra-assets materialize tiny --asset 'architecture_config' --cell 'le_net'`",
        ),
    ],
    ids=["attack", "architecture"],
)
def test_a_cell_is_refused_while_its_config_was_edited_and_not_materialized(
    lab: Lab, edit: dict[str, Any], cell: tuple[str, str], sentence: str
) -> None:
    lab.write(edit)
    before = lab.bytes()

    result = lab.run(*cell)

    assert not result.success
    (failure,) = failures(result)
    assert f"ConfigChangedError: {sentence}" in causes(failure.error)
    assert lab.bytes() == before


def test_an_entry_that_is_added_makes_nothing_else_stale(lab: Lab) -> None:
    lab.write(edited("attacks", "fgm", eps=[0.1, 0.2, 0.3]))
    assert lab.run("attack_config", "fgm_0.2").success
    statuses = lab.statuses()
    missing = {path for path, status in statuses.items() if status == "MISSING"}
    assert missing == of_attack("adversarial_set", "fgm_0.2") | of_attack("evasion_examples", "fgm_0.2") | of_attack(
        "evasion_metrics", "fgm_0.2"
    )
    of_old_entries = {f"tiny/attack_config/{attack}" for attack in ATTACKS}
    assert {path for path, status in statuses.items() if status == "STALE"} == TOLD | OF_MODELS | of_old_entries


def test_another_data_source_makes_the_sets_stale(lab: Lab) -> None:
    lab.write({**EXPERIMENT, "data": {**EXPERIMENT["data"], "seed": 1}})
    assert stale(lab) == {"tiny/training_set", "tiny/testing_set", "tiny/report"}


def test_computing_the_same_again_changes_no_byte_and_makes_nothing_stale(lab: Lab) -> None:
    before, bookings = lab.bytes(), len(lab.events("model"))
    graph = lab.defs().resolve_asset_graph()
    ordered = [key for level in graph.toposorted_asset_keys_by_level for key in level]
    assert sorted(key.path[-1] for key in ordered) == assets(lab)
    for key in ordered:
        definition = graph.get(key).partitions_def
        last = definition.get_partition_keys()[-1:] if definition else []
        assert lab.run(key.path[-1], *last).success, key

    assert len(lab.events("model")) == bookings + 1, "le_net was trained again"
    assert lab.bytes() == before
    assert set(lab.statuses().values()) == {"FRESH"}
