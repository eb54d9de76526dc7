"""Loading libraries without looking for garbage meanwhile.

TensorFlow alone makes more than a million objects, none of them garbage, and while they are made Python looks through
all of them again and again: an eighth of the time of a single job.
"""

import gc
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def loading() -> Generator[None]:
    """Look for no garbage until the body, which imports, has ended.

    In a process that has called :func:`gc.freeze`, what was loaded is not looked through later on either. A notebook
    has not: objects of its user's would be kept with the libraries.
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
