"""One seed drives everything random in a cell.

Why: docs/decisions/0008-one-seed.md
"""

import hashlib

MAX_SEED = 2**31 - 1


def derive_seed(seed: int, *names: str) -> int:
    """A seed for one cell, from the experiment's seed and the names of the cell.

    The same names always give the same seed, other names give an independent one, and no global generator is touched.
    """
    digest = hashlib.sha256("\0".join([str(seed), *names]).encode()).digest()
    return int.from_bytes(digest[:8], "big") % MAX_SEED
