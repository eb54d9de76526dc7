"""`make services-up`, `services-down`, `services-restart`: the services of a team, on this machine, without docker.

Everything is kept below the folder `.services`. The settings, with ports, and passwords drawn at the first start, are
written to `.env`, which the command line, Python and `make` read from then on; `make services-down` leaves data and
`.env`, and removing `.env` goes back to the embedded default. supervisord keeps the processes running.

Why: docs/decisions/0025-services-are-supervisord.md
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
from filelock import FileLock

from services import servers
from services import settings as env
from services.settings import FOLDER, is_free, port_setting

SOCKET = FOLDER / "run" / "supervisor.sock"
CODE_SOCKET = FOLDER / "run" / "code.sock"
# As long as all may take to stop, and each to start, on a machine that has other things to do.
STOP_SECONDS = 120.0
START_SECONDS = 600.0


def main() -> None:
    """One of the commands."""
    commands: dict[str, Callable[[], None]] = {
        "up": up,
        "down": down,
        "restart": restart,
        "status": status,
        "env": env.write,
    }
    if len(sys.argv) != 2 or sys.argv[1] not in commands:
        sys.exit(f"usage: python -m services {'|'.join(commands)}")
    commands[sys.argv[1]]()


def up() -> None:
    """Start what is not running, and say where it answers."""
    postgres_bin, redis_server = servers.binaries()
    FOLDER.mkdir(exist_ok=True)
    with FileLock(FOLDER / "lock"):  # a stop that is under way is waited for
        settings = servers.prepare(postgres_bin)
        ports = env.ports(settings)
        if not _running():
            _end_processes()  # of a supervisord that was killed
            for name, port in ports.items():
                if not is_free(port):
                    sys.exit(f"port {port} is taken by another program: change {port_setting(name)} in {env.FILE}")
            environment = servers.environment(settings, postgres_bin, redis_server)
            subprocess.run(
                [servers.BIN / "supervisord", "-c", FOLDER / "supervisord.conf"], check=True, env=environment
            )
        _control("start", "base:*", quiet=True)
        for name in ("POSTGRES", "REDIS", "S3"):
            _await(("127.0.0.1", ports[name]), name.lower())
        servers.make_databases(settings)
        servers.make_bucket(settings)
        _control("start", "platform:mlflow", "platform:code", "platform:worker", quiet=True)
        _await(CODE_SOCKET, "code")
        _control("start", "platform:*", quiet=True)
        _await(("127.0.0.1", ports["MLFLOW"]), "mlflow")
        _await(("127.0.0.1", ports["UI"]), "ui")
    status()
    print(f"Dagster: http://127.0.0.1:{ports['UI']}/?token={settings.get('DIOPTRA_ASSETS_UI_TOKEN', '')}")
    print(f"MLflow:  http://127.0.0.1:{ports['MLFLOW']}/?token={settings.get('MLFLOW_TRACKING_TOKEN', '')}")
    print(f"settings: {env.FILE}   logs: {FOLDER / 'log'}")


def down() -> None:
    """Stop everything, and wait until all of it is gone; data and settings stay."""
    if not FOLDER.exists():
        return
    with FileLock(FOLDER / "lock"):
        if _running():
            # First what writes, then what it writes to.
            _control("stop", "platform:*", quiet=True, check=False)
            _control("shutdown", quiet=True, check=False)
        deadline = time.monotonic() + STOP_SECONDS
        while _processes() and time.monotonic() < deadline:
            time.sleep(0.2)
        _end_processes()


def restart() -> None:
    """Stop everything, and start it again."""
    down()
    up()


def status() -> None:
    """What runs."""
    if _running():
        _control("status", check=False)
    else:
        print("no services run here: make services-up")


def _running() -> bool:
    """Whether supervisord answers, and is not about to stop, which is waited for."""
    deadline = time.monotonic() + STOP_SECONDS
    while _answers(SOCKET):
        state = subprocess.run(_supervisorctl("pid"), capture_output=True, text=True, check=False)
        if "SHUTDOWN_STATE" not in state.stdout + state.stderr:
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)
    return False


def _processes() -> list[psutil.Process]:
    """Every process of these services, whoever its parent is: supervisord may have been killed."""
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.environ().get(servers.MARK) == str(FOLDER):
                # Some processes write over their environment; their parents' tells.
                found |= {one.pid: one for one in (process, *process.children(recursive=True))}
    found.pop(os.getpid(), None)
    return [process for process in found.values() if _lives(process)]


def _lives(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


def _end_processes() -> None:
    """End what is left, first by asking."""
    for end, seconds in ((psutil.Process.terminate, 20.0), (psutil.Process.kill, 10.0)):
        left = _processes()
        for process in left:
            try:
                end(process)
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(left, timeout=seconds)


def _supervisorctl(*words: str) -> list[str | Path]:
    return [servers.BIN / "supervisorctl", "-s", f"unix://{SOCKET}", *words]


def _control(*words: str, check: bool = True, quiet: bool = False) -> None:
    """One command of supervisorctl; `start` says of what runs already that it does, which is no error."""
    done = subprocess.run(_supervisorctl(*words), capture_output=True, text=True, check=False)
    said = [line for line in done.stdout.splitlines() if "already started" not in line]
    if not quiet:
        print(done.stdout, end="")
    if check and any("ERROR" in line for line in said):
        sys.exit("\n".join(line for line in said if "ERROR" in line) + f": see {FOLDER / 'log'}")


def _answers(address: tuple[str, int] | Path) -> bool:
    family = socket.AF_UNIX if isinstance(address, Path) else socket.AF_INET
    with socket.socket(family) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(address) if isinstance(address, Path) else address)
        except OSError:
            return False
    return True


def _await(address: tuple[str, int] | Path, name: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not _answers(address):
        if time.monotonic() > deadline:
            sys.exit(f"{name} does not answer after {START_SECONDS:.0f} s: see {FOLDER / 'log' / name}.log")
        time.sleep(0.2)


if __name__ == "__main__":
    main()
