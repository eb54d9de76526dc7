"""Documents in the store: a config as JSON, a report as one HTML page."""

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from resources.cells import Cell, CellStore, StoredCell

CONFIG = "config"
REPORT = "report"
CONFIG_FILE = "config.json"
REPORT_FILE = "report.html"


def write_config(
    store: CellStore,
    cell: Cell,
    document: Mapping[str, Any],
    *,
    run_id: str = "",
    guard: Callable[[], None] = lambda: None,
) -> StoredCell:
    """Store a config; its data version is the hash of its values."""
    content = json.dumps(document, sort_keys=True, indent=1).encode()
    with store.write(cell, CONFIG, run_id) as writer:
        writer.put(CONFIG_FILE, content)
        return writer.commit(hashlib.sha256(content).hexdigest(), {}, guard)


def read_config(stored: StoredCell) -> dict[str, Any]:
    """The values of a config."""
    return json.loads(stored.read(CONFIG_FILE))


def write_report(
    store: CellStore, cell: Cell, page: str, *, run_id: str = "", guard: Callable[[], None] = lambda: None
) -> StoredCell:
    """Store a report page."""
    content = page.encode()
    with store.write(cell, REPORT, run_id) as writer:
        writer.put(REPORT_FILE, content)
        return writer.commit(hashlib.sha256(content).hexdigest(), {}, guard)


def read_report(stored: StoredCell) -> str:
    """The HTML of a report."""
    return stored.read(REPORT_FILE).decode()
