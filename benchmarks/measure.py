"""Paired measurements: ours and the peer's in turn, so that a busy machine slows both."""

import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Pair:
    """Median seconds of both sides, and the median of the ratios of neighbouring measurements."""

    name: str
    peer: float
    ours: float
    ratio: float


def pair(name: str, peer: Callable[[], object], ours: Callable[[], object], *, rounds: int = 5) -> Pair:
    """Measure both sides `rounds` times in turn, after one run of each that is not counted."""
    peer()
    ours()
    seconds = [(_seconds(peer), _seconds(ours)) for _ in range(rounds)]
    peers, own = zip(*seconds, strict=True)
    ratio = statistics.median(theirs / mine for theirs, mine in seconds)
    return Pair(name, statistics.median(peers), statistics.median(own), ratio)


def table(pairs: list[Pair], peer: str) -> str:
    """The measurements as Markdown."""
    rows = [f"| {p.name} | {p.peer:.2f} s | {p.ours:.2f} s | {p.ratio:.1f} |" for p in pairs]
    return "\n".join([f"| work | {peer} | ours | ratio |", "|---|---|---|---|", *rows])


def keep(name: str, text: str) -> None:
    """Print a table and keep it, with date and machine."""
    RESULTS.mkdir(exist_ok=True)
    machine = f"{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, Python {platform.python_version()}"
    page = f"# {name}\n\n{machine}\n\n{text}\n"
    (RESULTS / f"{name}.md").write_text(page)
    print(page)


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
