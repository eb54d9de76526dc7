"""Where the command `dioptra-assets` begins: signals are watched before anything that takes time is imported."""

from dioptra_assets import interrupts


def main() -> None:
    """The command line; a second interruption changes nothing, and one during imports is no traceback."""
    interrupts.watch()
    try:
        from dioptra_assets import cli

        cli.main()
    except interrupts.Interrupted:
        interrupts.leave()


if __name__ == "__main__":
    main()
