"""While libraries are loaded nothing looks for garbage, and afterwards everything is as it was."""

import gc
import subprocess
import sys
import weakref

import pytest

from resources.imports import loading

COUNTED = """
import gc, sys
searches = []
gc.callbacks.append(lambda phase, _: searches.append(phase) if not gc.get_freeze_count() else None)
from dioptra_assets.__main__ import main
sys.argv = ["dioptra-assets", "--version"]
before = len(searches)
try:
    main()
except SystemExit:
    print(len(searches) - before, "rich" in sys.modules, gc.isenabled(), gc.get_freeze_count() > 10_000)
"""


class Part:
    other: "Part"


def test_the_command_line_is_loaded_without_a_search_for_garbage() -> None:
    done = subprocess.run([sys.executable, "-c", COUNTED], capture_output=True, text=True, check=True)
    searches, loaded, collecting, frozen = done.stdout.split()[-4:]
    assert (loaded, collecting, frozen) == ("True", "True", "True")
    assert int(searches) <= 2


def test_in_a_process_of_others_garbage_made_meanwhile_is_found_afterwards() -> None:
    with loading():
        assert not gc.isenabled()
        one = Part()
        one.other = one
        gone = weakref.ref(one)
        del one
    assert gc.isenabled() and not gc.get_freeze_count()
    gc.collect()
    assert gone() is None


def test_who_looks_for_no_garbage_is_left_so_and_a_failed_import_changes_nothing() -> None:
    with pytest.raises(ImportError), loading():
        raise ImportError("no such library")
    assert gc.isenabled()
    gc.disable()
    try:
        with loading():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
