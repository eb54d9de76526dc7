"""A server with a token: who does not hold it looks, who does launches, and the run says who it was."""

import asyncio
import json
from collections.abc import Iterator

import pytest
from sqlalchemy import event
from sqlalchemy.pool import QueuePool
from websockets.asyncio.client import connect

from benchmarks.clusters import free_port
from dioptra_assets.api.submission import submit_job
from dioptra_assets.web.ui import ping
from tests.conftest import EXPERIMENT, Lab, enter, skeleton
from tests.servers import answer, dagster_ui, graphql
from tests.web.test_foreign_pages import launching

TOKEN = "0123456789abcdef0123456789abcdef"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
RUNS = "query { runsOrError { ... on Runs { results { tags { key value } } } } }"
PERMISSIONS = "query { permissions { permission value } }"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    lab = skeleton(tmp_path_factory.mktemp("shared") / "project")
    lab.write(EXPERIMENT)
    return lab


@pytest.fixture(scope="module")
def shared(project: Lab) -> Iterator[str]:
    port = free_port()
    options = ("--host=127.0.0.1", f"--port={port}")
    with dagster_ui(project, *options, port=port, DIOPTRA_ASSETS_UI_TOKEN=TOKEN) as url:
        yield url


def users(url: str) -> list[str]:
    runs = graphql(url, RUNS)["data"]["runsOrError"]["results"]
    return [next((tag["value"] for tag in run["tags"] if tag["key"] == "dioptra_assets/user"), "") for run in runs]


def allowed(url: str, **headers: str) -> set[str]:
    answered = graphql(url, PERMISSIONS, None, **headers)["data"]["permissions"]
    return {permission["permission"] for permission in answered if permission["value"]}


def test_viewers_look_and_their_buttons_are_off(shared: str) -> None:
    assert answer(f"{shared}/")[0] == 200
    assert allowed(shared) == set()
    assert {"launch_pipeline_execution", "wipe_assets", "edit_sensor"} <= allowed(shared, **BEARER)


def test_every_mutation_is_refused_to_viewers(shared: str, project: Lab) -> None:
    before = users(shared)
    refused = graphql(shared, launching(project))
    assert "launchRun: viewers may look" in refused["errors"][0]["message"]
    named = (
        "query { __schema { mutationType { fields { name args { name type { kind name ofType { name kind } } } } } } }"
    )
    fields = graphql(shared, named)["data"]["__schema"]["mutationType"]["fields"]
    asked = 0
    for field in fields:
        if any(argument["type"]["kind"] == "NON_NULL" for argument in field["args"]):
            continue
        answered = graphql(shared, f"mutation {{ {field['name']} {{ __typename }} }}")
        asked += 1
        assert field["name"] in ("logTelemetry", "setNuxSeen") or "viewers may look" in str(answered), answered
    assert asked >= 2 and users(shared) == before


def test_a_websocket_changes_nothing_for_a_viewer_and_nothing_for_anybody(shared: str, project: Lab) -> None:
    async def said(**headers: str) -> str:
        url = shared.replace("http", "ws") + "/graphql"
        async with connect(url, subprotocols=["graphql-ws"], additional_headers=headers) as socket:  # type: ignore[list-item]
            await socket.send(json.dumps({"type": "connection_init"}))
            await socket.send(json.dumps({"id": "1", "type": "start", "payload": {"query": launching(project)}}))
            await socket.recv()
            return str(await socket.recv())

    before = users(shared)
    for headers in ({}, BEARER):
        assert "error" in asyncio.run(said(**headers))
    assert users(shared) == before


def test_a_run_says_who_launched_it_and_cannot_say_another(shared: str, project: Lab) -> None:
    forged = launching(project).replace(
        "runConfigData", 'executionMetadata: {tags: [{key: "dioptra_assets/user", value: "bob"}]}, runConfigData'
    )
    answered = graphql(shared, forged, None, **BEARER, X_Forwarded_User="alice")
    assert answered["data"]["launchRun"]["__typename"] == "LaunchRunSuccess"
    assert users(shared)[0] == "alice"


def test_a_backfill_says_who_launched_it(shared: str, project: Lab) -> None:
    launch = (
        "mutation($params: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $params) { __typename } }"
    )
    params = {"assetSelection": [{"path": ["tiny", "attack_config"]}], "partitionNames": ["fgm_0.1"]}
    answered = graphql(shared, launch, {"params": params}, **BEARER, X_Forwarded_User="carol")
    assert answered["data"]["launchPartitionBackfill"]["__typename"] == "LaunchBackfillSuccess"
    tags = "query { partitionBackfillsOrError { ... on PartitionBackfills { results { tags { key value } } } } }"
    (backfill,) = graphql(shared, tags)["data"]["partitionBackfillsOrError"]["results"]
    assert {"key": "dioptra_assets/user", "value": "carol"} in backfill["tags"]


def test_the_command_line_submits_with_the_token(shared: str, project: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    from dioptra_assets.api import submission

    enter(monkeypatch, project)
    monkeypatch.setattr(submission, "LOCATION", f"{project.module}.definitions")
    monkeypatch.setattr(submission, "user_name", lambda: "dave")
    monkeypatch.setenv("DIOPTRA_ASSETS_SERVER", shared)
    with pytest.raises(submission.ServerError, match="viewers may look"):
        submit_job("train", "-P model_architecture=le_net")
    monkeypatch.setenv("DIOPTRA_ASSETS_UI_TOKEN", TOKEN)
    assert submit_job("train", "-P model_architecture=le_net").status == "queued"
    assert users(shared)[0] == "dave"


def test_a_connection_that_a_restarted_postgres_has_closed_is_replaced_before_it_is_used() -> None:
    class Connection:
        """As psycopg2's: its server may have closed it."""

        __module__ = "psycopg2.extensions"
        closed = False

        def cursor(self) -> "Connection":
            return self

        def __enter__(self) -> "Connection":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def execute(self, query: str) -> None:
            if self.closed:
                raise OSError("server closed the connection unexpectedly")

        def rollback(self) -> None:
            pass

        def close(self) -> None:
            pass

    made: list[Connection] = []

    def connect() -> Connection:
        made.append(Connection())
        return made[-1]

    pool = QueuePool(connect, pool_size=1)  # type: ignore[arg-type]
    event.listen(pool, "checkout", ping)
    pool.connect().close()
    pool.connect().close()
    assert len(made) == 1
    made[0].closed = True
    pool.connect().close()
    assert len(made) == 2
