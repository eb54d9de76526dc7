"""How a backfill, and a launch from here, is cut into runs.

Why: docs/decisions/0001-many-cells-one-run.md
"""

import dagster as dg

from resources.executors.choice import CELLS_VARIABLE, engine, number_setting
from resources.executors.gpus import visible_gpus


def cells_per_run() -> int | None:
    """How many cells of a backfill one run takes, or None for all of them.

    Raises:
        SettingError: when `DIOPTRA_ASSETS_CELLS_PER_RUN` is no whole number of at least 1.
    """
    whole = engine() == "in_process" or (engine() == "multiprocess" and len(visible_gpus()) < 2)
    default = None if whole else 10
    return number_setting(CELLS_VARIABLE, default, "a whole number of at least 1", int)


def backfill_policy() -> dg.BackfillPolicy:
    """How a backfill is cut into runs."""
    cells = cells_per_run()
    return dg.BackfillPolicy.single_run() if cells is None else dg.BackfillPolicy.multi_run(cells)
