"""Where the command `dioptra-assets` begins: signals are watched before anything that takes time is imported."""

import gc

from dioptra_assets.runs import interrupts
from resources.imports import loading


def main() -> None:
    """The command line; a second interruption changes nothing, and one during imports is no traceback."""
    interrupts.watch()
    try:
        with loading():
            from dioptra_assets.command_line import app

            gc.freeze()  # a process of this command alone: see `loading`
        app.main()
    except interrupts.Interrupted:
        interrupts.leave()


if __name__ == "__main__":
    main()
