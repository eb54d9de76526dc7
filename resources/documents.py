"""Documents in the store: a config as JSON, a report as one HTML page with records beside it."""

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from resources.store import Cell, CellStore, StoredCell

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
    store: CellStore,
    cell: Cell,
    page: str,
    records: Mapping[str, bytes],
    *,
    run_id: str = "",
    guard: Callable[[], None] = lambda: None,
) -> StoredCell:
    """Store a report page and the records beside it (file name -> content); its data version is the hash of all."""
    files = {REPORT_FILE: page.encode(), **records}
    digest = hashlib.sha256()
    with store.write(cell, REPORT, run_id) as writer:
        for name, content in files.items():
            writer.put(name, content)
            digest.update(f"{name}\0{writer.files[name].sha256}\0".encode())
        return writer.commit(digest.hexdigest(), {}, guard)


def read_report(stored: StoredCell) -> str:
    """The HTML of a report."""
    return stored.read(REPORT_FILE).decode()


def read_records(stored: StoredCell) -> dict[str, bytes]:
    """The records beside a report: file name -> content."""
    return {name: stored.read(name) for name in stored.manifest.files if name != REPORT_FILE}
