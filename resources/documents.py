"""Documents in the store: a config as JSON, a report as one HTML page with records beside it."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from resources.store import Destination, StoredCell

CONFIG = "config"
REPORT = "report"
CONFIG_FILE = "config.json"
REPORT_FILE = "report.html"


def write_config(
    destination: Destination,
    document: Mapping[str, Any],
) -> StoredCell:
    """Store a config; its data version is the hash of its values."""
    content = json.dumps(document, sort_keys=True, indent=1).encode()
    with destination.writer(CONFIG) as writer:
        writer.put(CONFIG_FILE, content)
        return writer.commit(hashlib.sha256(content).hexdigest(), {})


def read_config(stored: StoredCell) -> dict[str, Any]:
    """The values of a config."""
    return json.loads(stored.read(CONFIG_FILE))


def write_report(
    destination: Destination,
    page: str,
    records: Mapping[str, bytes],
) -> StoredCell:
    """Store a report page and the records beside it (file name -> content); its data version is the hash of all."""
    files = {REPORT_FILE: page.encode(), **records}
    digest = hashlib.sha256()
    with destination.writer(REPORT) as writer:
        for name, content in files.items():
            writer.put(name, content)
            digest.update(f"{name}\0{writer.files[name].sha256}\0".encode())
        return writer.commit(digest.hexdigest(), {})


def read_report(stored: StoredCell) -> str:
    """The HTML of a report."""
    return stored.read(REPORT_FILE).decode()


def read_records(stored: StoredCell) -> dict[str, bytes]:
    """The records beside a report: file name -> content."""
    return {name: stored.read(name) for name in stored.manifest.files if name != REPORT_FILE}
