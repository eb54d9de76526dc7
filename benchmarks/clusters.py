"""Real workers on this machine, for tests and benchmarks: Celery with Redis, and a Ray cluster of two nodes."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from resources.executors.workers import WORKER

BIN = Path(sys.executable).parent
ROOT = Path(__file__).resolve().parent.parent


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _environment(extra: Mapping[str, str]) -> dict[str, str]:
    # `dagster`, which a Ray job calls, stands beside this Python.
    path = os.pathsep.join([str(BIN), os.environ.get("PATH", "")])
    return {**os.environ, "PATH": path, **extra}


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def redis(port: int = 0, folder: Path | None = None) -> Iterator[str]:
    """A Redis server; gives its URL. It keeps nothing, or what it is told in a folder.

    Raises:
        FileNotFoundError: where no `redis-server` is installed.
    """
    server = shutil.which("redis-server")
    if server is None:
        raise FileNotFoundError("there is no redis-server on this machine")
    port = port or free_port()
    kept = (
        ["--dir", str(folder), "--appendonly", "yes", "--appendfsync", "always"] if folder else ["--appendonly", "no"]
    )
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", *kept]
    process = subprocess.Popen([server, *options], stdout=subprocess.DEVNULL)
    try:
        _wait(port, "redis-server")
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        _stop(process)


@contextmanager
def celery_worker(broker: str, log: Path, environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A Celery worker of both queues, one task at a time; `process.pid` is the parent of the one that computes."""
    settings = {"DIOPTRA_ASSETS_EXECUTOR": "celery", "DIOPTRA_ASSETS_CELERY_BROKER": broker, **environment}
    with log.open("ab") as output:
        process = subprocess.Popen(WORKER, cwd=ROOT, env=_environment(settings), stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + 60
        while b" ready." not in log.read_bytes():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the Celery worker did not start: {log.read_text()[-2000:]}")
            time.sleep(0.2)
        yield process
    finally:
        _stop(process)


@contextmanager
def ray_cluster(environment: Mapping[str, str]) -> Iterator[str]:
    """A Ray cluster of two nodes, each of which believes that it has a GPU; gives the address for jobs."""
    port, dashboard = free_port(), free_port()
    node = ["--node-ip-address", "127.0.0.1", "--num-cpus", "1", "--num-gpus", "1", "--disable-usage-stats"]
    head = ["--head", "--port", str(port), "--dashboard-host", "127.0.0.1", "--dashboard-port", str(dashboard)]
    start = [BIN / "ray", "start", *node]
    quiet = {"env": _environment(environment), "stdout": subprocess.DEVNULL, "stderr": subprocess.STDOUT}
    try:
        subprocess.run([*start, *head], check=True, **quiet)
        subprocess.run([*start, "--address", f"127.0.0.1:{port}"], check=True, **quiet)
        _wait(dashboard, "Ray's dashboard")
        yield f"http://127.0.0.1:{dashboard}"
    finally:
        subprocess.run([BIN / "ray", "stop", "--force"], check=False, **quiet)


def _wait(port: int, what: str) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{what} did not start within a minute") from None
            time.sleep(0.2)
