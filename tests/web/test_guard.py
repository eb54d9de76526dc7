"""What the guard before Dagster's and MLflow's servers lets through, request by request."""

from collections.abc import Iterator
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

from dioptra_assets.web.guard import Guard, token_of
from resources.executors.choice import SettingError

pytestmark = pytest.mark.quick

TOKEN = "0123456789abcdef0123456789abcdef"
HERE = "http://127.0.0.1:3001"
SOCKET = "ws://127.0.0.1:3001/graphql"
JSON = {"Content-Type": "application/json"}


async def behind(request: Request) -> PlainTextResponse:
    visitor = request.scope["visitor"]
    return PlainTextResponse(f"{visitor.user or 'somebody'} {'launches' if visitor.may_launch else 'looks'}")


async def socket_behind(socket: WebSocket) -> None:
    await socket.accept()
    await socket.close()


def client(**settings: Any) -> TestClient:
    everything = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"]
    routes = [WebSocketRoute("/graphql", socket_behind), Route("/{path:path}", behind, methods=everything)]
    guarded = Guard(Starlette(routes=routes), **{"user": "owner", **settings})
    return TestClient(guarded, base_url=HERE, follow_redirects=False)  # type: ignore[arg-type]


@pytest.fixture
def local() -> Iterator[TestClient]:
    with client() as opened:
        yield opened


def test_own_pages_and_programs_of_this_machine_are_answered(local: TestClient) -> None:
    assert local.get("/").text == "owner launches"
    assert local.post("/graphql", json={}).text == "owner launches"
    own = {"Origin": HERE, "Sec-Fetch-Site": "same-origin"}
    assert local.post("/graphql", json={}, headers=own).status_code == 200
    assert local.get("/", headers={"Host": "localhost:3001"}).status_code == 200
    with local.websocket_connect(SOCKET, headers={"Origin": HERE}):
        pass


def test_a_link_from_another_site_opens_a_page(local: TestClient) -> None:
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert local.get("/runs", headers=link).status_code == 200
    assert local.get("/runs", headers=link | {"Sec-Fetch-Dest": "iframe"}).status_code == 403
    assert local.post("/graphql", json={}, headers=link).status_code == 403


@pytest.mark.parametrize(
    "path",
    [
        "/graphql?query=mutation",
        "/graphql?%71uery=mutation",
        "/graphql",
        "/graphql/?q",
        "/%67raphql?query=x",
        "/at/graphql",
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "PATCH"])
def test_graphql_is_taken_by_post_alone_whatever_the_query(local: TestClient, method: str, path: str) -> None:
    assert local.request(method, path).status_code == 403


@pytest.mark.parametrize(
    "kind", ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "TEXT/PLAIN"]
)
@pytest.mark.parametrize("path", ["/graphql", "/report_asset_materialization/tiny", "/api/2.0/mlflow/runs/delete"])
def test_what_a_form_can_send_is_refused(local: TestClient, path: str, kind: str) -> None:
    assert local.post(path, content=b'{"query": "x"}', headers={"Content-Type": kind}).status_code == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "127.0.0.1"},
        {"Host": "127.0.0.1:3000"},
        {"Host": "127.0.0.1:3001.evil.example"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Origin": "https://127.0.0.1:3001"},
        {"Origin": "http://127.0.0.1:3000"},
        {"Origin": "http://localhost:3001"},
        {"Origin": "http://127.0.0.1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"},
    ],
    ids=str,
)
def test_other_origins_are_refused_by_http_and_by_websocket(local: TestClient, headers: dict[str, str]) -> None:
    assert local.post("/graphql", json={}, headers=headers).status_code == 403
    assert local.get("/", headers=headers).status_code == 403
    with pytest.raises(WebSocketDisconnect), local.websocket_connect(SOCKET, headers=headers):
        pass


def test_a_preflight_is_refused(local: TestClient) -> None:
    assert local.options("/graphql").status_code == 403


def test_the_name_of_a_proxy_is_answered_with_its_own_scheme(local: TestClient) -> None:
    with client(hosts=["lab.example:8080", "https://lab.example"]) as proxied:
        for host, origin, status in [
            ("lab.example", "https://lab.example", 200),
            ("lab.example", "http://lab.example", 403),
            ("lab.example:8080", "http://lab.example:8080", 200),
            ("lab.example:8080", "https://lab.example", 403),
            ("evil.lab.example", "https://evil.lab.example", 403),
        ]:
            headers = {"Host": host, "Origin": origin}
            assert proxied.post("/graphql", json={}, headers=headers).status_code == status, (host, origin)


def test_no_other_page_may_show_this_one_in_a_frame(local: TestClient) -> None:
    assert local.get("/").headers["x-frame-options"] == "SAMEORIGIN"


def test_without_the_token_one_may_look_and_change_nothing() -> None:
    with client(token=TOKEN) as shared:
        assert shared.get("/").text == "somebody looks"
        assert shared.post("/graphql", json={}).text == "somebody looks"  # the web server refuses the mutations
        assert shared.post("/report_asset_materialization/x", json={}).status_code == 403
        assert shared.delete("/anything").status_code == 403


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Basic eDp5"}, {"Cookie": "dioptra_assets_3001=x.alice"}])
def test_a_server_that_is_not_open_refuses_who_does_not_hold_its_token(headers: dict[str, str]) -> None:
    with client(token=TOKEN, open_to_all=False) as closed:
        assert closed.get("/", headers=headers).status_code == 401
        assert closed.post("/graphql", json={}, headers=headers).status_code == 401
        with pytest.raises(WebSocketDisconnect), closed.websocket_connect(SOCKET, headers=headers):
            pass
        with closed.websocket_connect(SOCKET, headers={"Authorization": f"Bearer {TOKEN}"}):
            pass


def test_who_holds_the_token_launches_and_is_named() -> None:
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    with client(token=TOKEN) as shared:
        assert shared.post("/graphql", json={}, headers=bearer).text == "somebody launches"
        named = bearer | {"X-Forwarded-User": "alice@lab.example"}
        assert shared.post("/graphql", json={}, headers=named).text == "alice@lab.example launches"
        assert shared.get("/", headers={"X-Forwarded-User": "alice"}).text == "somebody looks"
        assert shared.get("/", headers={"Authorization": "Bearer wrong"}).status_code == 401


def test_a_browser_logs_in_once_by_a_link() -> None:
    with client(token=TOKEN) as shared:
        assert shared.get("/?token=wrong").status_code == 401
        login = shared.get(f"/runs?view=all&token={TOKEN}&user=al<i>ce")
        assert (login.status_code, login.headers["location"]) == (303, "/runs?view=all")
        cookie = login.headers["set-cookie"]
        assert "HttpOnly" in cookie and "SameSite=strict" in cookie and TOKEN not in cookie
        assert shared.get("/").text == "alice launches"
        name, value = next(iter(shared.cookies.items()))
        shared.cookies.clear()
        forged = f"{name}={value.rsplit('.', 1)[0]}.root"
        assert shared.get("/", headers={"Cookie": forged}).text == "somebody looks"


def test_a_login_leads_to_no_other_server() -> None:
    with client(token=TOKEN) as shared:
        for path in ("//evil.example", "/\\evil.example", "/%2F%2Fevil.example"):
            location = shared.get(f"http://127.0.0.1:3001{path}?token={TOKEN}").headers["location"]
            assert location.startswith("/") and not location.startswith(("//", "/\\")), location


def test_a_token_that_can_be_guessed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIOPTRA_ASSETS_UI_TOKEN", "secret")
    with pytest.raises(SettingError, match="DIOPTRA_ASSETS_UI_TOKEN has 6 characters, it must have 16 or more"):
        token_of("DIOPTRA_ASSETS_UI_TOKEN")
