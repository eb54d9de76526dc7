"""A store that refuses is said so at once, and passwords of URLs are never repeated."""

import re
import threading
import time
import traceback
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest
from dagster import serialize_value

from dioptra_assets.assets.pictures import as_text, markdown_table
from dioptra_assets.assets.retries import try_again_where_the_store_is_away
from dioptra_assets.definitions import resource_definitions
from resources import store as cells
from resources.redacted import as_cause, without_passwords
from resources.store import CellStore, StoreError, StoreRefusedError
from resources.tracking.resource import Tracking, TrackingUnavailable, tracking_of
from tests.dagster_internals import RepositorySnap


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in (*cells.ENDPOINTS, "AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    return monkeypatch


@pytest.fixture
def refusing() -> Iterator[str]:
    """An S3 server that takes nobody's key."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = b"<Error><Code>InvalidAccessKeyId</Code><Message>who are you</Message></Error>"
            self.send_response(403)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_PUT = answer  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_a_store_that_refuses_the_key_is_not_tried_again(settings: pytest.MonkeyPatch, refusing: str) -> None:
    settings.setenv("AWS_ENDPOINT_URL", refusing)
    store, context = (
        CellStore("s3://bucket/prefix"),
        SimpleNamespace(retry_number=0, log=SimpleNamespace(warning=print)),
    )
    with pytest.raises(StoreRefusedError, match="in s3://bucket/prefix, the server refuses: ") as caught:
        store.check_answer()
    assert "\n" not in str(caught.value)
    anything: Any = context
    try_again_where_the_store_is_away(anything, store, caught.value)
    with pytest.raises(dg.RetryRequested):
        try_again_where_the_store_is_away(anything, store, StoreError("nothing answers"))


def test_a_store_that_is_not_there_is_known_before_any_work_is_done(settings: pytest.MonkeyPatch) -> None:
    settings.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    began = time.monotonic()
    with pytest.raises(StoreError, match="nothing answers there") as caught:
        CellStore("s3://bucket").check_answer()
    assert time.monotonic() - began < 15
    assert "\n" not in str(caught.value)


def test_the_ui_shows_no_password_among_the_settings_of_a_resource(monkeypatch: pytest.MonkeyPatch) -> None:
    address = "http://me:hunter2@127.0.0.1:9"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    resources = resource_definitions()
    shown = dg.Definitions(resources=resources).get_repository_def()
    assert "hunter2" not in serialize_value(RepositorySnap.from_def(shown))
    assert tracking_of(resources).mlflow_tracking_uri == address, "what uses it does have it"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert tracking_of(resource_definitions()).mlflow_tracking_uri == "http://127.0.0.1:9"


@pytest.mark.parametrize("name", cells.ENDPOINTS)
@pytest.mark.parametrize("address", ["http://me:hunter2@127.0.0.1:9", "ftp://me:hunter2@127.0.0.1"])
def test_a_password_in_the_address_of_the_store_is_refused_and_not_repeated(
    settings: pytest.MonkeyPatch, name: str, address: str
) -> None:
    settings.setenv(name, address)
    with pytest.raises(StoreError, match=name) as caught:
        CellStore("s3://bucket").get("x")
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


def test_a_password_in_the_tracking_address_is_in_no_message_and_in_no_cause() -> None:
    tracking = Tracking(mlflow_tracking_uri="http://me:hunter2@127.0.0.1:9")
    with pytest.raises(TrackingUnavailable) as caught, tracking.reaching("trying"):
        try:
            raise ConnectionError("http://me:hunter2@127.0.0.1:9 refused")
        except ConnectionError as error:
            raise RuntimeError("the API request failed") from error
    assert "http://***@127.0.0.1:9" in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("postgresql+psycopg2://me:a@b@host/db x", "postgresql+psycopg2://***@host/db x"),
        ("see http://host/models/le_net@3 and mail a@b.org", "see http://host/models/le_net@3 and mail a@b.org"),
        ("redis://:secret@host:6379/0", "redis://***@host:6379/0"),
    ],
)
def test_passwords_are_taken_out_of_text(text: str, clean: str) -> None:
    assert without_passwords(text) == clean
    error = ValueError(text)
    assert (as_cause(error) is error) == (text == clean)


def test_names_from_data_are_shown_as_they_are() -> None:
    import pandas as pd

    assert as_text("<b>cat|dog</b> 3 é") == r"\<b\>cat\|dog\<\/b\> 3 é"
    shown = markdown_table(pd.DataFrame({"class": ["<img src=x>"], "n": [3]}))
    assert r"\<img src\=x\>" in shown
    assert not re.search(r"(?<!\\)<", shown), "every tag is text"
