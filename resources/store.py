"""Cells: the stored value of one asset at one partition, written whole or not at all.

    ASSET/PARTITION/versions/VERSION/...      the files of a version, and last its manifest.json
    ASSET/PARTITION/CURRENT                   which version is served; written after everything else, by one atomic put

A version is never changed once CURRENT names it. A reader follows CURRENT, checks the manifest against the digest that
CURRENT holds, and every file against the manifest: a lost, truncated or altered file is an error that names it, and a
write that was cut off anywhere leaves the old version served. The same code runs on a folder and on S3.

Why: docs/decisions/0004-the-store.md
"""

import contextlib
import hashlib
import os
import re
import shutil
import uuid
from collections import defaultdict
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import obstore
from obstore.exceptions import PermissionDeniedError, UnauthenticatedError
from obstore.store import LocalStore, ObjectStore, from_url
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from resources.redacted import without_passwords

if TYPE_CHECKING:
    from obstore import ObjectMeta

# Of its types some name no arguments.
_OBSTORE: Any = obstore
FORMAT = 1
VERSION = r"\d{8}T\d{6}-[0-9a-f]{8}"
A_MANIFEST = re.compile(rf"{VERSION}/manifest\.json")
IN_A_VERSION = re.compile(rf"(?P<folder>.+?)/versions/(?P<name>{VERSION}/.+)")
CURRENT = "CURRENT"
MANIFEST = "manifest.json"
# A superseded version stays this long for readers that opened it before it was superseded.
KEEP_SUPERSEDED = timedelta(hours=1)
# Between a manifest and its pointer, the sizes of the files and the state of the run are checked.
SETTLED = timedelta(minutes=1)
REMOTE_TIMEOUT = timedelta(seconds=30)
CONNECT_TIMEOUT = timedelta(seconds=5)
# Parts of a file on their way at once: four of 5 MB still arrive within the timeout at 6 Mbit/s.
UPLOADS = 4
# From this many cells on, one listing of their asset replaces one listing per cell; and how many are read at once.
LISTED = 20
READERS = 16
# Where the usual variables name an S3 server; only one that is written with http:// is spoken to without TLS.
ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")


class StoreError(RuntimeError):
    """The store could not be read or written."""


class StoreRefusedError(StoreError):
    """The server of the store refuses these credentials or has no such bucket: waiting does not help."""


class MissingCellError(LookupError):
    """Nothing has been materialized at this asset and partition."""


class DamagedCellError(RuntimeError):
    """What is stored is not what was written."""


class OtherFormatError(StoreError):
    """Written by a release that uses another format: intact, but not readable by this release."""


class LostCellError(DamagedCellError):
    """What was materialized is no longer in the store, or nothing points to it."""


@dataclass(frozen=True)
class Cell:
    """One asset at one partition.

    Attributes:
        asset: the asset key with slashes, e.g. `digits/adversarial_set`.
        partition: partition dimension -> key, empty for an unpartitioned asset.
    """

    asset: str
    partition: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def path(self) -> str:
        """The folder in the store: dimensions in the order of the alphabet, as in Dagster's partition keys."""
        return "/".join([self.asset, *(self.partition[dimension] for dimension in sorted(self.partition))])

    def __str__(self) -> str:
        return self.path

    def __hash__(self) -> int:
        return hash(self.path)


class FileRecord(BaseModel):
    """What the manifest knows of one file."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    size: int
    sha256: str


class Pointer(BaseModel):
    """What CURRENT holds: the version that is served, and the digest of its manifest."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    version: str = Field(pattern=f"^{VERSION}$")
    manifest_sha256: str


class Manifest(BaseModel):
    """What a version holds. `attributes` are facts that readers need and that the data version covers or explains."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    format: int
    kind: str
    asset: str
    partition: dict[str, str]
    data_version: str
    created: str
    run_id: str
    attributes: dict[str, Any]
    files: dict[str, FileRecord]


class _Format(BaseModel):
    """What every manifest says, of whatever format."""

    format: int


@dataclass(frozen=True)
class StoredCell:
    """A version that can be read: its manifest has been checked, and all its files are there in full size."""

    store: "CellStore"
    cell: Cell
    version: str
    manifest: Manifest

    @property
    def prefix(self) -> str:
        """The folder of this version in the store."""
        return f"{self.cell.path}/versions/{self.version}"

    def read(self, name: str) -> bytes:
        """The content of one file, verified against the manifest.

        Raises:
            DamagedCellError: when the file is missing or altered.
        """
        content = self.store.get(f"{self.prefix}/{name}")
        record = self.manifest.files.get(name)
        if content is None or record is None or len(content) != record.size or sha256(content) != record.sha256:
            raise DamagedCellError(damage(self.cell, f"{self.prefix}/{name}", "was altered or lost"))
        return content

    def verify(self) -> None:
        """Read every file and compare it with the manifest.

        Raises:
            DamagedCellError: naming the first file that differs.
        """
        for name in self.manifest.files:
            self.read(name)

    def copy_to(self, other: "CellStore") -> None:
        """Serve this very version in another store, each byte verified on its way.

        Raises:
            DamagedCellError: when a file is missing or altered; nothing is served there then.
        """
        manifest = self.manifest.model_dump_json(indent=1).encode()
        for name in self.manifest.files:
            other.put(f"{self.prefix}/{name}", self.read(name))
        other.put(f"{self.prefix}/{MANIFEST}", manifest)
        pointer = Pointer(version=self.version, manifest_sha256=sha256(manifest))
        other.put(f"{self.cell.path}/{CURRENT}", pointer.model_dump_json().encode())

    def check_sizes(self) -> None:
        """Compare the files and their sizes with the manifest, without reading any.

        Raises:
            DamagedCellError: naming the first file that differs.
        """
        sizes = self.store.sizes(self.prefix)
        for name, record in self.manifest.files.items():
            if sizes.get(name) != record.size:
                fault = f"has {sizes[name]:,} bytes of {record.size:,}" if name in sizes else "is missing"
                raise DamagedCellError(damage(self.cell, f"{self.prefix}/{name}", fault))


class CellWriter:
    """Collects the files of a new version, which nobody sees until :meth:`commit`."""

    def __init__(self, destination: "Destination", kind: str):
        self.store = destination.store
        self.cell = destination.cell
        self.kind = kind
        self.run_id = destination.run_id
        self.guard = destination.guard
        self.version = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}"
        self.files: dict[str, FileRecord] = {}
        self.committed: StoredCell | None = None
        self.keep = False

    def put(self, name: str, content: bytes) -> None:
        """Write one file of the version."""
        self.store.put(f"{self.cell.path}/versions/{self.version}/{name}", content)
        self.files[name] = FileRecord(size=len(content), sha256=sha256(content))

    def commit(self, data_version: str, attributes: Mapping[str, Any]) -> StoredCell:
        """Serve this version from now on. A served version that says the same is kept, to the byte.

        Args:
            data_version: hash of the content; when it changes, everything made from this cell is stale.
            attributes: JSON facts for readers. If only they differ, the data version stays the same.

        Returns:
            The version that is served now.
        """
        current = self.store.find(self.cell)
        manifest = Manifest(
            format=FORMAT,
            kind=self.kind,
            asset=self.cell.asset,
            partition=dict(self.cell.partition),
            data_version=data_version,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            run_id=self.run_id,
            attributes=dict(attributes),
            files=self.files,
        )
        content = manifest.model_dump_json(indent=1).encode()
        if current and says(current.manifest) == says(Manifest.model_validate_json(content)):
            with contextlib.suppress(DamagedCellError):
                current.verify()
                self.committed = current
                return current
        stored = StoredCell(self.store, self.cell, self.version, manifest)
        self.store.put(f"{stored.prefix}/{MANIFEST}", content)
        # Another writer may have mistaken this writer, if it was very slow, for a killed one and removed its files.
        stored.check_sizes()
        self.guard()
        # A put that was interrupted may have arrived: from here on this version may be the one that is served.
        self.keep = True
        pointer = Pointer(version=self.version, manifest_sha256=sha256(content))
        self.store.put(f"{self.cell.path}/{CURRENT}", pointer.model_dump_json().encode())
        self.committed = stored
        # What cannot be removed now is removed by the next write.
        with contextlib.suppress(StoreError):
            self.store.prune(self.cell, keep={self.version, *([current.version] if current else [])})
        return stored


@dataclass(frozen=True)
class Destination:
    """Where a value is written, and by whom.

    Attributes:
        store: the store.
        cell: which asset and partition.
        run_id: the run that writes, for the manifest.
        guard: called last before the new version is served; raising keeps the old one.
    """

    store: "CellStore"
    cell: Cell
    run_id: str = ""
    guard: Callable[[], None] = lambda: None

    @contextlib.contextmanager
    def writer(self, kind: str) -> Generator[CellWriter]:
        """A writer for a new version of the cell; what is not committed at the end is removed."""
        writer = CellWriter(self, kind)
        try:
            yield writer
        except StoreError:
            # A full disk wants its room back; a server that does not answer would only be waited for once more.
            writer.keep = writer.keep or self.store.remote
            raise
        finally:
            if not writer.keep:
                with contextlib.suppress(StoreError):
                    self.store.remove_version(self.cell, writer.version)


class CellStore:
    """All cells below one folder or `s3://` URL."""

    def __init__(self, url: str):
        self.url = url
        self._objects: ObjectStore | None = None

    @property
    def remote(self) -> bool:
        """Whether it is a server, which may be away for a while, and no folder."""
        return "://" in self.url

    @property
    def objects(self) -> ObjectStore:
        """The object store at the URL, opened at first use."""
        if self._objects is None:
            self._objects = self.open_prefix("")
        return self._objects

    def open_prefix(self, prefix: str) -> ObjectStore:
        """An object store rooted at a folder of this one."""
        if not self.remote:
            folder = Path(self.url, prefix)
            try:
                return LocalStore(prefix=folder, mkdir=True, automatic_cleanup=True)
            except Exception as error:
                raise StoreError(f"cannot open the folder {folder}: {error}; DIOPTRA_ASSETS_STORE sets it") from error
        if not self.url.startswith("s3://"):
            raise StoreError(f"cannot open {self.url}: DIOPTRA_ASSETS_STORE takes a folder or s3://bucket/prefix")
        endpoints = {name: os.environ[name] for name in ENDPOINTS if os.environ.get(name)}
        for name, endpoint in endpoints.items():
            if not endpoint.startswith(("http://", "https://")):
                raise StoreError(
                    f"cannot open {self.url}: {name} is {without_passwords(endpoint)!r}, it must begin with https:// or"
                    " http://"
                )
            if without_passwords(endpoint) != endpoint:
                raise StoreError(
                    f"cannot open {self.url}: {name} holds a user and a password, which S3 does not take; set"
                    " AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
                )
        plain = any(endpoint.startswith("http://") for endpoint in endpoints.values())
        return from_url(
            f"{self.url}/{prefix}".rstrip("/"),
            client_options={"timeout": REMOTE_TIMEOUT, "connect_timeout": CONNECT_TIMEOUT, "allow_http": plain},
            retry_config={"max_retries": 4, "retry_timeout": REMOTE_TIMEOUT},
        )

    def put(self, path: str, content: bytes) -> None:
        """Write one object, atomically."""
        objects = self.objects
        try:
            obstore.put(objects, path, content, max_concurrency=UPLOADS)
        except Exception as error:
            raise self._failure(f"write {path} ({len(content):,} bytes)", error) from error

    def get(self, path: str) -> bytes | None:
        """The content of one object, None where there is none."""
        objects = self.objects
        try:
            return bytes(obstore.get(objects, path).bytes())
        except FileNotFoundError as error:
            if "NoSuchBucket" in str(error):
                raise self._failure(f"read {path}", error) from error
            return None
        except Exception as error:
            raise self._failure(f"read {path}", error) from error

    def at(self, cell: Cell) -> Destination:
        """Where a cell is written, outside any run."""
        return Destination(self, cell)

    def open(self, cell: Cell) -> StoredCell:
        """The version that is served.

        Raises:
            MissingCellError: when there is none.
            LostCellError: when there are versions, and no pointer says which is served.
            DamagedCellError: when the manifest or a file is missing, truncated or altered.
        """
        stored = self.find(cell, check=True)
        if stored is None:
            if any(A_MANIFEST.fullmatch(name) for name in self.sizes(f"{cell.path}/versions")):
                raise LostCellError(_lost_pointer(cell.path))
            raise MissingCellError(missing_message(cell))
        return stored

    def find(self, cell: Cell, *, check: bool = False) -> StoredCell | None:
        """The version that is served, or None; with `check`, damage is an error and not None."""
        try:
            served = self._served(cell.path)
            if served is None:
                return None
            stored = StoredCell(self, cell, *served)
            stored.check_sizes()
            return stored
        except DamagedCellError:
            if check:
                raise
            return None

    def open_folder(self, folder: str) -> StoredCell:
        """What is served in the folder of a cell, as :meth:`open` does by the cell.

        Raises:
            LostCellError, DamagedCellError: as :meth:`open`.
        """
        served = self._served(folder)
        if served is None:
            raise LostCellError(_lost_pointer(folder))
        version, manifest = served
        stored = StoredCell(self, Cell(manifest.asset, manifest.partition), version, manifest)
        stored.check_sizes()
        return stored

    def version_of(self, folder: str) -> str | None:
        """The version that is served in the folder of a cell; None where nothing is, or the pointer is damaged."""
        with contextlib.suppress(ValidationError):
            return Pointer.model_validate_json(self.get(f"{folder}/{CURRENT}") or b"").version
        return None

    def found(self, cells: Collection[Cell]) -> dict[Cell, StoredCell]:
        """The cells of one asset that can be read, in the given order; the same as asking :meth:`find` for each.

        Many cells are looked up in one listing, and their pointers and manifests are read several at a time.
        """
        if len(cells) < LISTED:
            return {cell: stored for cell in cells if (stored := self.find(cell))}
        (asset,) = {cell.asset for cell in cells}
        files: dict[str, dict[str, int]] = defaultdict(dict)
        served: set[str] = set()
        for path, size in self._list(asset).items():
            if file := IN_A_VERSION.match(path):
                files[file["folder"]][file["name"]] = size
            elif path.endswith(f"/{CURRENT}"):
                served.add(path.removesuffix(f"/{CURRENT}"))

        def look(cell: Cell) -> StoredCell | None:
            if cell.path not in served:
                return None
            with contextlib.suppress(DamagedCellError):
                if current := self._served(cell.path):
                    version, manifest = current
                    sizes, records = files[cell.path], manifest.files.items()
                    if all(sizes.get(f"{version}/{name}") == record.size for name, record in records):
                        return StoredCell(self, cell, version, manifest)
            # Damaged, or written since it was listed.
            return self.find(cell)

        with ThreadPoolExecutor(READERS) as pool:
            return {cell: stored for cell, stored in zip(cells, pool.map(look, cells), strict=True) if stored}

    def cells(self, prefix: str) -> list[Cell]:
        """Every cell that is served below an asset key or an experiment, in the order of their paths.

        Raises:
            LostCellError: when one has versions, and no pointer says which is served.
            DamagedCellError: when the pointer or the manifest of one is missing or altered.
        """
        pointers: set[str] = set()
        written: dict[str, datetime] = {}
        for path, moment in self._written(prefix).items():
            if path.endswith(f"/{CURRENT}"):
                pointers.add(path.removesuffix(f"/{CURRENT}"))
            elif (file := IN_A_VERSION.match(path)) and A_MANIFEST.fullmatch(file["name"]):
                written[file["folder"]] = max(moment, written.get(file["folder"], moment))
        # A manifest that has just been written is about to get its pointer.
        settled = datetime.now(UTC) - SETTLED
        lost = [folder for folder, moment in written.items() if folder not in pointers and moment < settled]
        if lost:
            raise LostCellError("\n".join(map(_lost_pointer, sorted(lost))))
        served = [self._served(folder) for folder in sorted(pointers)]
        return [Cell(manifest.asset, manifest.partition) for _, manifest in filter(None, served)]

    def sizes(self, prefix: str) -> dict[str, int]:
        """File name -> bytes of everything below a folder."""
        return {path.removeprefix(f"{prefix}/"): size for path, size in self._list(prefix).items()}

    def sizes_below(self, prefix: str) -> dict[str, int]:
        """Path -> bytes of every file below an asset key or an experiment; of the whole store where it is empty."""
        return self._list(prefix)

    def forget(self, cell: Cell) -> None:
        """Stop serving a cell; its versions stay until they are removed."""
        try:
            obstore.delete(self.objects, f"{cell.path}/{CURRENT}")
        except FileNotFoundError:
            pass
        except Exception as error:
            raise self._failure(f"remove {cell.path}/{CURRENT}", error) from error

    def _served(self, folder: str) -> tuple[str, Manifest] | None:
        """Version and manifest that CURRENT in the folder of a cell leads to, None where there is no CURRENT."""
        path = f"{folder}/{CURRENT}"
        content = self.get(path)
        if content is None:
            return None
        try:
            pointer = Pointer.model_validate_json(content)
        except ValidationError as error:
            raise DamagedCellError(damage(folder, path, "is not a pointer to a version")) from error
        named_by, path = path, f"{folder}/versions/{pointer.version}/{MANIFEST}"
        content = self.get(path)
        if content is None:
            raise DamagedCellError(damage(folder, path, f"is lost, or {named_by}, which leads to it, was altered"))
        if sha256(content) != pointer.manifest_sha256:
            what = f"does not have the digest that {named_by} holds for it: one of the two was altered"
            raise DamagedCellError(damage(folder, path, what))
        try:
            written = _Format.model_validate_json(content).format
            if written != FORMAT:
                raise OtherFormatError(
                    f"{folder} was stored in format {written} by another release of dioptra-assets, this one reads and"
                    f" writes format {FORMAT}: read it with that release, or give this one a store of its own"
                    " (DIOPTRA_ASSETS_STORE)"
                )
            manifest = Manifest.model_validate_json(content)
        except ValidationError as error:
            raise DamagedCellError(damage(folder, path, "is no manifest")) from error
        if (owner := Cell(manifest.asset, manifest.partition).path) != folder:
            raise DamagedCellError(damage(folder, path, f"belongs to {owner}"))
        return pointer.version, manifest

    def remove_version(self, cell: Cell, version: str) -> None:
        """Delete the files of one version."""
        folder = f"{cell.path}/versions/{version}"
        try:
            if "://" not in self.url:
                # With what a killed writer left half written, which a listing does not show.
                shutil.rmtree(Path(self.url, folder))
            elif paths := list(self._list(folder)):
                obstore.delete(self.objects, paths)
        except FileNotFoundError:
            pass  # another process removed it first
        except Exception as error:
            raise self._failure(f"remove {folder}", error) from error

    def prune(self, cell: Cell, keep: set[str]) -> None:
        """Delete versions that were superseded, or given up by a killed writer, long enough ago."""
        limit = f"{datetime.now(UTC) - KEEP_SUPERSEDED:%Y%m%dT%H%M%S}"
        for version in self._folders(f"{cell.path}/versions"):
            if version not in keep and version < limit:
                self.remove_version(cell, version)

    def _failure(self, what: str, error: Exception) -> StoreError:
        # obstore adds pages of its own structures to the sentence that matters.
        reason = without_passwords(str(error).partition("\n\nDebug source")[0])
        if isinstance(error, PermissionDeniedError | UnauthenticatedError) or "NoSuchBucket" in reason:
            return StoreRefusedError(f"cannot {what} in {self.url}, the server refuses: {reason}")
        if "ConnectionRefused" in str(error):
            reason = f"nothing answers there ({reason})"
        return StoreError(f"cannot {what} in {self.url}: {reason}")

    def check_answer(self) -> None:
        """Ask the store one question, to learn before any work is done that a server is down or refuses.

        Raises:
            StoreError: see :class:`StoreRefusedError`.
        """
        if self.remote:
            self.get("is-anybody-there")

    def _list(self, prefix: str) -> dict[str, int]:
        """Path -> bytes of every object below a folder."""
        return {entry["path"]: entry["size"] for entry in self._entries(prefix)}

    def _written(self, prefix: str) -> dict[str, datetime]:
        """Path -> when it was written, of every object below a folder."""
        return {entry["path"]: entry["last_modified"] for entry in self._entries(prefix)}

    def _entries(self, prefix: str) -> list["ObjectMeta"]:
        try:
            pages: Iterator[Sequence[ObjectMeta]] = _OBSTORE.list(self.objects, prefix)
            return [entry for page in pages for entry in page]
        except Exception as error:
            raise self._failure(f"list {prefix}", error) from error

    def _folders(self, prefix: str) -> list[str]:
        """Names of the folders in a folder."""
        try:
            paths: Sequence[str] = _OBSTORE.list_with_delimiter(self.objects, prefix)["common_prefixes"]
            return [path.rsplit("/", 1)[-1] for path in paths]
        except Exception as error:
            raise self._failure(f"list {prefix}", error) from error


class StoreResource(dg.ConfigurableResource[CellStore]):
    """Where the values of all assets are kept.

    Attributes:
        url: a folder, or `s3://bucket/prefix` (credentials and endpoint from the usual `AWS_` variables).
    """

    url: str

    def cells(self) -> CellStore:
        """The store."""
        return CellStore(self.url)


def missing_message(cell: Cell) -> str:
    """The message for a missing cell, with the command that makes it."""
    key = "|".join(cell.partition[dimension] for dimension in sorted(cell.partition))
    return f"{cell} has not been materialized: `{command_for(cell.asset, key)}` makes it"


def command_for(asset: str, key: str) -> str:
    """The command that makes a cell and its inputs; the same in every shell."""
    experiment, _, name = asset.partition("/")
    return f"dioptra-assets materialize {experiment} --asset '{name}'" + (f" --cell '{key}'" if key else "")


def says(manifest: Manifest) -> tuple[str, str, dict[str, Any]]:
    """What two versions must share for the second to be superfluous."""
    return manifest.kind, manifest.data_version, manifest.attributes


def sha256(content: bytes) -> str:
    """Hexadecimal SHA-256."""
    return hashlib.sha256(content).hexdigest()


def _lost_pointer(folder: str) -> str:
    return (
        f"{folder} is lost: it has versions, but no pointer {folder}/{CURRENT} says which is served (it was"
        " deleted, or the process that wrote the first was killed); materialize the cell again, or restore the file"
    )


def damage(cell: Cell | str, path: str, what: str) -> str:
    """The sentence about a file that is not what was written: whose it is, what is wrong, what to do."""
    experiment = str(cell).partition("/")[0]
    return (
        f"{cell} is damaged: {path} {what}; restore the file, or have the cell computed again: `dioptra-assets verify"
        f" {experiment} --withdraw`, then `dioptra-assets materialize {experiment}`"
    )
