"""Progress of a launch: reported by the launch and its cells, shown by whoever listens.

A process leads one launch at a time, so there is one board. Cells computed by another process are only counted, they
report no progress of their own.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")

# Seconds per cell of the experiment `digits` on two cores, used until a home has its own measurements. The first cell
# that trains or attacks also imports TensorFlow.
FIRST_GUESSES: Mapping[str, float] = {
    "digits/testing_set": 4.0,
    "digits/training_set": 0.3,
    "digits/architecture_config": 0.1,
    "digits/attack_config": 0.05,
    "digits/model": 5.0,
    "digits/adversarial_set": 0.3,
    "digits/clean_predictions": 0.6,
    "digits/evasion_examples": 0.2,
    "digits/evasion_metrics": 0.15,
    "digits/model_sanity": 2.0,
    "digits/evasion_gate": 0.05,
    "digits/sanity": 0.5,
    "digits/security_curves": 0.6,
    "digits/transfer_matrix": 1.0,
    "digits/report": 3.5,
}


@dataclass
class Board:
    """State of a launch.

    Attributes:
        expected: number of cells still to compute per asset, in order, as far as known before their inputs exist.
        remembered: seconds per cell of each asset in earlier launches.
        asset: the asset being computed, empty before the first.
        cell: the last cell that reported progress, empty before that.
        within: what it reported, such as "attacked 512 of 1,437".
        share: how much of that cell is done, from 0 to 1.
        left: cells of this asset still to compute.
        of: cells of this asset that this launch computes.
        computed: cells computed by this launch so far.
    """

    expected: dict[str, int] = field(default_factory=dict)
    remembered: Mapping[str, float] = field(default_factory=dict)
    asset: str = ""
    cell: str = ""
    within: str = ""
    share: float = 0.0
    left: int = 0
    of: int = 0
    computed: int = 0
    _seconds: dict[str, list[float]] = field(default_factory=dict)
    _since: float = 0.0

    @property
    def total(self) -> int:
        """Cells that this launch computes, including those expected of later assets."""
        return self.computed + self.left + sum(self._later().values())

    def begin(self, asset: str, cells: int) -> None:
        """Begin the next asset, with this many cells to compute; zero if all are up to date."""
        self.asset, self.cell, self.within, self.share, self.left, self.of = asset, "", "", 0.0, cells, cells
        self.expected[asset] = 0
        self._since = time.monotonic()

    def said(self, cell: str, within: str, share: float) -> None:
        """Record the progress of a cell."""
        self.cell, self.within, self.share = cell, within, share

    def ended(self, *, failed: bool = False) -> None:
        """Record the end of a cell."""
        now = time.monotonic()
        self.left, self.share, self.within = max(0, self.left - 1), 0.0, ""
        if not failed:
            self.computed += 1
            self._seconds.setdefault(self.asset, []).append(now - self._since)
        self._since = now

    def seconds_left(self) -> float | None:
        """Estimated seconds until the launch ends, None if the duration of an asset is not known yet."""
        total, guessed = 0.0, self._pace()
        for asset, cells in [(self.asset, self.left), *self._later().items()]:
            if not cells:
                continue
            seconds = self._cell_seconds(asset, guessed)
            if seconds is None:
                return None
            total += cells * seconds
            if asset == self.asset:
                under_way = time.monotonic() - self._since
                total -= min(under_way, seconds) if not self.share else self.share * seconds
        return max(0.0, total)

    def _later(self) -> dict[str, int]:
        return {asset: cells for asset, cells in self.expected.items() if cells and asset != self.asset}

    def _cell_seconds(self, asset: str, pace: float) -> float | None:
        if measured := self._seconds.get(asset):
            # The first cell may include the time of imports.
            return statistics.fmean(measured[1:] or measured)
        if asset == self.asset and self.share > 0.05:
            return (time.monotonic() - self._since) / self.share
        if asset in self.remembered:
            return self.remembered[asset]
        return FIRST_GUESSES[asset] * pace if asset in FIRST_GUESSES else None

    def _pace(self) -> float:
        """How much slower this machine has been than the first guesses."""
        known = [(FIRST_GUESSES[a], s) for a, seconds in self._seconds.items() for s in seconds if a in FIRST_GUESSES]
        guessed, taken = sum(guess for guess, _ in known), sum(seconds for _, seconds in known)
        return taken / guessed if guessed > 5 else 1.0


Listener = Callable[[Board, bool], None]
_boards: list[Board] = []
_listeners: list[Listener] = []


@contextmanager
def board() -> Iterator[Board]:
    """The board of a launch: a new one, or that of the enclosing launch."""
    if _boards:
        yield _boards[0]
        return
    _boards.append(Board())
    try:
        yield _boards[0]
    finally:
        _boards.clear()


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Call a listener on every change, with the board and whether an asset begins."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def begin(asset: str, cells: int) -> None:
    """See :meth:`Board.begin`."""
    for board in _boards:
        board.begin(asset, cells)
        _tell(board, True)


def said(cell: str, within: str, share: float) -> None:
    """See :meth:`Board.said`."""
    for board in _boards:
        board.said(cell, within, share)
        _tell(board, False)


def ended(*, failed: bool = False) -> None:
    """See :meth:`Board.ended`."""
    for board in _boards:
        board.ended(failed=failed)
        _tell(board, False)


def counted(keys: Iterable[T], failures: Sized) -> Iterator[T]:
    """Iterate over the keys of cells, and report each as ended (failed if failures grew) when the next is requested."""
    for key in keys:
        before = len(failures)
        yield key
        ended(failed=len(failures) > before)


def kept() -> str:
    """How many cells the current launch has computed, printed when it is interrupted."""
    count = _boards[0].computed if _boards else 0
    return f"{count} {'cell' if count == 1 else 'cells'} kept; run the same command to continue"


def clock(seconds: float | None) -> str:
    """Time left in words: `about 5 s left`, `about 1 min 20 s left`, `about 2 h 10 min left`, or not known yet."""
    if seconds is None:
        return "time left not known yet"
    whole = round(seconds)
    if whole < 90:
        said = f"{max(whole, 1)} s"
    elif whole < 5400:
        minutes, rest = divmod(round(whole / 10) * 10, 60)
        said = f"{minutes} min {rest} s" if rest and minutes < 10 else f"{round(whole / 60)} min"
    else:
        hours, rest = divmod(round(whole / 600) * 10, 60)
        said = f"{hours} h {rest} min" if rest else f"{hours} h"
    return f"about {said} left"


def _tell(changed: Board, begins: bool) -> None:
    for listener in _listeners:
        listener(changed, begins)
