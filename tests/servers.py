"""Servers as a person starts them, on ports of their own, for tests that look at them from outside."""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.clusters import free_port
from tests.conftest import ROOT, SETTINGS, Lab


def answer(url: str, data: bytes | None = None, **headers: str) -> tuple[int, str]:
    """Status and text of one request; names of headers with `_` for `-`."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, named), timeout=30) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def graphql(url: str, query: str, variables: Mapping[str, Any] | None = None, **headers: str) -> dict[str, Any]:
    """What Dagster's server answers to one query."""
    asked = json.dumps({"query": query, "variables": variables or {}}).encode()
    status, text = answer(f"{url}/graphql", asked, Content_Type="application/json", **headers)
    assert text.startswith("{"), (status, text)
    return json.loads(text)


@contextmanager
def dagster_ui(lab: Lab, *options: str, port: int = 0, **settings: str) -> Iterator[str]:
    """Dagster's guarded web server on a lab; gives its URL."""
    port = port or free_port()
    command = [sys.executable, "-m", "dioptra_assets.web.ui", "-m", f"{lab.module}.definitions", "-d", str(lab.folder)]
    command += options or ("-h", "127.0.0.1", "-p", str(port))
    environment = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    environment |= {"DAGSTER_HOME": str(lab.home), **settings}
    # Dagster reads the .env where it stands.
    with _started(command, environment, lab.folder, f"http://127.0.0.1:{port}", "/server_info") as url:
        yield url


@contextmanager
def mlflow_server(home: Path, **settings: str) -> Iterator[str]:
    """MLflow as `make mlflow` starts it; gives its URL."""
    port = free_port()
    shown = subprocess.run(
        ["make", "--no-print-directory", "-n", "-o", "setup", "mlflow", f"MLFLOW_PORT={port}", f"DAGSTER_HOME={home}"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    command = "exec env " + shown.replace("\\\n", " ").strip().replace(".venv/bin", str(Path(sys.executable).parent))
    environment = {name: value for name, value in os.environ.items() if name not in SETTINGS} | settings
    (home / "mlflow").mkdir(parents=True, exist_ok=True)
    with _started(["sh", "-c", command], environment, home, f"http://127.0.0.1:{port}", "/version") as url:
        yield url


@contextmanager
def _started(
    command: Sequence[str], environment: Mapping[str, str], folder: Path, url: str, path: str
) -> Iterator[str]:
    process = subprocess.Popen(command, env=environment, cwd=folder)
    try:
        for _ in range(240):
            assert process.poll() is None, f"{command} ended with {process.returncode}"
            try:
                answer(f"{url}{path}")
                break
            except (urllib.error.URLError, TimeoutError, ConnectionError):
                time.sleep(0.5)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=60)
