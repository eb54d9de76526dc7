"""Export one experiment to a file, and import it into another store, where it is untrusted until checked.

An archive is a plain tar of regular files with numbers for names. The first, `index.json`, holds the path in the store,
the size and the SHA-256 of each other file. So nothing in an archive names a place on the disk. Anything else a tar can
hold (links, devices, sparse files, headers for long names) is refused.

Why: docs/decisions/0029-archives-name-no-place.md
"""

import hashlib
import io
import os
import re
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, BinaryIO

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from resources.store import CURRENT, IN_A_VERSION, MANIFEST, Cell, CellStore, Manifest, Pointer, says, sha256

FORMAT = 1
INDEX = "index.json"
BLOCK = tarfile.BLOCKSIZE
# An index is held in memory; a million files are a store of some hundred thousand cells.
MOST_INDEX_BYTES = 256 << 20
MOST_FILES = 1_000_000
# A shard holds about 64 MB of pixels; one image of any size makes a chunk of its own.
MOST_FILE_BYTES = 8 << 30
SEGMENT = re.compile(r"(?!\.{1,2}$)[^/\\\x00-\x1f\x7f]{1,255}")


class ArchiveError(RuntimeError):
    """An archive was refused. Nothing of it was written."""


class ArchivedFile(BaseModel):
    """One file of a store."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    path: str = Field(max_length=2000)
    size: int = Field(ge=0, le=MOST_FILE_BYTES)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class Index(BaseModel):
    """The content of an archive."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    format: int
    experiment: str = Field(pattern="^[A-Za-z0-9_]{1,100}$")
    files: Annotated[list[ArchivedFile], Field(max_length=MOST_FILES)]


def export_experiment(store: CellStore, experiment: str, target: Path) -> int:
    """Write the served cells of an experiment to a new file, and verify every byte on the way.

    Returns:
        Number of cells.

    Raises:
        LookupError: nothing of the experiment is stored.
        FileExistsError: the file already exists.
        DamagedCellError: a cell differs from what was written. No file is left.
    """
    stored = [store.open(cell) for cell in store.cells(experiment)]
    if not stored:
        raise LookupError(f"nothing of an experiment {experiment!r} is stored in {store.url}")
    files: list[ArchivedFile] = []
    for version in stored:
        for name, record in version.manifest.files.items():
            files.append(ArchivedFile(path=f"{version.prefix}/{name}", size=record.size, sha256=record.sha256))
        for path in (f"{version.prefix}/{MANIFEST}", f"{version.cell.path}/{CURRENT}"):
            content = store.get(path) or b""
            files.append(ArchivedFile(path=path, size=len(content), sha256=sha256(content)))
    index = Index(format=FORMAT, experiment=experiment, files=files)
    try:
        with target.open("xb") as output, tarfile.open(fileobj=output, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            _add(tar, INDEX, index.model_dump_json().encode())
            for number, file in enumerate(files):
                content = store.get(file.path)
                if content is None or (len(content), sha256(content)) != (file.size, file.sha256):
                    raise ArchiveError(
                        f"{file.path} was altered or lost: run `dioptra-assets verify` to find all damage"
                    )
                _add(tar, f"{number:08d}", content)
    except FileExistsError:
        raise
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    return len(stored)


def import_experiment(store: CellStore, source: Path, *, replace: bool = False) -> tuple[str, int, int]:
    """Import the cells of an archive into a store, after all of it has been checked.

    Args:
        store: the store to import into.
        source: the archive.
        replace: whether to replace cells whose content differs here. Otherwise they are refused.

    Returns:
        The experiment, the number of cells imported, and the number of cells that were already here.

    Raises:
        ArchiveError: the archive was refused. The store is unchanged.
    """
    if not source.is_file():
        raise ArchiveError(f"there is no file {source}")
    with source.open("rb") as file:
        index = _index(file)
        small = _checked_contents(file, index)
        cells = _checked_cells(index, small)
        there = {path: stored for path, one in cells.items() if (stored := store.find(Cell(one.asset, one.partition)))}
        wanted = {path for path, one in cells.items() if path not in there or says(there[path].manifest) != says(one)}
        others = sorted(wanted & there.keys())
        if others and not replace:
            more = " and others" if len(others) > 5 else ""
            raise ArchiveError(
                f"{source} was not imported: the content of {', '.join(others[:5])}{more} differs here; use `--replace`"
                " to serve that of the archive instead"
            )
        for path in wanted:
            pointer = small[f"{path}/{CURRENT}"]
            version = Pointer.model_validate_json(pointer).version
            # A damaged cell is restored from its own version. A version is never overwritten by another.
            if store.sizes(f"{path}/versions/{version}") and store.get(f"{path}/{CURRENT}") != pointer:
                raise ArchiveError(
                    f"{source} was not imported: {path} already has a version {version} here, which may differ"
                )
        _write(store, file, index, wanted, small)
    return index.experiment, len(wanted), len(cells) - len(wanted)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


def _index(file: BinaryIO) -> Index:
    name, size = _header(file)
    if name != INDEX or size > MOST_INDEX_BYTES:
        raise ArchiveError(f"{_named(file)} is not an archive of an experiment: it does not begin with {INDEX}")
    try:
        index = Index.model_validate_json(_content(file, size))
    except ValidationError as error:
        raise ArchiveError(f"{_named(file)}: {INDEX} cannot be read: {error.errors()[0]['msg']}") from error
    if index.format != FORMAT:
        raise ArchiveError(f"{_named(file)} has format {index.format}, this release reads {FORMAT}")
    if sum(one.size for one in index.files) > os.fstat(file.fileno()).st_size:
        raise ArchiveError(f"{_named(file)} claims to hold more bytes than it has")
    paths = [one.path for one in index.files]
    if len(set(paths)) != len(paths):
        raise ArchiveError(f"{_named(file)} names a file twice")
    for path in paths:
        segments = path.split("/")
        if segments[0] != index.experiment or not all(SEGMENT.fullmatch(one) for one in segments):
            raise ArchiveError(f"{_named(file)}: {path!r} is not a path below {index.experiment}/")
    return index


def _contents(file: BinaryIO, index: Index) -> Iterator[tuple[ArchivedFile, bytes]]:
    """The files after the index, each of its declared size and digest."""
    for number, one in enumerate(index.files):
        name, size = _header(file)
        if (name, size) != (f"{number:08d}", one.size):
            raise ArchiveError(f"{_named(file)}: entry {name!r} of {size:,} bytes is not what {INDEX} says")
        content = _content(file, size)
        if sha256(content) != one.sha256:
            raise ArchiveError(f"{_named(file)}: {one.path} was altered")
        yield one, content
    if file.read(BLOCK).strip(b"\0"):
        raise ArchiveError(f"{_named(file)} holds more than {INDEX} says")


def _checked_contents(file: BinaryIO, index: Index) -> dict[str, bytes]:
    """Look at every byte; the pointers and manifests by path."""
    return {
        one.path: content
        for one, content in _contents(file, index)
        if one.path.endswith((f"/{CURRENT}", f"/{MANIFEST}"))
    }


def _checked_cells(index: Index, small: dict[str, bytes]) -> dict[str, Manifest]:
    """Path -> manifest of the cells that the archive holds, whole, and nothing beside them."""
    records = {one.path: one for one in index.files}
    cells, accounted = dict[str, Manifest](), set[str]()
    for path in (path for path in records if path.endswith(f"/{CURRENT}") and not IN_A_VERSION.match(path)):
        folder = path.removesuffix(f"/{CURRENT}")
        try:
            pointer = Pointer.model_validate_json(small[path])
            prefix = f"{folder}/versions/{pointer.version}"
            content = small[f"{prefix}/{MANIFEST}"]
            manifest = Manifest.model_validate_json(content)
        except (ValidationError, KeyError) as error:
            raise ArchiveError(f"{folder}: pointer or manifest is missing or not understood") from error
        if hashlib.sha256(content).hexdigest() != pointer.manifest_sha256:
            raise ArchiveError(f"{folder}: {MANIFEST} is not the one that {CURRENT} was written for")
        cell = Cell(manifest.asset, manifest.partition)
        if cell.path != folder or manifest.format != FORMAT:
            raise ArchiveError(f"{folder}: {MANIFEST} is of {cell.path}, format {manifest.format}")
        for name, record in manifest.files.items():
            held = records.get(f"{prefix}/{name}")
            if held is None or (held.size, held.sha256) != (record.size, record.sha256):
                raise ArchiveError(f"{folder}: {name} is not what {MANIFEST} says")
            accounted.add(f"{prefix}/{name}")
        accounted |= {path, f"{prefix}/{MANIFEST}"}
        cells[folder] = manifest
    if strays := sorted(records.keys() - accounted):
        raise ArchiveError(f"{strays[0]} belongs to no cell of the archive")
    return cells


def _write(store: CellStore, file: BinaryIO, index: Index, wanted: set[str], small: dict[str, bytes]) -> None:
    """Write the files of the wanted cells, then their manifests, then the pointers that serve them."""
    file.seek(0)
    _content(file, _header(file)[1])
    folders = defaultdict(list)
    for one, content in _contents(file, index):
        found = IN_A_VERSION.match(one.path)
        if found and found["folder"] in wanted:
            folders[found["folder"]].append(one.path)
            if one.path not in small:
                store.put(one.path, content)
    for folder, paths in folders.items():
        for path in paths:
            if path in small:
                store.put(path, small[path])
        store.put(f"{folder}/{CURRENT}", small[f"{folder}/{CURRENT}"])


def _header(file: BinaryIO) -> tuple[str, int]:
    """Read the name and size of the next entry, which must be a regular file."""
    block = file.read(BLOCK)
    try:
        entry = tarfile.TarInfo.frombuf(block, "ascii", "strict")
    except (tarfile.HeaderError, UnicodeDecodeError) as error:
        raise ArchiveError(f"{_named(file)} is not an archive of an experiment, or is truncated: {error}") from error
    if (
        entry.type not in (tarfile.REGTYPE, tarfile.AREGTYPE)
        or entry.linkname
        or not 0 <= entry.size <= MOST_FILE_BYTES
    ):
        raise ArchiveError(f"{_named(file)}: entry {entry.name!r} is not a regular file")
    return entry.name, entry.size


def _content(file: BinaryIO, size: int) -> bytes:
    content = file.read(size)
    if len(content) != size:
        raise ArchiveError(f"{_named(file)} is truncated")
    file.read(-size % BLOCK)
    return content


def _named(file: BinaryIO) -> str:
    return str(getattr(file, "name", "the archive"))
