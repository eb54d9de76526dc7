"""What the release of Dagster at hand lacks of `dioptra_assets/dagster_internals.py` and of the Celery executor.

As a script it needs Dagster and dagster-celery alone: `make dagster-newest` asks the newest release.
"""

import ast
import importlib
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOM = ROOT / "dioptra_assets" / "dagster_internals.py"
# dagster-celery documents nothing of what a worker of one's own needs.
CELERY = [ROOT / "resources" / "executors" / name for name in ("celery.py", "celery_app.py")]


def lacking(*files: Path) -> list[str]:
    """The names of Dagster's packages that cannot be imported, as `module.name`."""
    return [
        f"{node.module}.{alias.name}"
        for file in files or (ROOM, *CELERY)
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(("dagster.", "dagster_celery"))
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
