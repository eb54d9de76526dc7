"""Paired measurements: ours and the peer's in turn, so that a busy machine slows both."""

import importlib
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Pair:
    """One line of the table.

    Attributes:
        name: the work.
        peer: what it costs the peer: the median of its measurements.
        ours: what it costs us.
        ratio: the median of the ratios of neighbouring measurements.
        floor: the ratio that is wanted at least.
        raw: the least work that the task demands (the bare gradients or forward passes), as a share of our time.
        unit: of both costs.
    """

    name: str
    peer: float
    ours: float
    ratio: float
    floor: float | None = None
    raw: float | None = None
    unit: str = "s"

    @property
    def met(self) -> bool:
        """Whether the ratio reaches its floor."""
        return self.floor is None or self.ratio >= self.floor


def pair(
    name: str,
    peer: Callable[[], object],
    ours: Callable[[], object],
    *,
    rounds: int = 5,
    floor: float | None = None,
    raw: Callable[[], object] | None = None,
    warm: bool = False,
) -> Pair:
    """Measure both sides (and the raw work) `rounds` times in turn, after one run of each that is not counted.

    With `warm` they have run before, on less, and are counted at once.
    """
    sides = [peer, ours, *([raw] if raw else [])]
    for side in sides if not warm else ():
        side()
    seconds = [[_seconds(side) for side in sides] for _ in range(rounds)]
    peers, own, *bare = zip(*seconds, strict=True)
    return Pair(
        name,
        statistics.median(peers),
        statistics.median(own),
        _median_ratio(peers, own),
        floor,
        _median_ratio(bare[0], own) if bare else None,
    )


def rows_of(benchmark: str, quick: bool) -> list[Pair]:
    """What one module of this package measures."""
    return importlib.import_module(f"benchmarks.{benchmark}").rows(quick)


def table(pairs: Sequence[Pair], peer: str = "peer") -> str:
    """The measurements as Markdown."""
    return "\n".join(
        [f"| work | {peer} | ours | ratio | floor | raw work |", "|---|---|---|---|---|---|", *map(_row, pairs)]
    )


def _row(measured: Pair) -> str:
    floor = "" if measured.floor is None else f"{measured.floor:g}" + ("" if measured.met else " missed")
    raw = "" if measured.raw is None else f"{measured.raw:.0%}"
    costs = f"{measured.peer:.2f} {measured.unit} | {measured.ours:.2f} {measured.unit}"
    return f"| {measured.name} | {costs} | {measured.ratio:.1f} | {floor} | {raw} |"


def keep(name: str, text: str) -> None:
    """Print a page and keep it, with date and machine."""
    RESULTS.mkdir(exist_ok=True)
    page = f"# {name}\n\n{datetime.now(UTC):%Y-%m-%d}, {machine()}\n\n{text}\n"
    (RESULTS / f"{name}.md").write_text(page)
    print(page)


def machine() -> str:
    """The processor, its cores, and the Python."""
    processor = platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        names = [line.split(":", 1)[1].strip() for line in information.read_text().splitlines() if "model name" in line]
        processor = names[0] if names else processor
    return f"{processor}, {os.cpu_count()} cores, Python {platform.python_version()}"


def _median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
