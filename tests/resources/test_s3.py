"""The store on a real S3 server in memory, and the same promises on a folder."""

import socket
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pandas as pd
import pytest
from moto.server import ThreadedMotoServer

from dioptra_assets.robustness.image_set import ImageSet
from resources import image_store
from resources import store as cells
from resources.image_store import read_image_set, write_image_set
from resources.store import CURRENT, Cell, CellStore, DamagedCellError, LostCellError, MissingCellError, StoreError
from resources.tables import read_table, write_table
from tests.resources.test_store import CELL, content, version_name, write

TABLE = Cell("digits/evasion_metrics")
SET = Cell("digits/testing_set")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    started = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    started.start()
    host, port = started.get_host_and_port()
    yield f"http://{host}:{port}"
    started.stop()


@pytest.fixture
def settings(server: str, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The variables that every S3 client reads, and no others."""
    for name in (*cells.ENDPOINTS, "AWS_REGION", "AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ALLOW_HTTP"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    return monkeypatch


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> CellStore:
    if request.param == "folder":
        return CellStore(str(tmp_path / "store"))
    request.getfixturevalue("settings")
    name = f"bucket-{time.monotonic_ns()}"
    boto3.client("s3").create_bucket(Bucket=name)
    return CellStore(f"s3://{name}/some/prefix")


def delete(store: CellStore, path: str) -> None:
    import obstore

    obstore.delete(store.objects, path)


# ---- the same on both ----------------------------------------------------------------------------------------------


def test_a_cell_is_written_read_and_overwritten(store: CellStore):
    with pytest.raises(MissingCellError):
        store.open(CELL)
    first = write(store, "one")
    assert content(store) == "one"
    assert write(store, "one").version == first.version
    write(store, "two")
    store.open(CELL).verify()
    assert content(store) == "two"
    first.verify()


def test_a_guard_that_raises_publishes_nothing_and_leaves_nothing(store: CellStore):
    def ended() -> None:
        raise RuntimeError("the run has ended")

    write(store, "one")
    before = store.sizes("")
    with pytest.raises(RuntimeError, match="the run has ended"):
        write(store, "two", guard=ended)
    assert store.sizes("") == before
    assert content(store) == "one"


@pytest.mark.parametrize("name", ["CURRENT", "manifest.json", "folder/b.bin"])
@pytest.mark.parametrize("how", ["deleted", "truncated", "bit flipped"])
def test_a_damaged_object_is_an_error_that_names_it(store: CellStore, name: str, how: str):
    stored = write(store, "one")
    path = f"{CELL.path}/{CURRENT}" if name == CURRENT else f"{stored.prefix}/{name}"
    whole = store.get(path)
    assert whole is not None
    if how == "deleted":
        delete(store, path)
    else:
        middle = len(whole) // 2
        store.put(path, whole[:middle] if how == "truncated" else whole[:9] + bytes([whole[9] ^ 1]) + whole[10:])
    if (name, how) == (CURRENT, "deleted"):
        with pytest.raises(LostCellError, match=f"^{CELL.path} is lost: .* {path} "):
            store.open(CELL)
    else:
        with pytest.raises(DamagedCellError, match=f"^{CELL.path} is damaged: {path} "):
            store.open(CELL).verify()
    write(store, "two")
    assert content(store) == "two"


def test_cells_are_listed_by_prefix(store: CellStore):
    assert store.cells("") == []
    for cell in (CELL, TABLE, Cell("digits_2/model", {"architecture": "le_net"})):
        write(store, "one", cell)
        write(store, "two", cell)
    assert store.cells("digits") == [CELL, TABLE]
    assert store.cells("digits/adversarial_set") == [CELL]
    assert len(store.cells("")) == 3


def test_many_cells_are_looked_up_in_one_listing(store: CellStore, monkeypatch: pytest.MonkeyPatch):
    asked = [Cell("digits/model", {"architecture": f"net_{number}"}) for number in range(25)]
    for cell in asked[:-3]:
        write(store, "one", cell)
    store.put(f"{asked[0].path}/{CURRENT}", b"{}")
    expected = {cell: store.open(cell) for cell in asked[1:-3]}
    listed, read = [], []
    listing, get = CellStore._list, CellStore.get
    monkeypatch.setattr(CellStore, "_list", lambda self, prefix: [listed.append(prefix), listing(self, prefix)][1])
    monkeypatch.setattr(CellStore, "get", lambda self, path: [read.append(path), get(self, path)][1])
    assert store.found(asked) == expected
    assert listed == ["digits/model"]
    assert len(read) == 2 * len(expected) + 2, "pointer and manifest of each, and twice the pointer that is damaged"


def test_what_a_killed_writer_left_is_tidied_away(store: CellStore):
    first = write(store, "one")
    left = f"{CELL.path}/versions/{version_name(cells.KEEP_SUPERSEDED * 2)}"
    store.put(f"{left}/a.bin", b"half a version")
    second = write(store, "two")
    assert store.sizes(left) == {}
    assert {path.split("/")[0] for path in store.sizes(f"{CELL.path}/versions")} == {first.version, second.version}


def test_tables_and_image_sets_are_the_same_everywhere(
    store: CellStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(image_store, "CHUNK_BYTES", 4 * 60)
    monkeypatch.setattr(image_store, "SHARD_BYTES", 8 * 60)
    table = pd.DataFrame({"n": pd.array([1, None], dtype="Int64"), "rate": np.array([0.25, 1 / 3], np.float32)})
    write_table(store.at(TABLE), table)
    pd.testing.assert_frame_equal(read_table(store.open(TABLE)), table)
    rng = np.random.default_rng(0)
    source = ImageSet.from_arrays(rng.random((21, 5, 3, 1), dtype=np.float32), rng.integers(0, 2, 21), ["a", "ü"])
    stored = write_image_set(
        store.at(SET), source.batches(6), n=21, image_shape=source.image_shape, class_names=source.class_names
    )
    read = read_image_set(store.open(SET))
    assert read.to_numpy()[0].tobytes() == source.to_numpy()[0].tobytes()
    assert np.array_equal(read.pixels[slice(7, 10)], source.to_numpy()[0][7:10])
    pd.testing.assert_frame_equal(read.index, source.index)
    # The same content has the same version wherever it is kept.
    beside = write_image_set(
        CellStore(str(tmp_path / "beside")).at(SET),
        read.batches(21),
        n=21,
        image_shape=(5, 3, 1),
        class_names=("a", "ü"),
    )
    assert beside.manifest.data_version == stored.manifest.data_version
    delete(store, f"{stored.prefix}/pixels/c/1/0/0/0")
    assert np.array_equal(read.pixels[slice(0, 8)], source.to_numpy()[0][:8])
    with pytest.raises(DamagedCellError, match=f"{stored.prefix}/pixels/c/1/0/0/0 was altered or lost"):
        _ = read.pixels[slice(0, 9)]
    with pytest.raises(DamagedCellError, match=f"{stored.prefix}/pixels/c/1/0/0/0 is missing"):
        store.open(SET)


def test_an_object_of_several_parts_arrives_whole(store: CellStore):
    """Above 5 MB a put is sent in parts."""
    large = np.random.default_rng(0).bytes(12_345_678)
    with store.at(CELL).writer("test") as writer:
        writer.put("large.bin", large)
        writer.commit("large", {})
    assert store.open(CELL).read("large.bin") == large


# ---- settings and failures of S3 -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", cells.ENDPOINTS)
def test_the_usual_variables_name_the_server(settings: pytest.MonkeyPatch, server: str, name: str):
    boto3.client("s3").create_bucket(Bucket="settings")
    settings.delenv("AWS_ENDPOINT_URL")
    settings.setenv(name, server)
    store = CellStore("s3://settings")
    store.put(f"by/{name}", b"1")
    assert (
        boto3.client("s3", endpoint_url=server).get_object(Bucket="settings", Key=f"by/{name}")["Body"].read() == b"1"
    )


def test_a_server_without_tls_is_spoken_to_only_where_its_address_says_http(settings: pytest.MonkeyPatch, server: str):
    settings.setattr(cells, "REMOTE_TIMEOUT", timedelta(seconds=2))
    settings.setenv("AWS_ENDPOINT_URL", server.replace("http://", "https://"))
    with pytest.raises(StoreError, match=r"cannot write a \(1 bytes\) in s3://settings: .*https://127\.0\.0\.1"):
        CellStore("s3://settings").put("a", b"1")


@pytest.mark.parametrize(
    ("endpoint", "allowed"), [("http://127.0.0.1:9000", True), ("https://127.0.0.1:9000", False), ("", False)]
)
def test_no_request_goes_out_without_tls_unless_asked_for(settings: pytest.MonkeyPatch, endpoint: str, allowed: bool):
    opened: list[dict[str, Any]] = []
    settings.setenv("AWS_ENDPOINT_URL", endpoint)
    settings.setattr(cells, "from_url", lambda url, **options: opened.append({"url": url, **options}))
    CellStore("s3://bucket/prefix").open_prefix("digits")
    assert opened[0]["url"] == "s3://bucket/prefix/digits"
    assert opened[0]["client_options"]["allow_http"] is allowed


@pytest.mark.parametrize("endpoint", ["127.0.0.1:9000", "s3.example.org", "ftp://127.0.0.1"])
def test_an_address_without_its_scheme_is_refused_by_name(settings: pytest.MonkeyPatch, endpoint: str):
    settings.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(StoreError) as caught:
        CellStore("s3://bucket/prefix").get("a")
    assert str(caught.value) == (
        f"cannot open s3://bucket/prefix: AWS_ENDPOINT_URL is '{endpoint}', it must begin with https:// or http://"
    )


@pytest.mark.usefixtures("settings")
def test_a_bucket_that_does_not_exist_is_no_missing_cell():
    store = CellStore("s3://nowhere/prefix")
    for attempt in (lambda: store.open(CELL), lambda: store.cells(""), lambda: write(store, "one")):
        refused = r"^cannot .* in s3://nowhere/prefix, the server refuses: (.|\n)*NoSuchBucket"
        with pytest.raises(StoreError, match=refused):
            attempt()


@pytest.fixture(params=["refuses", "hangs"])
def dead_server(request: pytest.FixtureRequest, settings: pytest.MonkeyPatch) -> Iterator[str]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        if request.param == "hangs":
            listening.listen()
        settings.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{listening.getsockname()[1]}")
        settings.setattr(cells, "REMOTE_TIMEOUT", timedelta(seconds=2))
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def test_a_server_that_refuses_or_hangs_is_a_failure_within_the_timeout(dead_server: str):
    """One timeout for a whole write, not one for each step of it."""
    store = CellStore("s3://bucket/prefix")
    for attempt in (
        lambda: store.open(CELL),
        lambda: store.cells(""),
        lambda: write(store, "one"),
        lambda: write_table(store.at(TABLE), pd.DataFrame({"n": [1]})),
    ):
        started = time.monotonic()
        with pytest.raises(StoreError) as caught:
            attempt()
        assert time.monotonic() - started < 3.9
        message = str(caught.value)
        assert "in s3://bucket/prefix: " in message
        assert dead_server in message
        assert "\n" not in message


def test_the_limit_on_a_dead_server_is_half_a_minute():
    assert timedelta(seconds=30) == cells.REMOTE_TIMEOUT
    assert cells.CONNECT_TIMEOUT < cells.REMOTE_TIMEOUT


def test_a_set_that_is_being_read_when_the_server_goes_away_is_not_called_damaged(
    settings: pytest.MonkeyPatch, server: str
):
    settings.setattr(cells, "REMOTE_TIMEOUT", timedelta(seconds=1))
    gone = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    gone.start()
    host, port = gone.get_host_and_port()
    settings.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    boto3.client("s3").create_bucket(Bucket="going")
    store = CellStore("s3://going")
    source = ImageSet.from_arrays(np.zeros((3, 2, 2, 1), np.float32), [0, 0, 0], ["a"])
    write_image_set(store.at(SET), source.batches(), n=3, image_shape=(2, 2, 1), class_names=("a",))
    opened = read_image_set(store.open(SET))
    gone.stop()
    with pytest.raises(StoreError, match=r"in s3://going: "):
        opened.to_numpy()
