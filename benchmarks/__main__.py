"""Every benchmark, each in a process of its own: `python -m benchmarks [--quick] [NAME ...]`.

Without names all of them run, and their table is kept in results/ratios.md.
"""

import argparse
import multiprocessing
import sys
import traceback
from concurrent.futures import ProcessPoolExecutor

from benchmarks.measure import Pair, keep, rows_of, table

BENCHMARKS = (
    "fgm",
    "pgd",
    "early_stop",
    "madry",
    "miface",
    "poisoning",
    "pixel",
    "defences",
    "demos",
    "memory",
    "cells",
)
EXPLAINED = """Ratio: what the work costs the peer over what it costs us, both measured in turn in one run, the median
over the rounds. Floor: the ratio wanted. Raw work: the share of our time that the bare gradients or forward passes
take, which no attack can do without. The peer is ART with the same batches, unless the line says otherwise."""


def main() -> None:
    """Run what was asked for and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; all without")
    parser.add_argument("--quick", action="store_true", help="Tiny, to see that it runs: its figures say nothing.")
    chosen = parser.parse_args()
    if unknown := set(chosen.names) - set(BENCHMARKS):
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}: there are {', '.join(BENCHMARKS)}")
    pairs: list[Pair] = []
    failed: list[str] = []
    # A new process each: what one compiled or imported slows no other, and TensorFlow must not be forked.
    context = multiprocessing.get_context("spawn")
    for name in chosen.names or BENCHMARKS:
        with ProcessPoolExecutor(1, mp_context=context) as alone:
            measured = alone.submit(rows_of, name, chosen.quick)
        if error := measured.exception():
            traceback.print_exception(error)
            failed.append(name)
            continue
        pairs += measured.result()
        print(table(measured.result()), "\n", flush=True)
    missed = [pair.name for pair in pairs if not pair.met]
    verdict = f"Missed: {'; '.join(missed)}." if missed else "Every floor is met."
    verdict += f" Not measured, because they failed: {', '.join(failed)}." if failed else ""
    if chosen.names or chosen.quick:
        print(verdict)
    else:
        keep("ratios", f"{EXPLAINED}\n\n{table(pairs)}\n\n{verdict}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
