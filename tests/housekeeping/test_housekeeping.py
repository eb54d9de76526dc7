"""Keeping house as a user does: verify, export and import, clean, backup; each a second time too."""

import json
import sqlite3
import tarfile
from collections.abc import Callable, Iterator
from datetime import timedelta
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from dioptra_assets.command_line import app
from dioptra_assets.housekeeping import archive, backup, rubbish, verification
from dioptra_assets.housekeeping.archive import ArchiveError, export_experiment, import_experiment
from dioptra_assets.robustness.image_set import ImageSet
from dioptra_assets.runs.launch import Launched, materialize_experiment
from dioptra_assets.runs.selection import Selection
from resources import store as cells
from resources.documents import read_config, write_config
from resources.image_store import read_image_set, write_image_set
from resources.store import Cell, CellStore, sha256
from resources.tables import read_table, write_table
from tests.conftest import Lab

FROZEN = Path(__file__).parent.parent / "resources" / "format_1"
CONFIG = Cell("digits/attack_config", {"attack": "fgm@eps=0.3"})
TABLE = Cell("digits/evasion_metrics", {"architecture": "le_net", "attack": "fgm_0.3"})
SET = Cell("digits/testing_set")


def furnish(store: CellStore, eps: float = 0.3) -> CellStore:
    """A few cells of every kind that needs no framework."""
    images = np.linspace(0, 1, 2 * 2 * 2, dtype=np.float32).reshape(2, 2, 2, 1)
    image_set = ImageSet.from_arrays(images, [0, 1], ["zero", "one"])
    write_config(store.at(CONFIG), {"method": "fgm", "eps": eps})
    write_table(store.at(TABLE), pd.DataFrame({"n": [2], "asr": [eps]}), attributes={"missing": []})
    write_image_set(store.at(SET), image_set.batches(2), n=2, image_shape=(2, 2, 1), class_names=("zero", "one"))
    return store


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CellStore:
    for name in ("DIOPTRA_ASSETS_STORE", "MLFLOW_TRACKING_URI", "DIOPTRA_ASSETS_EXECUTOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    return furnish(CellStore(str(tmp_path / "home" / "store")))


def content(store: CellStore) -> dict[str, bytes]:
    return {str(p.relative_to(store.url)): p.read_bytes() for p in Path(store.url).rglob("*") if p.is_file()}


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app.app, arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


# ---- verify --------------------------------------------------------------------------------------------------------


def test_verify_reads_every_byte_and_names_what_is_not_as_written(store: CellStore) -> None:
    code, said = run("verify")
    assert code == 0 and "3 cells in 3 versions" in said
    path = Path(store.url, store.open(TABLE).prefix, "table.parquet")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    Path(store.url, CONFIG.path, "CURRENT").unlink()
    code, said = run("verify", "digits")
    assert code == 1 and "2 faults" in said
    assert f"{TABLE.path} is damaged: {store.open(TABLE).prefix}/table.parquet was altered" in said
    assert f"{CONFIG.path} is lost" in said


def test_an_experiment_of_which_nothing_is_stored_is_not_called_whole(store: CellStore) -> None:
    code, said = run("verify", "digit")
    assert code == 2 and "nothing of 'digit' is stored, available: digits" in said


def test_what_is_damaged_is_computed_again_once_it_is_withdrawn(blank: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flipped byte changes no size: until somebody reads it the cell looks as fresh as before."""
    monkeypatch.setenv("DAGSTER_HOME", str(blank.home))
    monkeypatch.setenv("DIOPTRA_ASSETS_STORE", blank.store.url)

    def launch() -> Launched:
        with blank.instance() as instance:
            return materialize_experiment(
                blank.defs(), "tiny", instance=instance, store=blank.store, only=Selection(["attack_config"])
            )

    made = launch().computed
    stored = blank.store.open(made[0])
    path = Path(blank.store.url, stored.prefix, "config.json")
    path.write_bytes(path.read_bytes().replace(b"}", b" "))
    assert launch().computed == []
    code, said = run("verify", "tiny")
    assert code == 1 and "`dioptra-assets verify tiny --withdraw`, then `dioptra-assets materialize tiny`" in said
    assert run("verify", "tiny", "--withdraw")[0] == 1
    assert launch().computed == [made[0]]
    assert blank.store.open(made[0]).manifest.data_version == stored.manifest.data_version
    assert run("verify", "tiny")[0] == 1, "the damaged version is there, and no longer served"
    assert blank.store.open(made[0]).verify() is None


def test_verify_looks_at_superseded_versions_and_passes_over_unfinished_ones(store: CellStore) -> None:
    before = store.open(CONFIG)
    write_config(store.at(CONFIG), {"eps": 0.4})
    store.put(f"{TABLE.path}/versions/20200101T000000-00000000/half.bin", b"half")
    assert verification.verify_store(store).faults == []
    path = Path(store.url, before.prefix, "config.json")
    path.write_bytes(b"{}")
    assert verification.verify_store(store).faults == [
        f"{before.prefix}/config.json, of a superseded version, was altered or lost"
    ]


def test_a_store_of_this_release_is_read_by_every_later_one() -> None:
    store = CellStore(str(FROZEN))
    assert verification.verify_store(store).faults == []
    assert store.cells("") == [CONFIG, TABLE, SET]
    assert read_config(store.open(CONFIG)) == {"method": "fgm", "eps": 0.3}
    assert read_table(store.open(TABLE)).to_dict("list") == {"n": [2], "asr": [0.3]}
    assert read_image_set(store.open(SET)).to_numpy()[0].ravel()[-1] == 1


# ---- export and import ---------------------------------------------------------------------------------------------


def test_what_was_exported_is_imported_to_the_byte_and_a_second_time_is_nothing_new(
    store: CellStore, tmp_path: Path
) -> None:
    file, other = tmp_path / "digits.tar", CellStore(str(tmp_path / "other"))
    assert run("export", "digits", str(file))[0] == 0
    assert run("export", "digits", str(file))[0] == 2, "no file is written over"
    assert import_experiment(other, file) == ("digits", 3, 0)
    assert content(other) == content(store)
    assert import_experiment(other, file) == ("digits", 0, 3)
    assert content(other) == content(store)
    assert run("import", str(file))[1].startswith("0 cells of digits imported, 3 were already here")


def test_cells_that_are_others_here_are_kept_unless_they_are_to_be_replaced(store: CellStore, tmp_path: Path) -> None:
    file, other = tmp_path / "digits.tar", furnish(CellStore(str(tmp_path / "other")), eps=0.1)
    export_experiment(store, "digits", file)
    before = content(other)
    with pytest.raises(ArchiveError, match=r"attack_config/fgm@eps=0\.3, \S+ differs here; use `--replace`"):
        import_experiment(other, file)
    assert content(other) == before
    assert import_experiment(other, file, replace=True) == ("digits", 2, 1)
    assert read_config(other.open(CONFIG))["eps"] == 0.3
    assert before.items() - content(other).items() == {
        (path, held) for path, held in before.items() if path.endswith("CURRENT") and "testing_set" not in path
    }, "nothing but pointers has changed"


def test_an_import_restores_a_damaged_cell(store: CellStore, tmp_path: Path) -> None:
    file, whole = tmp_path / "digits.tar", content(store)
    export_experiment(store, "digits", file)
    Path(store.url, store.open(TABLE).prefix, "table.parquet").unlink()
    assert import_experiment(store, file) == ("digits", 1, 2)
    assert content(store) == whole


def test_a_damaged_cell_is_not_exported(store: CellStore, tmp_path: Path) -> None:
    path = Path(store.url, store.open(TABLE).prefix, "table.parquet")
    path.write_bytes(bytes(len(path.read_bytes())))
    code, said = run("export", "digits", str(tmp_path / "digits.tar"))
    assert code == 1 and "table.parquet was altered or lost" in said
    assert not (tmp_path / "digits.tar").exists()
    assert run("export", "digit", str(tmp_path / "digits.tar"))[0] == 1


def entries(file: Path) -> list[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(file) as tar:
        return [(one, tar.extractfile(one).read()) for one in tar.getmembers()]  # type: ignore[union-attr]


def packed(file: Path, members: list[tuple[tarfile.TarInfo, bytes]], form: int = tarfile.USTAR_FORMAT) -> Path:
    with tarfile.open(file, "w", format=form) as tar:
        for one, held in members:
            one.size = len(held)
            tar.addfile(one, BytesIO(held))
    return file


def hostile() -> Iterator[tuple[str, Callable[[list[tuple[tarfile.TarInfo, bytes]]], object], str]]:
    """What is done to the entries of an archive, and what is said of it."""

    def kind(letter: bytes, link: str = "") -> Callable[[list[tuple[tarfile.TarInfo, bytes]]], object]:
        def change(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
            members[1][0].type, members[1][0].linkname = letter, link
            members[1] = (members[1][0], b"")

        return change

    def index(change: Callable[[dict], object]) -> Callable[[list[tuple[tarfile.TarInfo, bytes]]], object]:
        def changed(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
            document = json.loads(members[0][1])
            change(document)
            members[0] = (members[0][0], json.dumps(document).encode())

        return changed

    def place(path: str) -> Callable[[list[tuple[tarfile.TarInfo, bytes]]], object]:
        return index(lambda document: document["files"][0].update(path=path))

    yield "a symlink", kind(tarfile.SYMTYPE, "/etc/passwd"), "not a regular file"
    yield "a hard link", kind(tarfile.LNKTYPE, "index.json"), "not a regular file"
    yield "a device", kind(tarfile.CHRTYPE), "not a regular file"
    yield "a fifo", kind(tarfile.FIFOTYPE), "not a regular file"
    yield "a folder", kind(tarfile.DIRTYPE), "not a regular file"
    yield "a sparse file", kind(tarfile.GNUTYPE_SPARSE), "not a regular file|not an archive"
    yield "a way up", place("digits/../../etc/cron.d/x"), "is not a path below digits/"
    yield "an absolute path", place("/etc/passwd"), "is not a path below digits/"
    yield "another experiment", place("mnist/report/CURRENT"), "is not a path below digits/"
    yield "a backslash", place("digits/..\\x"), "is not a path below digits/"
    yield "an empty part", place("digits//x"), "is not a path below digits/"
    yield "a stray", place("digits/notes.txt"), "is not what manifest.json says"
    yield "a path of a megabyte", place("digits/" + "a" * 1_000_000), "cannot be read"
    yield "a name twice", index(lambda d: d["files"].append(d["files"][0])), "names a file twice"
    yield "a size that is not there", index(lambda d: d["files"][0].update(size=1 << 32)), "more bytes than it has"
    yield "a size below nothing", index(lambda d: d["files"][0].update(size=-1)), "cannot be read"
    yield "another format", index(lambda d: d.update(format=2)), "has format 2, this release reads 1"
    yield "another digest", index(lambda d: d["files"][0].update(sha256="0" * 64)), "was altered"
    yield "a field more", index(lambda d: d.update(run="me")), "cannot be read"
    yield "an altered byte", lambda m: m.__setitem__(1, (m[1][0], b"x" * len(m[1][1]))), "was altered"
    yield "an entry less", lambda m: m.pop(), "is truncated|is not an archive"
    yield "an entry more", lambda m: m.append((tarfile.TarInfo("x"), b"x")), "holds more than index.json says"
    yield "another order", lambda m: m.insert(1, m.pop()), "is not what index.json says"
    yield "no index", lambda m: m.pop(0), "does not begin with index.json"


@pytest.mark.parametrize(("change", "said"), [pytest.param(c, s, id=name) for name, c, s in hostile()])
def test_a_hostile_archive_is_refused_and_nothing_of_it_is_written(
    store: CellStore, tmp_path: Path, change: Callable[[list[tuple[tarfile.TarInfo, bytes]]], object], said: str
) -> None:
    file = tmp_path / "digits.tar"
    export_experiment(store, "digits", file)
    members = entries(file)
    change(members)
    other = furnish(CellStore(str(tmp_path / "other")))
    before = content(other)
    with pytest.raises(ArchiveError, match=said):
        import_experiment(other, packed(file, members), replace=True)
    assert content(other) == before
    assert {path.name for path in tmp_path.iterdir()} == {"digits.tar", "home", "other"}


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_names_in_headers_of_their_own_are_refused(store: CellStore, tmp_path: Path, form: int) -> None:
    file = tmp_path / "digits.tar"
    export_experiment(store, "digits", file)
    members = entries(file)
    members[1][0].name = "a" * 300 + "/../" * 50
    with pytest.raises(ArchiveError, match="not a regular file"):
        import_experiment(CellStore(str(tmp_path / "other")), packed(file, members, form))


def test_a_manifest_of_another_cell_or_another_pointer_is_refused(store: CellStore, tmp_path: Path) -> None:
    """Even where all digests of the index were made to fit."""
    file = tmp_path / "digits.tar"
    export_experiment(store, "digits", file)
    for old, new in ((b"le_net", b"xx_net"), (b'"format": 1', b'"format": 9'), (b'"files"', b'"fires"')):
        members = entries(file)
        document = json.loads(members[0][1])
        number = next(
            n
            for n, one in enumerate(document["files"])
            if one["path"].endswith("manifest.json") and "le_net" in one["path"]
        )
        forged = members[number + 1][1].replace(old, new)
        pointer = members[number + 2][1].replace(sha256(members[number + 1][1]).encode(), sha256(forged).encode())
        for at, held in ((number, forged), (number + 1, pointer)):
            members[at + 1] = (members[at + 1][0], held)
            document["files"][at] |= {"size": len(held), "sha256": sha256(held)}
        members[0] = (members[0][0], json.dumps(document).encode())
        forgery = packed(tmp_path / "forged.tar", members)
        with pytest.raises(ArchiveError, match=r"manifest\.json is of|missing or not understood"):
            import_experiment(CellStore(str(tmp_path / "other")), forgery)


def test_what_is_no_archive_is_refused(store: CellStore, tmp_path: Path) -> None:
    for held in (b"", b"\0" * 2048, b"x" * 2048, b"\x1f\x8b" + b"x" * 600):
        (tmp_path / "x.tar").write_bytes(held)
        code, said = run("import", str(tmp_path / "x.tar"))
        assert code == 1 and "is not an archive of an experiment" in said
    assert "there is no file" in run("import", str(tmp_path / "y.tar"))[1]


def test_an_archive_that_is_cut_off_anywhere_is_refused(store: CellStore, tmp_path: Path) -> None:
    file = tmp_path / "digits.tar"
    export_experiment(store, "digits", file)
    whole = file.read_bytes()
    end = sum(512 + -(-len(held) // 512) * 512 for _, held in entries(file))
    for length in range(0, end - 511, 512):
        file.write_bytes(whole[:length])
        with pytest.raises(ArchiveError):
            import_experiment(CellStore(str(tmp_path / "other")), file)
    assert not list((tmp_path / "other").rglob("CURRENT"))


def test_limits_hold(store: CellStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "digits.tar"
    export_experiment(store, "digits", file)
    monkeypatch.setattr(archive, "MOST_INDEX_BYTES", 100)
    with pytest.raises(ArchiveError, match="does not begin with"):
        import_experiment(CellStore(str(tmp_path / "other")), file)


# ---- clean and backup ----------------------------------------------------------------------------------------------


def test_clean_finds_removed_entries_and_old_versions_and_nothing_that_is_needed(
    store: CellStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed = Cell("digits/attack_config", {"attack": "gone"})
    write_config(store.at(removed), {"eps": 1})
    of_others = Cell("mnist/attack_config", {"attack": "gone"})
    write_config(store.at(of_others), {"eps": 1})
    old = store.open(CONFIG).version
    write_config(store.at(CONFIG), {"eps": 0.4})
    declared = {CONFIG.asset: {CONFIG.path}, TABLE.asset: None, SET.asset: {SET.path}}
    young = rubbish.rubbish(store, declared)
    assert (young.cells, young.versions) == ([removed], [(removed.path, store.open(removed).version)])
    monkeypatch.setattr(rubbish, "KEEP_SUPERSEDED", timedelta(seconds=-10))
    found = rubbish.rubbish(store, declared)
    assert (CONFIG.path, old) in found.versions and len(found.versions) == 2 and found.size > 0
    rubbish.remove_rubbish(store, found)
    assert rubbish.rubbish(store, declared) == rubbish.Rubbish()
    assert store.cells("") == [CONFIG, TABLE, SET, of_others]
    assert verification.verify_store(store).faults == []


def test_a_backup_of_a_home_in_use_is_a_home(store: CellStore, tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "history").mkdir()
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    store.put("mlflow-backlog/1/0", b"a picture")
    store.put("mlflow-backlog/1/entry.json", b"{}")
    with sqlite3.connect(home / "history" / "runs.db") as database:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("CREATE TABLE runs (id TEXT)")
        database.execute("INSERT INTO runs VALUES ('one')")
        database.commit()
        database.execute("INSERT INTO runs VALUES ('not committed')")
        code, said = run("backup", str(tmp_path / "copy"))
        assert code == 0 and "3 cells" in said
    copy = tmp_path / "copy"
    with sqlite3.connect(copy / "history" / "runs.db") as database:
        assert database.execute("SELECT id FROM runs").fetchall() == [("one",)]
    assert content(CellStore(str(copy / "store"))) == content(store)
    assert (copy / "dagster.yaml").exists()
    assert run("backup", str(copy))[0] == 2, "nothing is written over"


def test_a_store_that_is_a_servers_is_not_backed_up_here(tmp_path: Path) -> None:
    with pytest.raises(backup.BackupError, match="back it up there"):
        backup.backup(tmp_path, CellStore("s3://bucket/x"), tmp_path / "copy")


assert cells.FORMAT == 1, "freeze a store of the new format beside format_1, and migrate or name the old one"
