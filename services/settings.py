"""The file `.env` of the services: ports, passwords, and where everything answers.

It is written by the first `make services-up`, readable by its owner alone, and read by the command line, Python, `make`
and compose from then on. Ports are settings in it; those of the first start are the usual ones, or free ones where
another checkout has those already, or what the environment says under the same names.
"""

import os
import secrets
import socket
import sys
from pathlib import Path

from dotenv import dotenv_values

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".services"
FILE = ROOT / ".env"
BUCKET = "dioptra"
PREFIX, SUFFIX = "DIOPTRA_ASSETS_", "_PORT"
# The parts of the S3 server talk to each other; every port asks for their certificate.
PARTS = ("MASTER", "MASTER_GRPC", "VOLUME", "VOLUME_GRPC", "FILER", "FILER_GRPC", "S3_GRPC")
PORTS = {
    "POSTGRES": 15432,
    "REDIS": 16379,
    "S3": 18333,
    "MLFLOW": 15000,
    "UI": 3000,
    **{part: 19333 + at for at, part in enumerate(PARTS)},
}


def port_setting(name: str) -> str:
    """What the port of a service is called in `.env`."""
    return f"{PREFIX}{name}{SUFFIX}"


def read() -> dict[str, str]:
    """What `.env` says.

    Raises:
        SystemExit: with a sentence, when it is another's, or says no port where it should.
    """
    settings = {name: value or "" for name, value in dotenv_values(FILE, interpolate=True).items()}
    if "DIOPTRA_ASSETS_POSTGRES" not in settings or "POSTGRES_PASSWORD" not in settings:
        sys.exit(f"{FILE} is there already and holds other settings: move it away first")
    return settings


def ports(settings: dict[str, str]) -> dict[str, int]:
    """The port of each service.

    Raises:
        SystemExit: with a sentence, for one that is no port.
    """
    found = {}
    for name in PORTS:
        text = settings.get(port_setting(name), "")
        if not text.isdigit() or not 0 < int(text) < 65536:
            sys.exit(f"{FILE}: {port_setting(name)}={text} is not allowed, it must be a number from 1 to 65535")
        found[name] = int(text)
    return found


def write() -> None:
    """Write `.env` with new passwords, unless it is there; one of an earlier release is given what it lacks."""
    there = dotenv_values(FILE) if FILE.exists() else {}
    if there and "POSTGRES_PASSWORD" not in there:
        return
    wanted = {**_ports(there), **_secrets(), **_places()}
    new = {name: value for name, value in wanted.items() if name not in there}
    if not new:
        return
    heading = "" if there else "# Written by `make services-up`. Remove this file to go back to the embedded default.\n"
    before = FILE.read_text() if there else ""
    write_secret(FILE, before + heading + "".join(f"{name}={value}\n" for name, value in new.items()))


def write_secret(path: Path, text: str | bytes) -> None:
    """A file that its owner alone reads."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(text.encode() if isinstance(text, str) else text)


def is_free(port: int) -> bool:
    """Whether nobody listens on a port of the loopback interface."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _ports(there: dict[str, str | None]) -> dict[str, str]:
    """A port for each service: what the environment says, else the usual one where it is free, else a free one."""
    if there.get("DIOPTRA_ASSETS_POSTGRES") and port_setting("POSTGRES") not in there:
        return {port_setting(name): str(port) for name, port in PORTS.items()}  # an earlier release had these
    chosen: dict[str, str] = {}
    for name, usual in PORTS.items():
        setting = port_setting(name)
        given = os.environ.get(setting)
        chosen[setting] = given or str(usual if is_free(usual) else _free_port(set(chosen.values())))
    return chosen


def _free_port(taken: set[str]) -> int:
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        if str(port) not in taken:
            return port


def _secrets() -> dict[str, str]:
    names = ("POSTGRES_PASSWORD", "REDIS_PASSWORD", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    tokens = ("MLFLOW_TRACKING_TOKEN", "DIOPTRA_ASSETS_UI_TOKEN")
    return {name: secrets.token_hex(16) for name in (*names, *tokens)}


def _places() -> dict[str, str]:
    """Where things answer, in the words of the ports and passwords above."""
    return {
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:${{{port_setting('S3')}}}",
        "DAGSTER_HOME": str(FOLDER / "home"),
        "DIOPTRA_ASSETS_POSTGRES": "postgresql+psycopg2://dioptra:${POSTGRES_PASSWORD}"
        f"@127.0.0.1:${{{port_setting('POSTGRES')}}}/dagster",
        "DIOPTRA_ASSETS_BUCKET": BUCKET,
        "DIOPTRA_ASSETS_STORE": f"s3://{BUCKET}/store",
        "DIOPTRA_ASSETS_EXECUTOR": "celery",
        "DIOPTRA_ASSETS_CELERY_BROKER": f"redis://:${{REDIS_PASSWORD}}@127.0.0.1:${{{port_setting('REDIS')}}}/0",
        "MLFLOW_TRACKING_URI": f"http://127.0.0.1:${{{port_setting('MLFLOW')}}}",
        # Without its token the UI shows nothing: whoever has an account on this machine could look otherwise.
        "DIOPTRA_ASSETS_UI_VIEWERS": "nobody",
    }
