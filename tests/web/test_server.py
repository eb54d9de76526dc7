"""`make ui`: one server loads the code, so a reload in the UI is a reload for the runs that the daemon launches."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.clusters import free_port
from dioptra_assets.web import server
from tests.conftest import ROOT, SETTINGS, Lab
from tests.dagster_internals import WorkspaceFileTarget, WorkspaceProcessContext
from tests.servers import answer, graphql
from tests.web.test_foreign_pages import launching

RELOAD = 'mutation { reloadRepositoryLocation(repositoryLocationName: "NAME") { __typename } }'
LOCATIONS = """query { workspaceOrError { ... on Workspace { locationEntries { loadStatus locationOrLoadError {
    __typename ... on PythonError { errorChain { error { message } } } } } } } }"""
RUNS = "query { runsOrError { ... on Runs { results { runId status } } } }"


def wait(until: Callable[[], Any], seconds: float = 900) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := until()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.5)
    return found


def kind(url: str) -> tuple[str, str]:
    (entry,) = graphql(url, LOCATIONS)["data"]["workspaceOrError"]["locationEntries"]
    loaded = entry["locationOrLoadError"] or {}
    return loaded.get("__typename", ""), str(loaded.get("errorChain", ""))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_what_one_reader_of_the_code_reloads_the_other_has_too(blank: Lab, tmp_path: Path) -> None:
    definitions = blank.folder / blank.module / "definitions.py"
    right = definitions.read_text()
    definitions.write_text(right + "\nraise ValueError('a mistake in the code')\n")
    code, location = tmp_path / "code.sock", f"{blank.module}.definitions"
    workspace = server.write_workspace(tmp_path, code, location)
    command = [sys.executable, "-m", *server.code_server(code, location, str(blank.folder), location)]
    path = os.pathsep.join([str(blank.folder), str(ROOT)])
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": path}, cwd=blank.folder, start_new_session=True)

    def error(reader: WorkspaceProcessContext) -> str:
        entry = reader.create_request_context().get_location_entry(location)
        assert entry is not None
        return entry.load_error.to_string() if entry.load_error else ""

    try:
        wait(code.exists)
        target = WorkspaceFileTarget([str(workspace)])
        with (
            blank.instance() as instance,
            WorkspaceProcessContext(instance, target) as web_server,
            WorkspaceProcessContext(instance, target) as daemon,
        ):
            assert "a mistake in the code" in error(web_server) and "a mistake in the code" in error(daemon)
            definitions.write_text(right)
            web_server.reload_code_location(location)
            wait(lambda: not error(web_server) and not error(daemon))
            (repository,) = daemon.create_request_context().get_code_location(location).get_repositories().values()
            assert repository.has_job("entry_point")
    finally:
        server.end([process])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_after_a_mistake_is_mended_and_reloaded_a_run_uses_the_new_code(blank: Lab) -> None:
    definitions = blank.folder / blank.module / "definitions.py"
    right = definitions.read_text()
    definitions.write_text(right + "\nraise ValueError('a mistake in the code')\n")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "dioptra_assets.web.server", "-p", str(port), "-m", f"{blank.module}.definitions"]
    environment = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    environment |= {"DAGSTER_HOME": str(blank.home), "PYTHONPATH": os.pathsep.join([str(blank.folder), str(ROOT)])}
    process = subprocess.Popen([*command, "-d", str(blank.folder)], env=environment, cwd=blank.folder)
    try:
        wait(lambda: process.poll() is None and _answers(url))
        assert "a mistake in the code" in str(wait(lambda: kind(url) if kind(url)[0] else None))
        definitions.write_text(right)
        graphql(url, RELOAD.replace("NAME", f"{blank.module}.definitions"))
        wait(lambda: kind(url)[0] == "RepositoryLocation")
        assert graphql(url, launching(blank, "testing_set"))["data"]["launchRun"] == {"__typename": "LaunchRunSuccess"}
        done = wait(lambda: [run for run in _runs(url) if run["status"] in ("SUCCESS", "FAILURE")])
        assert [run["status"] for run in done] == ["SUCCESS"]
        others = psutil.Process(process.pid).children(recursive=True)
        listening = {
            connection.laddr.port  # pyright: ignore[reportAttributeAccessIssue]
            for connection in psutil.net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN and connection.pid in {other.pid for other in others}
        }
        assert listening == {port}  # the code server has a socket that its owner alone may reach
    finally:
        others = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        process.wait(90)
    assert process.returncode == 0
    assert not [other for other in others if other.is_running() and other.status() != psutil.STATUS_ZOMBIE]


def _answers(url: str) -> bool:
    try:
        return answer(f"{url}/server_info")[0] == 200
    except OSError:
        return False


def _runs(url: str) -> list[dict[str, str]]:
    return graphql(url, RUNS)["data"]["runsOrError"]["results"]


def test_a_port_that_is_taken_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert server.main(["-p", str(port)]) == 1
    assert capsys.readouterr().err == f"port {port} is taken by another program: make ui UI_PORT={port + 1}\n"


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """What ends this process, put back: to end others, `serve` leaves off being ended itself."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_what_is_left_of_the_three_is_ended_with_all_it_started() -> None:
    sleep = "import time; time.sleep(600)"
    child = (
        f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {sleep!r}]).pid, flush=True); {sleep}"
    )
    process = subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    grandchild = int(process.stdout.readline())
    server.end([process])
    process.wait(10)
    assert not psutil.pid_exists(grandchild) or psutil.Process(grandchild).status() == psutil.STATUS_ZOMBIE
