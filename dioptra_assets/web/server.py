"""Dagster on this machine: `make ui`, or `python -m dioptra_assets.web.server -p 3000`.

One server loads the code; the daemon and the guarded web server both read it there, so a reload in the UI is a reload
for the runs that the daemon launches too. It answers at a socket in a folder that its owner alone may enter.
"""

import argparse
import contextlib
import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from dioptra_assets.dagster_internals import DAEMON
from dioptra_assets.runs.origin import MODULE, location_of

# What is left of the processes, runs among them, after being asked to end for so long is killed.
STOP_SECONDS = 20.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until interrupted, or until one of the three ends."""
    parser = argparse.ArgumentParser(prog="python -m dioptra_assets.web.server")
    parser.add_argument("-p", "--port", type=int, default=3000)
    parser.add_argument("-m", "--module", default=MODULE)
    parser.add_argument("-d", "--working-directory", default=".")
    chosen, further = parser.parse_known_args(arguments)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", chosen.port))
        except OSError:
            print(f"port {chosen.port} is taken by another program: make ui UI_PORT={chosen.port + 1}", file=sys.stderr)
            return 1
    location = location_of(chosen.module)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    # Its folder is open to its owner alone, so whoever may not enter it cannot ask the code server to run anything.
    with tempfile.TemporaryDirectory(prefix="dioptra_assets_") as folder, contextlib.ExitStack() as stack:
        code = Path(folder) / "code.sock"
        workspace = write_workspace(Path(folder), code, location)
        started: dict[str, subprocess.Popen[bytes]] = {}

        def start(name: str, *command: str) -> None:
            # A session of its own: Ctrl-C in a terminal comes here alone, and what is left to end is ended from here.
            words = [sys.executable, "-m", *command]
            started[name] = subprocess.Popen(words, cwd=chosen.working_directory, start_new_session=True)

        stack.callback(lambda: end(list(started.values())))
        try:
            start("code server", *code_server(code, chosen.module, chosen.working_directory, location))
            _watch(started, until=lambda: _answers(code))
            start("daemon", DAEMON, "run", "-w", str(workspace))
            web = ["-h", "127.0.0.1", "-p", str(chosen.port), "-w", str(workspace)]
            start("web server", "dioptra_assets.web.ui", *web, *further)
            return _watch(started, until=lambda: False)
        except KeyboardInterrupt:
            return 0


def code_server(code: Path, module: str, folder: str, location: str) -> list[str]:
    """The words of the server that loads the code, and loads it again when it is told to, at a socket."""
    words = ["dagster", "code-server", "start", "--socket", str(code), "--location-name", location]
    # A machine that is busy for longer than the usual 30 s would lose the code.
    words += ["--heartbeat-ttl", "600"]
    return [*words, "-m", module, "-d", str(Path(folder).resolve())]


def write_workspace(folder: Path, code: Path, location: str) -> Path:
    """The file by which daemon and web server find that server."""
    server = {"grpc_server": {"socket": str(code), "location_name": location}}
    workspace = folder / "workspace.yaml"
    workspace.write_text(json.dumps({"load_from": [server]}))
    return workspace


def end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """End processes and all they started, runs among them: first by asking, which runs are told of."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    all_of_them: list[psutil.Process] = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            leader = psutil.Process(process.pid)
            all_of_them += [leader, *leader.children(recursive=True)]
    for process in all_of_them:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, left = psutil.wait_procs(all_of_them, timeout=STOP_SECONDS)
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _watch(started: dict[str, subprocess.Popen[bytes]], until: Callable[[], bool]) -> int:
    """Wait; ends with the status of whatever ended although it should not have."""
    while not until():
        for name, process in started.items():
            if (status := process.poll()) is not None:
                print(f"the {name} ended with status {status}", file=sys.stderr)
                sys.exit(status or 1)
        time.sleep(0.2)
    return 0


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


if __name__ == "__main__":
    sys.exit(main())
