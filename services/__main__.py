"""`make services-up` and `make services-down`: the services of a team, on this machine, without docker.

Everything is kept below the folder `.services`. The settings, with passwords drawn at the first start, are written to
`.env`, which the command line, Python and `make` read from then on; `make services-down` leaves data and `.env`, and
removing `.env` goes back to the embedded default. supervisord keeps the processes running.
"""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from dotenv import dotenv_values

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
FOLDER = ROOT / ".services"
SETTINGS = ROOT / ".env"
PORTS = {"POSTGRES_PORT": 15432, "REDIS_PORT": 16379, "S3_PORT": 18333, "MLFLOW_PORT": 15000, "UI_PORT": 3000}
BUCKET = "dioptra"
PLATFORM = ("mlflow", "worker", "daemon", "ui")
INSTALL = "apt-get install postgresql redis-server, or the like of it, or use compose.yaml"


def main() -> None:
    """One of the commands."""
    commands: dict[str, Callable[[], None]] = {"up": up, "down": down, "status": status, "env": write_settings}
    if len(sys.argv) != 2 or sys.argv[1] not in commands:
        sys.exit(f"usage: python -m services {'|'.join(commands)}")
    commands[sys.argv[1]]()


def up() -> None:
    """Start what is not running, and say where it answers."""
    postgres_bin, redis_server = _binaries()
    _prepare(postgres_bin)
    environment = _environment(postgres_bin, redis_server)
    if not _running():
        subprocess.run([BIN / "supervisord", "-c", FOLDER / "supervisord.conf"], check=True, env=environment)
    settings = dotenv_values(SETTINGS)
    _await(PORTS["POSTGRES_PORT"], "postgres")
    _await(PORTS["REDIS_PORT"], "redis")
    _await(PORTS["S3_PORT"], "s3")
    _make_databases(str(settings["DIOPTRA_ASSETS_POSTGRES"]))
    _make_bucket(settings)
    _control("start", *PLATFORM)
    _await(PORTS["MLFLOW_PORT"], "mlflow")
    _await(PORTS["UI_PORT"], "ui")
    status()
    print(f"Dagster: http://127.0.0.1:{PORTS['UI_PORT']}   MLflow: http://127.0.0.1:{PORTS['MLFLOW_PORT']}")
    print(f"settings: {SETTINGS}   logs: {FOLDER / 'log'}")


def down() -> None:
    """Stop everything; data and settings stay."""
    if _running():
        _control("shutdown")


def status() -> None:
    """What runs."""
    if _running():
        _control("status", check=False)
    else:
        print("no services run here: make services-up")


def write_settings() -> None:
    """Write `.env` with new passwords, unless it is there; what `compose.yaml` reads."""
    if not SETTINGS.exists():
        _write_secret(SETTINGS, _settings(*(secrets.token_hex(16) for _ in range(4))))


def _binaries() -> tuple[Path, str]:
    """The folder of Postgres' programs, and Redis."""
    initdb = shutil.which("initdb")
    found = [Path(initdb).parent] if initdb else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    redis_server = shutil.which("redis-server")
    if not found or not redis_server:
        missing = " and ".join(
            name for name, there in (("Postgres", found), ("redis-server", redis_server)) if not there
        )
        sys.exit(f"{missing} not found on this machine: {INSTALL}")
    return found[-1].resolve(), redis_server


def _prepare(postgres_bin: Path) -> None:
    """Folders, configuration and secrets, once."""
    (FOLDER / "log").mkdir(parents=True, exist_ok=True)
    (FOLDER / "s3").mkdir(exist_ok=True)
    (FOLDER / "redis").mkdir(exist_ok=True)
    home = FOLDER / "home"
    home.mkdir(exist_ok=True)
    shutil.copy(ROOT / "services" / "dagster.yaml", home)
    shutil.copy(ROOT / "services" / "supervisord.conf", FOLDER)
    write_settings()
    settings = dotenv_values(SETTINGS)
    if "DIOPTRA_ASSETS_POSTGRES" not in settings:
        sys.exit(f"{SETTINGS} is there already and holds other settings: move it away first")
    password = str(settings["POSTGRES_PASSWORD"])
    if not (FOLDER / "postgres" / "PG_VERSION").exists():
        _initialize_postgres(postgres_bin, password)
    redis = f"bind 127.0.0.1\nport {PORTS['REDIS_PORT']}\ndir {FOLDER / 'redis'}\nappendonly yes\n"
    _write_secret(FOLDER / "redis.conf", redis + f"requirepass {settings['REDIS_PASSWORD']}\n")
    key = {"accessKey": settings["AWS_ACCESS_KEY_ID"], "secretKey": settings["AWS_SECRET_ACCESS_KEY"]}
    identity = {"name": "dioptra", "credentials": [key], "actions": ["Admin", "Read", "Write", "List", "Tagging"]}
    _write_secret(FOLDER / "s3.json", json.dumps({"identities": [identity]}))


def _settings(postgres: str, redis: str, access: str, secret: str) -> str:
    ports = PORTS
    return f"""# Written by `make services-up`. Remove this file to go back to the embedded default.
POSTGRES_PASSWORD={postgres}
REDIS_PASSWORD={redis}
AWS_ACCESS_KEY_ID={access}
AWS_SECRET_ACCESS_KEY={secret}
AWS_DEFAULT_REGION=us-east-1
AWS_ENDPOINT_URL=http://127.0.0.1:{ports["S3_PORT"]}
DAGSTER_HOME={FOLDER / "home"}
DIOPTRA_ASSETS_POSTGRES=postgresql+psycopg2://dioptra:{postgres}@127.0.0.1:{ports["POSTGRES_PORT"]}/dagster
DIOPTRA_ASSETS_BUCKET={BUCKET}
DIOPTRA_ASSETS_STORE=s3://{BUCKET}/store
DIOPTRA_ASSETS_EXECUTOR=celery
DIOPTRA_ASSETS_CELERY_BROKER=redis://:{redis}@127.0.0.1:{ports["REDIS_PORT"]}/0
MLFLOW_TRACKING_URI=http://127.0.0.1:{ports["MLFLOW_PORT"]}
"""


def _initialize_postgres(postgres_bin: Path, password: str) -> None:
    data, secret = FOLDER / "postgres", FOLDER / "password"
    data.mkdir(exist_ok=True)
    _write_secret(secret, password)
    try:
        if _as_postgres():
            # Postgres refuses to run as root.
            for path in (data, secret):
                shutil.chown(path, "postgres")
            for path in (FOLDER, *FOLDER.parents):
                if not path.stat().st_mode & 0o001:
                    sys.exit(f"Postgres runs as the user `postgres`, who may not enter {path}: chmod o+x {path}")
        command = [*_as_postgres(), postgres_bin / "initdb", "-D", data, "-U", "dioptra", "--encoding", "UTF8"]
        secured = ["--auth", "scram-sha-256", "--pwfile", secret]
        subprocess.run([*command, *secured], check=True, stdout=subprocess.DEVNULL, cwd="/")
    finally:
        secret.unlink()


def _as_postgres() -> list[str]:
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []


def _environment(postgres_bin: Path, redis_server: str) -> dict[str, str]:
    settings = {name: value or "" for name, value in dotenv_values(SETTINGS).items()}
    database = settings["DIOPTRA_ASSETS_POSTGRES"].rsplit("/", 1)[0] + "/mlflow"
    return {
        **os.environ,
        **settings,
        **{name: str(port) for name, port in PORTS.items()},
        "ROOT": str(ROOT),
        "BIN": str(BIN),
        "BUCKET": BUCKET,
        "POSTGRES_BIN": str(postgres_bin),
        "REDIS_SERVER": redis_server,
        "AS_POSTGRES": "".join(f"{word} " for word in _as_postgres()),
        "MLFLOW_DATABASE": database,
        "PATH": os.pathsep.join([str(BIN), os.environ.get("PATH", "")]),
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }


def _make_databases(url: str) -> None:
    import psycopg2

    server = url.replace("+psycopg2", "").rsplit("/", 1)[0]
    connection = psycopg2.connect(f"{server}/postgres")
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute("SELECT datname FROM pg_database")
        there = {name for (name,) in cursor.fetchall()}
        for name in ("dagster", "mlflow"):
            if name not in there:
                cursor.execute(f"CREATE DATABASE {name}")
    connection.close()


def _make_bucket(settings: dict[str, str | None]) -> None:
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    client = boto3.client(
        "s3",
        endpoint_url=settings["AWS_ENDPOINT_URL"],
        aws_access_key_id=settings["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=settings["AWS_SECRET_ACCESS_KEY"],
        region_name=settings["AWS_DEFAULT_REGION"],
    )
    deadline = time.monotonic() + 60
    while True:
        try:
            if BUCKET not in {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}:
                client.create_bucket(Bucket=BUCKET)
            return
        except (BotoCoreError, ClientError) as error:  # the port answers before the server is ready, in many ways
            if time.monotonic() > deadline:
                sys.exit(f"s3 does not answer after a minute ({error}): see {FOLDER / 'log' / 's3.log'}")
            time.sleep(1)


def _running() -> bool:
    socket_path = FOLDER / "supervisor.sock"
    if not socket_path.exists():
        return False
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(socket_path))
        except OSError:
            return False
    return True


def _control(*words: str, check: bool = True) -> None:
    command = [BIN / "supervisorctl", "-s", f"unix://{FOLDER / 'supervisor.sock'}", *words]
    subprocess.run(command, check=check)


def _await(port: int, name: str) -> None:
    deadline = time.monotonic() + 90
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                sys.exit(f"{name} does not answer after 90 s: see {FOLDER / 'log' / name}.log")
            time.sleep(0.5)


def _write_secret(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)


if __name__ == "__main__":
    main()
