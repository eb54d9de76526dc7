"""Start of the command `dioptra-assets`: signals are handled before any slow import."""

import gc

from dioptra_assets.runs import interrupts
from resources.imports import loading


def main() -> None:
    """Run the command line. An interrupt gives one line, never a traceback, even during imports."""
    interrupts.watch()
    try:
        with loading():
            from dioptra_assets.command_line import app

            gc.freeze()  # safe: the process runs this command alone, see `loading`
        app.main()
    except interrupts.Interrupted:
        interrupts.leave()


if __name__ == "__main__":
    main()
