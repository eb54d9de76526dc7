"""Write docs/reference/command-line.md from the commands themselves: `python -m docs.command_line`.

It is the page of `typer dioptra_assets.command_line.app utils docs`, with the whole first sentence of each command
in the list.
"""

import html
import inspect
import re
from pathlib import Path

import typer.cli
from typer.main import get_command

from dioptra_assets.command_line import app

PAGE = Path(__file__).parent / "reference" / "command-line.md"
HEAD = """# Command line

Written by `python -m docs.command_line` from the commands themselves; `dioptra-assets COMMAND --help` says the
same. The parameters of `run` are those of the [entry points](entry-points.md).
"""


def page() -> str:
    """The whole page, in Markdown."""
    command = get_command(app.app)
    context = typer.Context(command, info_name="dioptra-assets")
    written = typer.cli.get_docs_for_click(obj=command, ctx=context, name="dioptra-assets")
    commands = html.unescape(written[written.index("## ") :])
    listed = []
    for name in command.list_commands(context):  # type: ignore[attr-defined]
        found = command.get_command(context, name)  # type: ignore[attr-defined]
        first = " ".join(inspect.cleandoc(found.help or "").split("\n\n")[0].split())
        listed.append(f"| [`{name}`](#{name}) | {first} |")
    text = re.sub(r"^## `dioptra-assets ", "## `", commands, flags=re.MULTILINE).rstrip()
    return "\n".join([HEAD, "| command | does |", "|---|---|", *listed, "", text, ""])


if __name__ == "__main__":
    PAGE.write_text(page())
