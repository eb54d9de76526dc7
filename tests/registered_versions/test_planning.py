"""Which versions go first: however many are registered, and however fast, none waits for ever, and runs are shared."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import dagster as dg
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dioptra_assets.registered_versions.planning import Todo, runs
from dioptra_assets.registered_versions.run_requests import run_requests
from dioptra_assets.registered_versions.runs_so_far import PLACE_TAG
from partitions.keys import ARCHITECTURE, ATTACK
from resources.store import Cell

ATTACKS = ["fgm", "pgd"]
EACH, BOTH = (ARCHITECTURE,), (ARCHITECTURE, ATTACK)
# What a verdict rests on, and after it the cells of the gates that are shown.
MADE_FROM: Mapping[str, tuple[tuple[str, ...], Sequence[str]]] = {
    "attack_config": ((ATTACK,), ()),
    "model": (EACH, ()),
    "clean_predictions": (EACH, ("model",)),
    "adversarial_set": (BOTH, ("attack_config", "model")),
    "evasion_metrics": (BOTH, ("adversarial_set", "clean_predictions")),
    "model_sanity": (EACH, ("model", "evasion_metrics")),
    "evasion_gate": (BOTH, ("evasion_metrics", "model_sanity")),
}
DIMENSIONS = {dg.AssetKey(name): names for name, (names, _) in MADE_FROM.items()}
INPUTS = {dg.AssetKey(name): [dg.AssetKey(one) for one in parents] for name, (_, parents) in MADE_FROM.items()}
NUMBERS = [key for key in DIMENSIONS if key.path != ["evasion_gate"]]
LONGEST_RUN = 3  # rounds


def cells_of(versions: Sequence[str], attacks: Sequence[str], assets: Any = tuple(MADE_FROM)) -> dict[Any, set[Cell]]:
    """Every cell of some assets."""
    cells: dict[Any, set[Cell]] = {}
    for name in assets:
        places = {
            (ATTACK,): [{ATTACK: attack} for attack in attacks],
            EACH: [{ARCHITECTURE: version} for version in versions],
            BOTH: [{ARCHITECTURE: version, ATTACK: attack} for version in versions for attack in attacks],
        }[MADE_FROM[name][0]]
        cells[dg.AssetKey(name)] = {Cell(name, place) for place in places}
    return cells


def between(keys: Sequence[str], first: str, last: str) -> list[str]:
    return list(keys[keys.index(first) : keys.index(last) + 1])


@dataclass
class Made:
    """A home in which a look is a round, runs take a few of them, and nothing is computed.

    Attributes:
        versions: all that came, in order.
        judged: those whose numbers are there -> in which round they were.
        count: how many runs there were.
    """

    versions: list[str] = field(default_factory=list)
    came: dict[str, int] = field(default_factory=dict)
    judged: dict[str, int] = field(default_factory=dict)
    cells: dict[Any, set[Cell]] = field(default_factory=lambda: cells_of([], ATTACKS))
    at_work: list[tuple[int, dg.RunRequest]] = field(default_factory=list)
    round: int = 0
    count: int = 0

    def covered(self, request: dg.RunRequest) -> tuple[list[str], list[str]]:
        """Versions and attacks in the range of a run."""
        assets = [key.path[-1] for key in request.asset_selection or []]
        ends = [request.tags[f"dagster/asset_partition_range_{end}"].split("|") for end in ("start", "end")]
        names = MADE_FROM[assets[0]][0]
        keys = {ARCHITECTURE: self.versions, ATTACK: ATTACKS}
        at = {name: between(keys[name], *both) for name, *both in zip(names, *ends, strict=True)}
        return at.get(ARCHITECTURE, []), at.get(ATTACK, [])

    def look(self, newcomers: int, takes: int) -> None:
        """Runs end, versions come, and what can be started is started, to take so many rounds."""
        self.round += 1
        for _, request in [one for one in self.at_work if one[0] <= self.round]:
            versions, attacks = self.covered(request)
            made = cells_of(versions, attacks, [key.path[-1] for key in request.asset_selection or []])
            for key, cells in made.items():
                self.cells[key] -= cells
        self.at_work = [one for one in self.at_work if one[0] > self.round]
        names = [f"digits@{len(self.versions) + number}" for number in range(1, newcomers + 1)]
        self.versions += names
        self.came |= dict.fromkeys(names, self.round)
        for key, cells in cells_of(names, []).items():
            self.cells[key] |= cells
        for key, cells in cells_of(names, ATTACKS).items():
            self.cells[key] |= cells if DIMENSIONS[key] == BOTH else set()
        todo = Todo(DIMENSIONS, INPUTS, self.cells)
        done = [one for one in self.versions if one not in self.judged and not todo.of(one, NUMBERS)]
        self.judged |= dict.fromkeys(done, self.round)
        places: dict[str, int] = {}
        for _, request in self.at_work:
            places[request.tags[PLACE_TAG]] = places.get(request.tags[PLACE_TAG], 0) + 1
        busy = {version for _, request in self.at_work for version in self.covered(request)[0]}
        due = [one for one in self.versions if one not in busy and todo.of(one, DIMENSIONS)]
        branch: Any = SimpleNamespace(name="digits", attacks=dict.fromkeys(ATTACKS))
        asked = run_requests(branch, todo, due, self.versions, at_work=places, alone=())
        self.count += len(asked)
        self.at_work += [(self.round + takes, request) for request in asked]


def test_newcomers_keep_no_version_from_its_last_stage() -> None:
    home = Made()
    home.look(newcomers=1, takes=1)
    while "digits@1" not in home.judged and home.round < 50:
        home.look(newcomers=1, takes=1)
    assert home.judged == {"digits@1": 4}, "a round a stage: models, attacks, sanity checks"
    for _ in range(20):
        home.look(newcomers=1, takes=1)
    assert home.judged["digits@20"] - home.came["digits@20"] == 3
    gated = {cell.partition[ARCHITECTURE] for cell in home.cells[dg.AssetKey("evasion_gate")]}
    assert gated == set(home.versions[-4:]), "nor from the cells of its gates"


def test_versions_that_come_while_a_stage_is_at_work_share_the_next_run() -> None:
    home = Made()
    home.look(newcomers=1, takes=10)
    for _ in range(9):
        home.look(newcomers=1, takes=10)
    while len(home.judged) < 10:
        home.look(newcomers=0, takes=10)
    assert home.count == 1 + 4 + 4, "the configs, four stages of the first, and four of all others together"


@settings(deadline=None)
@given(
    stream=st.lists(st.tuples(st.integers(0, 4), st.integers(1, LONGEST_RUN)), min_size=1, max_size=60),
)
@example(stream=[(1, LONGEST_RUN)] * 60)
@example(stream=[(4, 1)] * 60)
def test_under_any_stream_each_version_has_its_verdict_within_so_many_rounds(stream: list[tuple[int, int]]) -> None:
    # In each of the three stages: what is at work when it comes, and then its own run.
    most = 3 * 2 * LONGEST_RUN
    home = Made()
    for newcomers, takes in stream:
        home.look(newcomers, takes)
        late = [one for one in home.versions if one not in home.judged and home.round - home.came[one] > most]
        assert not late
    for _ in range(most):
        home.look(0, LONGEST_RUN)
    assert set(home.judged) == set(home.versions)
    assert all(home.judged[one] - home.came[one] <= most for one in home.versions)


def test_in_one_place_whoever_has_waited_longest_is_first_also_where_he_is_tried_alone() -> None:
    versions = [f"digits@{number}" for number in range(1, 6)]
    todo = Todo(DIMENSIONS, INPUTS, cells_of(versions, ATTACKS))
    due = ["digits@4", "digits@1", "digits@2", "digits@3", "digits@5"]
    models = [
        [cell[ARCHITECTURE] for cell in one.cells]
        for one in runs(todo, versions, ATTACKS, alone={"digits@4", "digits@2"}, due=due)
        if one.dimensions == EACH
    ]
    assert models == [["digits@4"], ["digits@1"], ["digits@2"], ["digits@3"], ["digits@5"]]
