import contextlib
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from resources import store as cells
from resources.documents import read_config, write_config
from resources.store import (
    Cell,
    CellStore,
    DamagedCellError,
    Destination,
    LostCellError,
    MissingCellError,
    OtherFormatError,
    StoreError,
    sha256,
)
from resources.tables import read_table, write_table

ROOT = Path(__file__).parents[2]
CELL = Cell("digits/adversarial_set", {"architecture": "le_net", "attack": "fgm_0.3"})


@pytest.fixture
def store(tmp_path: Path) -> CellStore:
    return CellStore(str(tmp_path / "store"))


def write(store: CellStore, data_version: str, cell: Cell = CELL, guard: Callable[[], None] = lambda: None):
    """A version of three files whose content follows from its data version."""
    with Destination(store, cell, guard=guard).writer("test") as writer:
        for name in ("a.bin", "folder/b.bin", "c.bin"):
            writer.put(name, f"{name} of {data_version}".encode() * 10)
        return writer.commit(data_version, {"made": data_version})


def content(store: CellStore, cell: Cell = CELL) -> str:
    """The data version that is served, once all its files have been read and found to be of that version."""
    stored = store.open(cell)
    version = stored.manifest.data_version
    for name in stored.manifest.files:
        assert stored.read(name) == f"{name} of {version}".encode() * 10
    return version


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file below a folder, with its bytes and when it was last changed."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def files_of(store: CellStore, cell: Cell = CELL) -> dict[str, Path]:
    """One file of every class: pointer, manifest, content."""
    stored = store.open(cell)
    folder = Path(store.url, cell.path)
    version = folder / "versions" / stored.version
    return {
        "CURRENT": folder / "CURRENT",
        "manifest.json": version / "manifest.json",
        "b.bin": version / "folder" / "b.bin",
    }


def test_partition_keys_stand_in_the_path_in_the_order_of_their_dimensions():
    assert Cell("e/s", {"attack": "fgm", "architecture": "le_net"}).path == "e/s/le_net/fgm"
    assert str(Cell("e/s")) == "e/s"
    assert {Cell("e/s", {"a": "1"}): 2}[Cell("e/s", {"a": "1"})] == 2


def test_what_was_written_is_read_and_verifies(store: CellStore):
    written = write(store, "one")
    stored = store.open(CELL)
    stored.verify()
    assert content(store) == "one"
    assert stored == written
    assert stored.manifest.attributes == {"made": "one"}


def test_a_cell_that_was_never_made_names_itself_and_the_command_that_makes_it(store: CellStore):
    assert store.find(CELL) is None
    with pytest.raises(MissingCellError) as caught:
        store.open(CELL)
    assert str(caught.value) == (
        "digits/adversarial_set/le_net/fgm_0.3 has not been materialized: "
        "`dioptra-assets materialize digits --asset 'adversarial_set' --cell 'le_net|fgm_0.3'` makes it"
    )
    with pytest.raises(MissingCellError, match=r"`dioptra-assets materialize digits --asset 'training_set'` makes it"):
        store.open(Cell("digits/training_set"))


def test_writing_the_same_content_again_changes_no_byte(store: CellStore):
    write(store, "one")
    before = snapshot(Path(store.url))
    again = write(store, "one")
    assert snapshot(Path(store.url)) == before
    assert again.version == store.open(CELL).version


def test_a_damaged_version_is_replaced_even_by_the_same_content(store: CellStore):
    write(store, "one")
    for path in files_of(store).values():
        path.write_bytes(b"x" * path.stat().st_size)
        write(store, "one")
        assert content(store) == "one"


def test_an_error_or_a_guard_that_raises_keeps_the_old_version_and_leaves_nothing_behind(store: CellStore):
    write(store, "one")
    before = snapshot(Path(store.url))

    def ended() -> None:
        raise RuntimeError("the run has ended")

    with pytest.raises(RuntimeError, match="the run has ended"):
        write(store, "two", guard=ended)
    with pytest.raises(ZeroDivisionError), store.at(CELL).writer("test") as writer:
        writer.put("a.bin", b"half")
        _ = 1 / 0
    assert snapshot(Path(store.url)) == before
    assert content(store) == "one"


def test_the_guard_is_called_when_all_but_the_switch_is_done(store: CellStore):
    write(store, "one")
    seen: list[tuple[str, int]] = []

    def look() -> None:
        manifests = list(Path(store.url).rglob("manifest.json"))
        seen.append((content(store), len(manifests)))

    write(store, "two", guard=look)
    assert seen == [("one", 2)]


# ---- kill -9 -------------------------------------------------------------------------------------------------------

KILLED_WRITER = """
    import os, signal, sys
    from resources.store import Cell, CellStore

    url, point, when = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    real, count = CellStore.put, 0

    def put(self, path, content):
        global count
        if when == "before" and count == point:
            os.kill(os.getpid(), signal.SIGKILL)
        real(self, path, content)
        if when == "after" and count == point:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1

    CellStore.put = put
    sys.path.insert(0, os.getcwd())
    from tests.resources.test_store import write
    write(CellStore(url), "two")
    print("finished")
"""


def python(code: str, *arguments: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **options,
    )


@pytest.mark.parametrize(
    ("point", "when", "served"),
    [
        (0, "before", "one"),  # before the first file
        (0, "after", "one"),  # between two files
        (1, "after", "one"),
        (2, "after", "one"),  # every file there, no manifest
        (3, "after", "one"),  # manifest there, CURRENT not switched
        (4, "after", "two"),  # switched, nothing tidied up
    ],
)
def test_kill_9_in_the_middle_of_a_write_serves_a_whole_version_and_the_retry_succeeds(
    store: CellStore, point: int, when: str, served: str
):
    write(store, "one")
    assert python(KILLED_WRITER, store.url, str(point), when).returncode == -signal.SIGKILL
    assert content(store) == served
    store.open(CELL).verify()
    write(store, "two")
    assert content(store) == "two"
    assert [cell.path for cell in store.cells("")] == [CELL.path]


def test_kill_9_in_the_first_write_of_a_cell_leaves_it_missing(store: CellStore):
    assert python(KILLED_WRITER, store.url, "3", "after").returncode == -signal.SIGKILL
    assert store.find(CELL, check=True) is None
    assert store.cells("") == []


def test_kill_9_at_any_moment_of_a_stream_of_writes_leaves_a_whole_version(store: CellStore):
    write(store, "0")
    code = """
        import sys, itertools
        from resources.store import CellStore
        from tests.resources.test_store import write
        print("ready", flush=True)
        for n in itertools.count(1):
            write(CellStore(sys.argv[1]), str(n))
    """
    for delay in (0.0, 0.011, 0.037, 0.05):
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), store.url],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(delay)
        process.kill()
        process.wait()
        assert content(store).isdigit()


# ---- two writers ---------------------------------------------------------------------------------------------------


def test_two_processes_that_write_one_cell_at_once_leave_exactly_one_whole_version(store: CellStore):
    code = """
        import sys
        from resources.store import CellStore
        from tests.resources.test_store import write
        print("ready", flush=True)
        sys.stdin.readline()
        for n in range(20):
            write(CellStore(sys.argv[1]), f"{sys.argv[2]}{n}")
    """
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), store.url, name],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in "ab"
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    seen: set[str] = set()
    while any(writer.poll() is None for writer in writers):
        if store.find(CELL) is not None:
            seen.add(content(store))  # never a mixture of two
    for writer in writers:
        assert writer.stderr is not None
        assert (writer.wait(), writer.stderr.read()) == (0, "")
    assert content(store) in {"a19", "b19"}
    assert seen


def test_a_reader_keeps_the_version_it_opened_when_another_is_written(store: CellStore):
    old = write(store, "one")
    write(store, "two")
    old.verify()
    assert content(store) == "two"


def test_a_writer_whose_files_were_tidied_away_publishes_nothing(store: CellStore):
    write(store, "one")
    with pytest.raises(DamagedCellError, match=r"c\.bin is missing"), store.at(CELL).writer("test") as writer:
        writer.put("a.bin", b"a")
        writer.put("c.bin", b"c")
        Path(store.url, CELL.path, "versions", writer.version, "c.bin").unlink()
        writer.commit("two", {})
    assert content(store) == "one"


def test_a_switch_whose_answer_was_lost_is_not_taken_back(store: CellStore, monkeypatch: pytest.MonkeyPatch):
    write(store, "one")
    real = CellStore.put

    def cut_off(self: CellStore, path: str, content: bytes) -> None:
        real(self, path, content)
        if path.endswith("/CURRENT"):
            raise StoreError("timed out")

    monkeypatch.setattr(CellStore, "put", cut_off)
    with pytest.raises(StoreError, match="timed out"):
        write(store, "two")
    monkeypatch.undo()
    assert content(store) == "two"


def test_a_write_that_cannot_tidy_up_has_succeeded(store: CellStore, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object, **__: object) -> None:
        raise StoreError("cannot list")

    monkeypatch.setattr(CellStore, "prune", fail)
    write(store, "one")
    assert content(store) == "one"


# ---- tidying up ----------------------------------------------------------------------------------------------------


def version_name(age: timedelta) -> str:
    return f"{datetime.now(UTC) - age:%Y%m%dT%H%M%S}-0123abcd"


def test_tidying_keeps_the_served_the_one_before_it_and_whatever_is_young(store: CellStore):
    first = write(store, "one")
    versions = Path(store.url, CELL.path, "versions")
    young, old = version_name(cells.KEEP_SUPERSEDED / 2), version_name(cells.KEEP_SUPERSEDED * 2)
    for name in (young, old):
        shutil.copytree(versions / first.version, versions / name)
    second = write(store, "two")
    assert {path.name for path in versions.iterdir()} == {first.version, second.version, young}


def test_the_version_before_stays_however_old_it_is(store: CellStore, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cells, "KEEP_SUPERSEDED", timedelta(seconds=-10))
    first, second, third = (write(store, name) for name in ("one", "two", "three"))
    versions = Path(store.url, CELL.path, "versions")
    assert {path.name for path in versions.iterdir()} == {second.version, third.version}
    second.verify()
    with pytest.raises(DamagedCellError):
        first.verify()


def test_half_a_file_of_a_killed_writer_is_tidied_away(store: CellStore):
    write(store, "one")
    killed = Path(store.url, CELL.path, "versions", version_name(cells.KEEP_SUPERSEDED * 2))
    killed.mkdir()
    (killed / "a.bin#1").write_bytes(b"what the object store leaves when it is killed")
    write(store, "two")
    assert not killed.exists()


# ---- damage --------------------------------------------------------------------------------------------------------


def damages() -> Iterator[tuple[str, Callable[[Path], object]]]:
    yield "deleted", Path.unlink
    yield "emptied", lambda path: path.write_bytes(b"")
    yield "truncated", lambda path: path.write_bytes(path.read_bytes()[:-1])
    yield "extended", lambda path: path.write_bytes(path.read_bytes() + b"\0")
    yield "a bit flipped at the start", lambda path: flip(path, 0, 0)
    yield "a bit flipped in the middle", lambda path: flip(path, path.stat().st_size // 2, 3)
    yield "a bit flipped at the end", lambda path: flip(path, path.stat().st_size - 1, 7)


def flip(path: Path, at: int, bit: int) -> None:
    damaged = bytearray(path.read_bytes())
    damaged[at] ^= 1 << bit
    path.write_bytes(damaged)


@pytest.mark.parametrize("name", ["CURRENT", "manifest.json", "b.bin"])
@pytest.mark.parametrize(("how", "damage"), [pytest.param(how, damage, id=how) for how, damage in damages()])
def test_a_damaged_file_is_an_error_that_names_it(
    store: CellStore, name: str, how: str, damage: Callable[[Path], object]
):
    write(store, "one")
    path = files_of(store)[name]
    damage(path)
    if (name, how) == ("CURRENT", "deleted"):
        with pytest.raises(LostCellError, match=f"{CELL.path} is lost: it has versions, but no pointer"):
            store.open(CELL)
    else:
        # A pointer whose version was altered leads to a manifest that is not there.
        named = r"(CURRENT|manifest\.json)" if name == "CURRENT" else re.escape(name)
        with pytest.raises(DamagedCellError, match=rf"^{CELL.path} is damaged: {CELL.path}/\S*{named} .*restore"):
            store.open(CELL).verify()
        assert name == "b.bin" or store.find(CELL) is None
    write(store, "two")
    assert content(store) == "two"


def test_every_single_bit_of_pointer_and_manifest_counts(store: CellStore):
    write(store, "one")
    for name in ("CURRENT", "manifest.json"):
        path = files_of(store)[name]
        whole = path.read_bytes()
        for at in range(len(whole)):
            flip(path, at, at % 8)
            with pytest.raises(DamagedCellError):
                store.open(CELL)
            path.write_bytes(whole)
    assert content(store) == "one"


def test_a_truncated_file_says_how_many_bytes_there_are(store: CellStore):
    write(store, "one")
    path = files_of(store)["b.bin"]
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:7])
    with pytest.raises(DamagedCellError, match=rf"folder/b\.bin has 7 bytes of {size}; restore the file, or have"):
        store.open(CELL)


def test_a_file_that_disappears_after_opening_is_an_error(store: CellStore):
    stored = write(store, "one")
    files_of(store)["b.bin"].unlink()
    with pytest.raises(DamagedCellError, match=r"folder/b\.bin was altered or lost"):
        stored.read("folder/b.bin")


def test_a_cell_that_was_copied_to_another_place_is_refused(store: CellStore):
    write(store, "one")
    other = Cell(CELL.asset, {"architecture": "shallow_net", "attack": "fgm_0.3"})
    shutil.copytree(Path(store.url, CELL.path), Path(store.url, other.path))
    with pytest.raises(DamagedCellError, match=f"belongs to {CELL.path}"):
        store.open(other)


@pytest.mark.parametrize("pointer", ["../../../../etc", "20260101T000000-0123abcd/..", "", 5, ["x"], None])
def test_a_pointer_that_leads_elsewhere_is_damage(store: CellStore, pointer: object):
    write(store, "one")
    files_of(store)["CURRENT"].write_text(json.dumps({"version": pointer, "manifest_sha256": "0" * 64}))
    with pytest.raises(DamagedCellError, match="CURRENT is not a pointer to a version"):
        store.open(CELL)


def test_a_manifest_of_another_format_is_refused(store: CellStore):
    write(store, "one")
    paths = files_of(store)
    manifest = paths["manifest.json"].read_bytes().replace(b'"format": 1', b'"format": 9')
    paths["manifest.json"].write_bytes(manifest)
    pointer = json.loads(paths["CURRENT"].read_text()) | {"manifest_sha256": sha256(manifest)}
    paths["CURRENT"].write_text(json.dumps(pointer))
    for look in (store.open, store.find, lambda cell: store.cells("digits"), lambda cell: write(store, "two")):
        with pytest.raises(OtherFormatError, match=r"was stored in format 9 by another release .* writes format 1"):
            look(CELL)


def test_a_pointer_whose_digest_was_altered_is_named_beside_the_manifest(store: CellStore):
    write(store, "one")
    path = files_of(store)["CURRENT"]
    pointer = json.loads(path.read_text())
    path.write_text(json.dumps(pointer | {"manifest_sha256": "0" * 64}))
    said = r"manifest\.json does not have the digest that \S+/CURRENT holds for it: one of the two was altered"
    with pytest.raises(DamagedCellError, match=said):
        store.open(CELL)


def test_facts_that_alone_differ_are_served_under_the_same_data_version(store: CellStore):
    served = []
    for facts in ({"judged": "one", "rate": 0.1, "pair": (1, 2)}, {"judged": "two"}, {"judged": "two"}):
        with store.at(CELL).writer("test") as writer:
            writer.put("a.bin", b"a")
            served.append(writer.commit("same", facts))
    assert store.open(CELL).manifest.attributes == {"judged": "two"}
    assert served[0].version != served[1].version == served[2].version
    assert {one.manifest.data_version for one in served} == {"same"}


def test_a_table_whose_facts_differ_has_another_data_version(store: CellStore):
    versions = [
        write_table(store.at(CELL), pd.DataFrame({"n": [1]}), attributes=facts).manifest.data_version
        for facts in ({"missing": []}, {"missing": ["x"]}, {"missing": []})
    ]
    assert versions[0] == versions[2] != versions[1]


# ---- nothing stored is code ----------------------------------------------------------------------------------------


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def test_a_pickle_in_the_place_of_any_file_is_refused_and_never_run(store: CellStore, tmp_path: Path):
    sprung = tmp_path / "sprung"
    bomb = pickle.dumps(Bomb(sprung))
    pickle.loads(bomb)  # noqa: S301
    assert sprung.exists(), "the bomb is a dud"
    sprung.unlink()
    table = Cell("digits/evasion_metrics")
    write_table(store.at(table), pd.DataFrame({"n": [1]}))
    stored = store.open(table)
    folder = Path(store.url, table.path)
    for name in ("CURRENT", f"versions/{stored.version}/manifest.json", f"versions/{stored.version}/table.parquet"):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(bomb)
        with pytest.raises(DamagedCellError, match=re.escape(name)):
            read_table(store.open(table))
        (folder / name).write_bytes(whole)
    # Even where digests were made to fit: a table is read as Parquet and as nothing else.
    with store.at(table).writer("table") as writer:
        writer.put("table.parquet", bomb)
        writer.commit("bomb", {"rows": 1})
    with pytest.raises(Exception, match="Parquet magic bytes"):
        read_table(store.open(table))
    assert not sprung.exists()


def test_no_file_of_a_store_is_a_pickle_of_anything(store: CellStore):
    write_table(
        store.at(Cell("a")), pd.DataFrame({"probabilities": list(np.eye(3, dtype=np.float32)), "name": list("abc")})
    )
    write_config(store.at(Cell("b")), {"eps": 0.3})
    beginnings = {path.read_bytes()[:4] for path in Path(store.url).rglob("*") if path.is_file()}
    assert beginnings == {b"PAR1", b'{"ve', b'{\n "'}


# ---- listing -------------------------------------------------------------------------------------------------------


def test_cells_lists_what_is_served_below_a_prefix(store: CellStore):
    served = [
        Cell("digits/model", {"architecture": "le_net"}),
        Cell("digits/model", {"architecture": "versions"}),
        Cell("digits/training_set"),
        Cell("digits_2/model", {"architecture": "le_net"}),
        CELL,
    ]
    for cell in served:
        write(store, "one", cell)
    with pytest.raises(RuntimeError), store.at(Cell("digits/unfinished")).writer("test") as writer:
        writer.put("a", b"a")
        raise RuntimeError
    by_path = sorted(served, key=lambda cell: cell.path)
    assert store.cells("") == by_path
    assert store.cells("digits") == [cell for cell in by_path if cell.asset.startswith("digits/")]
    assert store.cells("digits/model") == [served[0], served[1]]
    assert store.cells("digits/mod") == []
    assert store.cells("nothing") == []


def test_a_look_at_many_cells_at_once_finds_what_a_look_at_each_finds(store: CellStore):
    keys = ["versions", *(f"net_{number}" for number in range(29))]
    asked = [Cell("digits/model", {"architecture": key}) for key in keys]
    for cell in asked[:-3]:
        write(store, "one", cell)
    for cell, name in zip(asked[1:4], ("CURRENT", "manifest.json", "b.bin"), strict=True):
        files_of(store, cell)[name].write_bytes(b"{}")
    files_of(store, asked[4])["CURRENT"].unlink()
    files_of(store, asked[5])["b.bin"].unlink()
    there = {asked[0], *asked[6:-3]}
    assert {cell for cell in asked if store.find(cell)} == there
    assert store.found(asked) == {cell: store.open(cell) for cell in asked if cell in there}
    assert set(store.found(asked[:9])) == {asked[0], *asked[6:9]}
    assert set(store.found([])) == set()


def test_listing_names_a_cell_that_lost_its_pointer_unless_its_writer_may_be_about_to_write_it(store: CellStore):
    write(store, "one")
    paths = files_of(store)
    paths["CURRENT"].unlink()
    assert store.cells("digits") == []
    os.utime(paths["manifest.json"], (1.7e9, 1.7e9))
    with pytest.raises(LostCellError, match=f"{CELL.path} is lost"):
        store.cells("digits")


def test_listing_names_a_damaged_cell(store: CellStore):
    write(store, "one")
    files_of(store)["CURRENT"].write_bytes(b"\x80\x04")
    with pytest.raises(DamagedCellError, match=f"{CELL.path}/CURRENT is not a pointer"):
        store.cells("digits")


# ---- a store that cannot be written --------------------------------------------------------------------------------


def test_a_full_disk_is_a_failure_with_path_and_bytes_and_the_old_version_stays(store: CellStore):
    """A limit on the size of files stands for the disk: the write fails in the same call."""
    write(store, "one")
    before = snapshot(Path(store.url))
    code = """
        import resource, sys
        from resources.store import CellStore, StoreError
        from tests.resources.test_store import CELL
        store = CellStore(sys.argv[1])
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
        try:
            with store.at(CELL).writer("test") as writer:
                writer.put("small.bin", b"s" * 1000)
                writer.put("shard.bin", b"s" * 7_000_000)
        except StoreError as error:
            print(error)
    """
    said = python(code, store.url).stdout
    assert re.search(rf"cannot write {CELL.path}/versions/\S+/shard\.bin \(7,000,000 bytes\) in {store.url}: ", said)
    assert "too large" in said
    assert "Debug source" not in said
    assert snapshot(Path(store.url)) == before
    assert content(store) == "one"
    write(store, "two")
    assert content(store) == "two"


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter; pytest's own are for its user alone."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_a_read_only_store_is_read_and_refuses_writing_with_the_path(open_folder: Path):
    store = CellStore(str(open_folder / "store"))
    write(store, "one")
    code = """
        import os, sys
        from resources.store import CellStore, StoreError
        from tests.resources.test_store import content, write
        if os.geteuid() == 0:
            os.seteuid(65534)
        store = CellStore(sys.argv[1])
        print(content(store))
        try:
            write(store, "two")
        except StoreError as error:
            print(error)
    """
    for path in [Path(store.url), *Path(store.url).rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    ran = python(code, store.url)
    for path in [Path(store.url), *Path(store.url).rglob("*")]:
        path.chmod(0o755)
    lines = ran.stdout.splitlines()
    assert lines[:1] == ["one"], ran.stderr
    assert lines[1].startswith(f"cannot write {CELL.path}/versions/")
    assert f"a.bin ({len(b'a.bin of two') * 10} bytes) in {store.url}: " in lines[1]
    assert "Permission denied" in ran.stdout
    assert content(store) == "one"


@pytest.mark.parametrize("url", ["gs://bucket", "file:///tmp/store", "http://127.0.0.1/store"])
def test_other_kinds_of_address_are_refused_with_what_is_taken(url: str):
    with pytest.raises(StoreError, match=rf"^cannot open {url}: DIOPTRA_ASSETS_STORE takes a folder or s3://bucket"):
        CellStore(url).get("a")


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match=rf"^cannot open the folder {tmp_path}/file/store: .*DIOPTRA_ASSETS_STORE"):
        CellStore(str(tmp_path / "file" / "store")).get("a")


# ---- documents -----------------------------------------------------------------------------------------------------


def test_a_config_has_one_data_version_whatever_the_order_of_its_fields(store: CellStore):
    cell = Cell("digits/attack_config", {"attack": "fgm"})
    first = write_config(store.at(cell), {"eps": 0.3, "norm": "inf"})
    second = write_config(store.at(cell), {"norm": "inf", "eps": 0.3})
    third = write_config(store.at(cell), {"norm": "inf", "eps": 0.31})
    assert first.version == second.version
    assert third.manifest.data_version != first.manifest.data_version
    assert read_config(store.open(cell)) == {"eps": 0.31, "norm": "inf"}
