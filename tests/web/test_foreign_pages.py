"""A page of another origin, in a real browser, launches, reads and deletes nothing."""

import json
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.conftest import EXPERIMENT, Lab, skeleton
from tests.servers import answer, dagster_ui, graphql, mlflow_server
from tests.web.test_ui import CHROMIUM

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: install one, or name it in the variable CHROMIUM"),
]
# What a page tries on URLs to get and to post to. It keeps what it could read in `read`, and sets `done` at the end.
ATTEMPTS = """
const wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
window.read = [];
const tried = (name, promise) => Promise.race([promise, wait(4000)]).then(
  (found) => { if (found) window.read.push(name + ': ' + found); }, () => {});
const tag = (name, attributes) => tried(name, new Promise((resolve) => {
  const node = Object.assign(document.createElement(name), attributes);
  node.onload = () => resolve(name === 'iframe' || name === 'img' ? '' : 'loaded'); node.onerror = () => resolve('');
  document.body.append(node); }));
const form = (action, method, type, name, value) => {
  const frame = document.createElement('iframe'); frame.name = 'f' + Math.random(); document.body.append(frame);
  const node = Object.assign(document.createElement('form'), {action, method, enctype: type, target: frame.name});
  node.append(Object.assign(document.createElement('input'), {name, value})); document.body.append(node);
  node.submit(); return wait(50); };
const text = (url, options) => fetch(url, options).then((answer) => answer.text());
async function attempt({gets, posts, sockets}) {
  for (const url of gets) {
    await tag('img', {src: url}); await tag('iframe', {src: url}); await tag('script', {src: url});
    await tag('link', {rel: 'stylesheet', href: url}); await tried('fetch', text(url));
    await tried('no-cors', text(url, {mode: 'no-cors', credentials: 'include'}));
    await tried('events', new Promise((resolve) => {
      const events = new EventSource(url);
      events.onopen = () => resolve('open'); events.onerror = () => { events.close(); resolve(''); } }));
    await form(url, 'GET', '', 'x', '1'); }
  for (const [url, body] of posts) {
    for (const type of ['text/plain', 'application/x-www-form-urlencoded', 'application/json'])
      for (const mode of ['no-cors', 'cors'])
        await tried('post', text(url, {method: 'POST', mode, body, headers: {'Content-Type': type}}));
    await tried('delete', text(url, {method: 'DELETE'})); await tried('put', text(url, {method: 'PUT', body}));
    navigator.sendBeacon(url, body); navigator.sendBeacon(url, new Blob([body], {type: 'text/plain'}));
    const at = body.length - 1;
    await form(url, 'POST', 'text/plain', body.slice(0, at) + ', "x": "', '"}');
    await form(url, 'POST', 'application/x-www-form-urlencoded', 'query', body); }
  for (const [url, query] of sockets) await tried('socket', new Promise((resolve) => {
    const socket = new WebSocket(url, 'graphql-ws'); socket.onerror = () => resolve('');
    socket.onmessage = (message) => resolve(message.data); socket.onopen = () => {
      for (const message of [{type: 'connection_init'}, {id: '1', type: 'start', payload: {query}}])
        socket.send(JSON.stringify(message)); }; }));
  await wait(1000); window.done = true; }
"""


class Stranger(BaseHTTPRequestHandler):
    """A page of somebody else; it notes who asks for what."""

    def __init__(self, *args: Any, seen: list[str], **kwargs: Any) -> None:
        self.seen = seen
        super().__init__(*args, **kwargs)

    def do_GET(self) -> None:
        self.seen.append(f"GET {self.headers.get('Sec-Fetch-Dest')}")
        body = f"<!doctype html><title>cats</title><body><script>{ATTEMPTS}</script>".encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.seen.append(f"POST {(self.headers.get('Content-Type') or '').split(';')[0]}")
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def stranger() -> Iterator[tuple[int, list[str]]]:
    seen: list[str] = []
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Stranger, seen=seen)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port, seen
        server.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    lab = skeleton(tmp_path_factory.mktemp("foreign") / "project")
    lab.write(EXPERIMENT)
    return lab


def visit(browser: Browser, page_at: str, target: dict[str, Any], seconds: int = 120) -> list[str]:
    """What a page at an address could read of a target that it tried everything on."""
    page = browser.new_page()
    page.goto(page_at)
    page.evaluate("target => { attempt(target); }", target)
    page.wait_for_function("window.done === true", timeout=1000 * seconds)
    read = page.evaluate("window.read")
    page.close()
    return read


def launching(lab: Lab, asset: str = "attack_config") -> str:
    location = f'repositoryLocationName: "{lab.module}.definitions", repositoryName: "__repository__"'
    selector = f'{{{location}, jobName: "__ASSET_JOB", assetSelection: [{{path: ["tiny", "{asset}"]}}]}}'
    return f"mutation {{ launchRun(executionParams: {{selector: {selector}, runConfigData: {{}}}}) {{ __typename }} }}"


# A page on another port of this machine is of the same site, which is nearer than one of another name.
PAGES = ["http://127.0.0.1:{}", "http://localhost:{}"]


def test_the_page_tries_what_it_says(browser: Browser, stranger: tuple[int, list[str]]) -> None:
    port, seen = stranger
    seen.clear()
    url = f"http://127.0.0.1:{port}/x"
    visit(browser, f"http://localhost:{port}/", {"gets": [url], "posts": [[url, '{"query": "x"}']], "sockets": []})
    assert {f"GET {kind}" for kind in ("image", "iframe", "script", "style", "empty", "document")} <= set(seen)
    assert {"POST text/plain", "POST application/x-www-form-urlencoded"} <= set(seen)


def test_a_foreign_page_launches_reads_and_deletes_no_run(
    browser: Browser, stranger: tuple[int, list[str]], project: Lab
) -> None:
    with dagster_ui(project) as ui:
        launch = launching(project)
        assert graphql(ui, launch)["data"]["launchRun"] == {"__typename": "LaunchRunSuccess"}  # what it tries does work
        runs = "query { runsOrError { ... on Runs { results { runId tags { key value } } } } }"
        before = graphql(ui, runs)
        (run,) = before["data"]["runsOrError"]["results"]
        delete = f'mutation {{ deletePipelineRun(runId: "{run["runId"]}") {{ __typename }} }}'
        queries = [quote(launch, safe=""), quote(delete, safe="")]
        names = ("query", "%71uery", "%71%75%65%72%79", "x=1&quer%79")
        posts = [[f"{ui}/graphql", json.dumps({"query": query})] for query in (launch, delete)]
        report = json.dumps({"metadata": {"a": 1}})
        target = {
            "gets": [f"{ui}/graphql?{name}={query}" for name in names for query in queries[:1]]
            + [f"{ui}/graphql/?query={queries[0]}", f"{ui}/%67raphql?query={queries[1]}"]
            + [f"{ui}/server_info", f"{ui}/notebook?path=/x.ipynb", f"{ui}/download_debug/{run['runId']}"],
            "posts": [*posts, [f"{ui}/report_asset_materialization/tiny/model", report]],
            "sockets": [[ui.replace("http", "ws") + "/graphql", query] for query in (launch, delete, runs)],
        }
        for address in PAGES:
            assert visit(browser, address.format(stranger[0]), target) == []
            assert graphql(ui, runs) == before


@pytest.mark.slow
def test_a_foreign_page_reads_writes_and_deletes_nothing_in_mlflow(
    browser: Browser, stranger: tuple[int, list[str]], project: Lab
) -> None:
    with mlflow_server(project.home) as url:
        api = f"{url}/api/2.0/mlflow/experiments"

        def experiments() -> str:
            return answer(f"{api}/search?max_results=100")[1]

        create = json.dumps({"name": "cats"}).encode()
        status, made = answer(f"{api}/create", create, Content_Type="application/json")
        assert status == 200, made
        before = experiments()
        assert "cats" in before
        delete = json.dumps({"experiment_id": json.loads(made)["experiment_id"]})
        bodies = {"create": json.dumps({"name": "dogs"}), "delete": delete}
        target = {
            "gets": [f"{api}/search?max_results=9", f"{url}/ajax-api/2.0/mlflow/experiments/search?max_results=9", url],
            "posts": [
                [f"{url}/{kind}/2.0/mlflow/experiments/{what}", body]
                for kind in ("api", "ajax-api")
                for what, body in bodies.items()
            ],
            "sockets": [],
        }
        for address in PAGES:
            assert visit(browser, address.format(stranger[0]), target) == []
            assert experiments() == before
