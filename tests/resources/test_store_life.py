"""The life of a store: whatever writers, readers, kills, losses and tidying come in whatever order, no cell lies.

`make test` takes a few steps of it. For an hour of it:

    LIFE_SECONDS=3600 pytest -m slow tests/resources/test_store_life.py
"""

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from resources import store
from resources.store import (
    Cell,
    CellStore,
    CellWriter,
    DamagedCellError,
    Destination,
    LostCellError,
    MissingCellError,
    StoredCell,
)

CELLS = [
    Cell("digits/model", {"architecture": "le_net"}),
    Cell("digits/model", {"architecture": "versions"}),
    Cell("digits/adversarial_set", {"architecture": "le_net", "attack": "fgm"}),
    Cell("digits/report"),
]
FILES = ("a.bin", "folder/b.bin")
SECONDS = float(os.environ.get("LIFE_SECONDS", "60"))

which = st.sampled_from(CELLS)
contents = st.sampled_from(["one", "two", "three"])
facts = st.sampled_from([{}, {"judged": "one"}, {"judged": "two", "missing": ["x"]}, {"rate": 0.1, "pair": (1, 2)}])


class Killed(BaseException):
    """The process that wrote was killed: it does nothing any more, not even tidy up."""


class MortalStore(CellStore):
    """A store whose writer dies at a write, before or after it."""

    puts_left: int | None = None
    after = False
    dead = False

    def put(self, path: str, content: bytes) -> None:
        if self.dead:
            raise Killed
        if self.puts_left is None:
            return super().put(path, content)
        if self.puts_left == 0:
            self.dead = True
            if self.after:
                super().put(path, content)
            else:
                half = Path(self.url, f"{path}#1")
                half.parent.mkdir(parents=True, exist_ok=True)
                half.write_bytes(content[: len(content) // 2])
            raise Killed
        self.puts_left -= 1
        return super().put(path, content)

    def remove_version(self, cell: Cell, version: str) -> None:
        if not self.dead:
            super().remove_version(cell, version)


def fill(writer: CellWriter, content: str) -> None:
    for name in FILES:
        writer.put(name, f"{name} of {content}".encode() * 3)


def check(stored: StoredCell) -> None:
    """What a version holds is what its manifest says, and what was written under its data version."""
    for name in stored.manifest.files:
        assert stored.read(name) == f"{name} of {stored.manifest.data_version}".encode() * 3


@contextlib.contextmanager
def impatient() -> Iterator[None]:
    """Superseded versions are old at once."""
    kept = store.KEEP_SUPERSEDED
    store.KEEP_SUPERSEDED = timedelta(seconds=-10)
    try:
        yield
    finally:
        store.KEEP_SUPERSEDED = kept


class StoreLife(RuleBasedStateMachine):
    """What is served of each cell is remembered, and whether it was damaged since."""

    writers: Bundle[Any] = Bundle("writers")
    readers: Bundle[Any] = Bundle("readers")

    @initialize()
    def open(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.store = CellStore(str(self.folder))
        self.served: dict[Cell, tuple[str, dict[str, Any]]] = {}
        self.damaged: set[Cell] = set()
        self.lost: set[Cell] = set()

    def teardown(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def serve(self, cell: Cell, content: str, attributes: dict[str, Any]) -> None:
        self.served[cell] = (content, {name: list(v) if isinstance(v, tuple) else v for name, v in attributes.items()})
        self.damaged.discard(cell)
        self.lost.discard(cell)

    # ---- writers

    @rule(cell=which, content=contents, attributes=facts)
    def write(self, cell: Cell, content: str, attributes: dict[str, Any]) -> None:
        before = None if cell in self.damaged | self.lost else self.store.find(cell)
        with self.store.at(cell).writer("test") as writer:
            fill(writer, content)
            stored = writer.commit(content, attributes)
        self.serve(cell, content, attributes)
        same = before and (before.manifest.data_version, before.manifest.attributes) == self.served[cell]
        assert (before is not None and stored.version == before.version) == bool(same)

    @rule(cell=which, content=contents, attributes=facts, puts=st.integers(0, 3), after=st.booleans())
    def write_and_be_killed(self, cell: Cell, content: str, attributes: dict[str, Any], puts: int, after: bool) -> None:
        mortal = MortalStore(str(self.folder))
        mortal.puts_left, mortal.after = puts, after
        try:
            with mortal.at(cell).writer("test") as writer:
                fill(writer, content)
                writer.commit(content, attributes)
        except Killed:
            event(f"killed at put {puts}{' after it' if after else ''}")
            if puts == len(FILES) + 1 and after:
                self.serve(cell, content, attributes)
            elif puts + after > len(FILES) and cell not in self.served:
                self.lost.add(cell)  # a whole version that nothing leads to
        else:
            self.serve(cell, content, attributes)

    @rule(target=writers, cell=which, content=contents, attributes=facts)
    def begin_to_write(self, cell: Cell, content: str, attributes: dict[str, Any]) -> Any:
        stack = contextlib.ExitStack()
        writer = stack.enter_context(self.store.at(cell).writer("test"))
        fill(writer, content)
        return stack, writer, content, attributes

    @rule(begun=consumes(writers))
    def finish_writing(self, begun: Any) -> None:
        stack, writer, content, attributes = begun
        try:
            with stack:
                writer.commit(content, attributes)
        except DamagedCellError:
            event("a slow writer was tidied away")
        else:
            self.serve(writer.cell, content, attributes)

    @rule(begun=consumes(writers))
    def give_up_writing(self, begun: Any) -> None:
        stack, *_ = begun
        with contextlib.suppress(ZeroDivisionError), stack:
            raise ZeroDivisionError

    @rule(cell=which, content=contents)
    def write_for_a_run_that_has_ended(self, cell: Cell, content: str) -> None:
        def ended() -> None:
            raise ZeroDivisionError

        with (
            contextlib.suppress(ZeroDivisionError),
            Destination(self.store, cell, guard=ended).writer("test") as writer,
        ):
            fill(writer, content)
            writer.commit(content, {})
            self.serve(cell, content, {})  # it was there already

    # ---- readers

    @rule(target=readers, cell=which)
    def begin_to_read(self, cell: Cell) -> StoredCell | None:
        return None if cell in self.damaged else self.store.find(cell)

    @rule(stored=readers)
    def read(self, stored: StoredCell | None) -> None:
        if stored:
            try:
                check(stored)
            except DamagedCellError:
                event("what was being read was damaged or tidied away")

    # ---- what goes wrong, and tidying

    @rule(cell=which, name=st.sampled_from(["CURRENT", "manifest.json", *FILES]), at=st.floats(0, 1, exclude_max=True),
          how=st.sampled_from(["flip", "delete", "truncate", "extend"]))  # fmt: skip
    def damage(self, cell: Cell, name: str, at: float, how: str) -> None:
        if cell not in self.served or cell in self.damaged | self.lost:
            return
        stored = self.store.open(cell)
        folder = self.folder / cell.path
        path = folder / name if name == "CURRENT" else folder / "versions" / stored.version / name
        content = path.read_bytes()
        place = int(at * len(content))
        match how:
            case "flip":
                path.write_bytes(content[:place] + bytes([content[place] ^ (1 << place % 8)]) + content[place + 1 :])
            case "delete":
                path.unlink()
            case "truncate":
                path.write_bytes(content[:place])
            case "extend":
                path.write_bytes(content + b"\0")
        if (name, how) == ("CURRENT", "delete"):
            self.lost.add(cell)
        else:
            self.damaged.add(cell)

    @rule(cell=which)
    def tidy(self, cell: Cell) -> None:
        if cell in self.served and cell not in self.damaged | self.lost:
            with impatient():
                self.store.prune(cell, keep={self.store.open(cell).version})

    # ---- what must hold

    @invariant()
    def no_cell_lies(self) -> None:
        for cell in CELLS:
            if cell in self.lost:
                with pytest.raises(LostCellError, match=r"is lost: it has versions"):
                    self.store.open(cell)
            elif cell in self.damaged:
                with pytest.raises(DamagedCellError, match=f"^{cell.path} is damaged: {cell.path}/"):
                    self.store.open(cell).verify()
            elif cell in self.served:
                stored = self.store.open(cell)
                assert (stored.manifest.data_version, stored.manifest.attributes) == self.served[cell]
                check(stored)
            else:
                assert self.store.find(cell) is None
                with pytest.raises(MissingCellError):
                    self.store.open(cell)

    @invariant()
    def a_listing_says_the_same(self) -> None:
        there = {cell: stored for cell in CELLS if (stored := self.store.find(cell))}
        assert self.store.found(CELLS[:2]) == {cell: there[cell] for cell in CELLS[:2] if cell in there}
        if not self.damaged | self.lost:
            assert self.store.cells("digits") == sorted(self.served, key=lambda cell: cell.path)


def live(examples: int, steps: int) -> None:
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    chosen = settings(
        max_examples=examples, stateful_step_count=steps, deadline=None, suppress_health_check=checks, database=None
    )
    run_state_machine_as_test(StoreLife, settings=chosen)


def test_a_short_life() -> None:
    live(examples=30, steps=25)


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_a_long_life() -> None:
    lives, until = 0, time.monotonic() + SECONDS
    while time.monotonic() < until:
        live(examples=50, steps=60)
        lives += 50
        print(f"{lives} lives of up to 60 steps", flush=True)
