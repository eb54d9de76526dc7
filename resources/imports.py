"""Importing libraries with the garbage collector off.

TensorFlow alone creates more than a million objects, none of them garbage, and Python scans them again and again while
they are created: an eighth of the time of a single job.
"""

import gc
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def loading() -> Generator[None]:
    """Keep the garbage collector off while the body imports.

    In a process that has called :func:`gc.freeze`, the imported objects are not scanned later either. A notebook does
    not call it: it would freeze objects of the user as well.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if gc.get_freeze_count():
            gc.freeze()
        if collecting:
            gc.enable()
