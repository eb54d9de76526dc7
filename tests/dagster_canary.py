"""What of `dioptra_assets/dagster_internals.py` the release of Dagster at hand does not have.

As a script it needs Dagster alone: `make dagster-newest` asks the newest release.
"""

import ast
import importlib
import sys
from pathlib import Path

ROOM = Path(__file__).parents[1] / "dioptra_assets" / "dagster_internals.py"


def lacking(room: Path = ROOM) -> list[str]:
    """The names that cannot be imported, as `module.name`."""
    return [
        f"{node.module}.{alias.name}"
        for node in ast.walk(ast.parse(room.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
        if not _is_there(node.module, alias.name)
    ]


def _is_there(module: str, name: str) -> bool:
    try:
        return hasattr(importlib.import_module(module), name) or bool(importlib.import_module(f"{module}.{name}"))
    except ImportError:
        return False


if __name__ == "__main__":
    sys.exit("\n".join(lacking(*map(Path, sys.argv[1:]))) or 0)
