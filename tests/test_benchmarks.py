"""The benchmarks run, on tiny input, and their table says what was missed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import BENCHMARKS
from benchmarks.measure import Pair, pair, rows_of, table

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "name", [name if name == "fgm" else pytest.param(name, marks=pytest.mark.slow) for name in BENCHMARKS]
)
def test_every_benchmark_runs_on_tiny_input(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_HOME", "")  # one of them sets it; what it was comes back after the test
    rows = rows_of(name, True)
    assert rows
    for row in rows:
        assert row.peer > 0 and row.ours > 0 and row.ratio > 0, row


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_the_benchmark_for_gpus_runs_on_what_cells_run_on_and_on_jax_without_tensorflow(backend: str) -> None:
    pytest.importorskip(backend)
    without = "sys.modules['tensorflow'] = None; " if backend == "jax" else ""
    code = f"import sys; {without}import benchmarks.gpu as gpu; gpu.main(sys.argv[1:])"
    run = subprocess.run(
        [sys.executable, "-c", code, "--device=cpu", "--quick", f"--backend={backend}"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    for work in ("bare gradient", "FGM", "PGD-2", "Madry step, PGD-7"):
        assert re.search(rf"\| le_net \| 4 \| {work} \| \d \| [\d,]+ \|", run.stdout), run.stdout


def test_the_table_says_which_floor_is_missed() -> None:
    assert table([Pair("quick", 4.0, 1.0, 4.0, floor=2.5, raw=0.5)]).endswith(
        "| quick | 4.00 s | 1.00 s | 4.0 | 2.5 | 50% |"
    )
    assert table([Pair("slow", 2.0, 1.0, 2.0, floor=2.5)]).endswith("| slow | 2.00 s | 1.00 s | 2.0 | 2.5 missed |  |")


def test_both_sides_are_measured_in_turn_after_a_run_that_is_not_counted() -> None:
    calls: list[str] = []
    pair("", lambda: calls.append("peer"), lambda: calls.append("ours"), raw=lambda: calls.append("raw"), rounds=2)
    assert calls == ["peer", "ours", "raw"] * 3
