"""Every benchmark, each in a process of its own: `python -m benchmarks [NAME ...]`."""

import subprocess
import sys

BENCHMARKS = ("fgm", "cells")

for name in sys.argv[1:] or BENCHMARKS:
    subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=True)
