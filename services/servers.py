"""What each server needs before it starts: programs, folders, configuration, a database, a bucket."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from resources.executors.gpus import visible_gpus
from services import settings as env
from services.certificates import make_certificate, weed_settings
from services.settings import BUCKET, FOLDER, ROOT, port_setting, write_secret

BIN = Path(sys.executable).parent
INSTALL = "apt-get install postgresql redis-server, or the like of it, or use compose.yaml"
# In the environment of every process of these services, by which they are known whoever their parent is.
MARK = "DIOPTRA_ASSETS_SERVICES"
LONGEST_SOCKET = 100


def binaries() -> tuple[Path, str]:
    """The folder of Postgres' programs, and Redis.

    Raises:
        SystemExit: with what to install, where there are none.
    """
    initdb = shutil.which("initdb")
    found = [Path(initdb).parent] if initdb else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    redis_server = shutil.which("redis-server")
    if not found or not redis_server:
        missing = " and ".join(
            name for name, there in (("Postgres", found), ("redis-server", redis_server)) if not there
        )
        sys.exit(f"{missing} not found on this machine: {INSTALL}")
    return found[-1].resolve(), redis_server


def prepare(postgres_bin: Path) -> dict[str, str]:
    """Folders, configuration and secrets, once; gives the settings.

    Raises:
        SystemExit: with a sentence, when `.env` or the folder will not do.
    """
    longest = FOLDER / "run" / "supervisor.sock"
    if len(os.fsencode(longest)) > LONGEST_SOCKET:
        sys.exit(
            f"{longest}: the path of a socket may have {LONGEST_SOCKET} characters: move the checkout to a shorter"
        )
    env.write()
    settings = env.read()
    ports = env.ports(settings)
    for name in ("log", "s3", "redis", "home", "run"):
        (FOLDER / name).mkdir(parents=True, exist_ok=True)
    (FOLDER / "run").chmod(0o700)
    instance = (ROOT / "services" / "dagster.yaml").read_text()
    slots = f"default_limit: {max(1, len(visible_gpus()))}"
    (FOLDER / "home" / "dagster.yaml").write_text(instance.replace("default_limit: 1", slots))
    shutil.copy(ROOT / "services" / "supervisord.conf", FOLDER)
    location = {"socket": str(FOLDER / "run" / "code.sock"), "location_name": "dioptra_assets"}
    (FOLDER / "workspace.yaml").write_text(json.dumps({"load_from": [{"grpc_server": location}]}))
    if not (FOLDER / "postgres" / "PG_VERSION").exists():
        _initialize_postgres(postgres_bin, settings["POSTGRES_PASSWORD"])
    redis = f"bind 127.0.0.1\nport {ports['REDIS']}\ndir {FOLDER / 'redis'}\nappendonly yes\n"
    redis += "set-proc-title no\n"  # it would write over its environment, by which it is known as one of these services
    write_secret(FOLDER / "redis.conf", redis + f"requirepass {settings['REDIS_PASSWORD']}\n")
    key = {"accessKey": settings["AWS_ACCESS_KEY_ID"], "secretKey": settings["AWS_SECRET_ACCESS_KEY"]}
    identity = {"name": "dioptra", "credentials": [key], "actions": ["Admin", "Read", "Write", "List", "Tagging"]}
    write_secret(FOLDER / "s3.json", json.dumps({"identities": [identity]}))
    make_certificate(FOLDER / "s3.pem", FOLDER / "s3.key")
    return settings


def environment(settings: dict[str, str], postgres_bin: Path, redis_server: str) -> dict[str, str]:
    """What supervisord and everything below it find in their environment."""
    database = settings["DIOPTRA_ASSETS_POSTGRES"].rsplit("/", 1)[0] + "/mlflow"
    return {
        **os.environ,
        **settings,
        **weed_settings(FOLDER / "s3.pem", FOLDER / "s3.key"),
        MARK: str(FOLDER),
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


def _initialize_postgres(postgres_bin: Path, password: str) -> None:
    data, secret = FOLDER / "postgres", FOLDER / "password"
    data.mkdir(exist_ok=True)
    write_secret(secret, password)
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


def make_databases(settings: dict[str, str]) -> None:
    """The databases of Dagster and MLflow, unless they are there.

    Raises:
        SystemExit: with a sentence, when Postgres does not take the password of `.env` or does not answer.
    """
    import psycopg2

    server = settings["DIOPTRA_ASSETS_POSTGRES"].replace("+psycopg2", "").rsplit("/", 1)[0]
    deadline = time.monotonic() + 60
    while True:
        try:
            connection = psycopg2.connect(f"{server}/postgres")
            break
        except psycopg2.OperationalError as error:
            if "password" in str(error):
                sys.exit(
                    f"the Postgres on port {settings[port_setting('POSTGRES')]} does not take the password of "
                    f"{env.FILE}: it was made with another (remove {FOLDER} to begin anew), or is another checkout's"
                )
            if time.monotonic() > deadline:
                sys.exit(f"postgres does not answer after a minute: see {FOLDER / 'log' / 'postgres.log'}")
            time.sleep(0.5)
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute("SELECT datname FROM pg_database")
        there = {name for (name,) in cursor.fetchall()}
        for name in ("dagster", "mlflow"):
            if name not in there:
                cursor.execute(f"CREATE DATABASE {name}")
    connection.close()


def make_bucket(settings: dict[str, str]) -> None:
    """The bucket, unless it is there.

    Raises:
        SystemExit: when the S3 server does not answer within a minute.
    """
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
