"""Cells: the stored value of one asset at one partition, written whole or not at all.

    ASSET/PARTITION/versions/VERSION/...      the files of a version, and last its manifest.json
    ASSET/PARTITION/CURRENT                   which version is served; written after everything else, by one atomic put

A version is never changed once CURRENT names it. A reader follows CURRENT, checks the manifest against the digest that
CURRENT holds, and every file against the manifest: a lost, truncated or altered file is an error that names it, and a
write that was cut off anywhere leaves the old version served. The same code runs on a folder and on S3.
"""

import contextlib
import hashlib
import json
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import obstore
from obstore.exceptions import NotFoundError
from obstore.store import LocalStore, ObjectStore, from_url
from pydantic import BaseModel, ConfigDict, ValidationError

FORMAT = 1
CURRENT = "CURRENT"
MANIFEST = "manifest.json"
# A superseded version stays this long for readers that opened it before it was superseded.
KEEP_SUPERSEDED = timedelta(hours=1)
REMOTE_TIMEOUT = timedelta(seconds=30)


class StoreError(RuntimeError):
    """The store could not be read or written."""


class MissingCellError(LookupError):
    """Nothing has been materialized at this asset and partition."""


class DamagedCellError(RuntimeError):
    """What is stored is not what was written."""


@dataclass(frozen=True)
class Cell:
    """One asset at one partition.

    Attributes:
        asset: the asset key with slashes, e.g. `digits/adversarial_set`.
        partition: partition dimension -> key, empty for an unpartitioned asset.
    """

    asset: str
    partition: Mapping[str, str] = field(default_factory=dict)

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


@dataclass(frozen=True)
class StoredCell:
    """A version that can be read: its manifest has been checked, and all its files are there at their full size."""

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
        record = self.manifest.files[name]
        if content is None or len(content) != record.size or sha256(content) != record.sha256:
            raise DamagedCellError(_damage(self.cell, f"{self.prefix}/{name}", "was altered or lost"))
        return content

    def verify(self) -> None:
        """Read every file and compare it with the manifest.

        Raises:
            DamagedCellError: naming the first file that differs.
        """
        for name in self.manifest.files:
            self.read(name)


class CellWriter:
    """Collects the files of a new version, which nobody sees until :meth:`commit`."""

    def __init__(self, store: "CellStore", cell: Cell, kind: str, run_id: str):
        self.store = store
        self.cell = cell
        self.kind = kind
        self.run_id = run_id
        self.version = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}"
        self.files: dict[str, FileRecord] = {}
        self.committed: StoredCell | None = None

    def put(self, name: str, content: bytes) -> None:
        """Write one file of the version."""
        self.store.put(f"{self.cell.path}/versions/{self.version}/{name}", content)
        self.files[name] = FileRecord(size=len(content), sha256=sha256(content))

    def commit(
        self, data_version: str, attributes: Mapping[str, Any], guard: Callable[[], None] = lambda: None
    ) -> StoredCell:
        """Serve this version from now on; keep the served one, to the byte, where it already has this content.

        Args:
            data_version: hash of the content. It alone decides whether anything changed.
            attributes: JSON facts for readers.
            guard: called last before the switch; raising keeps the old version served.

        Returns:
            The version that is served now.
        """
        current = self.store.find(self.cell)
        if current and current.manifest.data_version == data_version and current.manifest.kind == self.kind:
            with contextlib.suppress(DamagedCellError):
                current.verify()
                self.discard()
                self.committed = current
                return current
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
        prefix = f"{self.cell.path}/versions/{self.version}"
        self.store.put(f"{prefix}/{MANIFEST}", content)
        guard()
        pointer = json.dumps({"version": self.version, "manifest_sha256": sha256(content)}).encode()
        self.store.put(f"{self.cell.path}/{CURRENT}", pointer)
        self.committed = StoredCell(self.store, self.cell, self.version, manifest)
        self.store.prune(self.cell, keep={self.version, *([current.version] if current else [])})
        return self.committed

    def discard(self) -> None:
        """Remove what was written."""
        self.store.remove_version(self.cell, self.version)


class CellStore:
    """All cells below one folder or `s3://` URL."""

    def __init__(self, url: str):
        self.url = url
        self._objects: ObjectStore | None = None

    @property
    def objects(self) -> ObjectStore:
        """The object store at the URL, opened at first use."""
        if self._objects is None:
            self._objects = self.open_prefix("")
        return self._objects

    def open_prefix(self, prefix: str) -> ObjectStore:
        """An object store rooted at a folder of this one."""
        if "://" not in self.url:
            folder = Path(self.url, prefix)
            try:
                return LocalStore(prefix=folder, mkdir=True, automatic_cleanup=True)
            except Exception as error:
                raise StoreError(f"cannot open the folder {folder}: {error}; DIOPTRA_ASSETS_STORE sets it") from error
        return from_url(
            f"{self.url}/{prefix}".rstrip("/"),
            client_options={"timeout": REMOTE_TIMEOUT, "connect_timeout": timedelta(seconds=5), "allow_http": True},
            retry_config={"max_retries": 4, "retry_timeout": REMOTE_TIMEOUT},
        )

    def put(self, path: str, content: bytes) -> None:
        """Write one object, atomically."""
        try:
            obstore.put(self.objects, path, content)
        except Exception as error:
            raise StoreError(f"cannot write {path} ({len(content):,} bytes) in {self.url}: {error}") from error

    def get(self, path: str) -> bytes | None:
        """The content of one object, None where there is none."""
        try:
            return bytes(obstore.get(self.objects, path).bytes())
        except (FileNotFoundError, NotFoundError):
            return None
        except Exception as error:
            raise StoreError(f"cannot read {path} in {self.url}: {error}") from error

    @contextlib.contextmanager
    def write(self, cell: Cell, kind: str, run_id: str = "") -> Iterator[CellWriter]:
        """A writer for a new version of `cell`; what is not committed at the end is removed."""
        writer = CellWriter(self, cell, kind, run_id)
        try:
            yield writer
        finally:
            if writer.committed is None:
                with contextlib.suppress(StoreError):
                    writer.discard()

    def open(self, cell: Cell) -> StoredCell:
        """The version that is served.

        Raises:
            MissingCellError: when there is none.
            DamagedCellError: when the manifest or a file is missing, truncated or altered.
        """
        stored = self.find(cell, check=True)
        if stored is None:
            raise MissingCellError(missing_message(cell))
        return stored

    def find(self, cell: Cell, *, check: bool = False) -> StoredCell | None:
        """The version that is served, or None; with `check`, damage is an error and not None."""
        pointer = self.get(f"{cell.path}/{CURRENT}")
        if pointer is None:
            return None
        try:
            return self._follow(cell, pointer)
        except DamagedCellError:
            if check:
                raise
            return None

    def _follow(self, cell: Cell, pointer: bytes) -> StoredCell:
        path = f"{cell.path}/{CURRENT}"
        try:
            version, digest = (json.loads(pointer)[name] for name in ("version", "manifest_sha256"))
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedCellError(_damage(cell, path, "is not a pointer to a version")) from error
        path = f"{cell.path}/versions/{version}/{MANIFEST}"
        content = self.get(path)
        if content is None or sha256(content) != digest:
            raise DamagedCellError(_damage(cell, path, "was altered or lost"))
        try:
            manifest = Manifest.model_validate_json(content)
        except ValidationError as error:
            raise DamagedCellError(_damage(cell, path, "has another format")) from error
        stored = StoredCell(self, cell, version, manifest)
        sizes = {entry["path"].removeprefix(f"{stored.prefix}/"): entry["size"] for entry in self._list(stored.prefix)}
        for name, record in manifest.files.items():
            if sizes.get(name) != record.size:
                found = f"has {sizes[name]:,} bytes of {record.size:,}" if name in sizes else "is missing"
                raise DamagedCellError(_damage(cell, f"{stored.prefix}/{name}", found))
        return stored

    def cells(self, prefix: str) -> list[Cell]:
        """Every cell that is served below an asset key or an experiment, in the order of their paths."""
        found: list[Cell] = []
        pending = [prefix]
        while pending:
            folder = pending.pop()
            level = self._level(folder)
            if f"{folder}/{CURRENT}" in {entry["path"] for entry in level["objects"]}:
                pointer = json.loads(self.get(f"{folder}/{CURRENT}") or b"{}")
                manifest = self.get(f"{folder}/versions/{pointer.get('version')}/{MANIFEST}")
                if manifest is None:
                    raise DamagedCellError(f"{folder} has no manifest; materialize it again")
                record = Manifest.model_validate_json(manifest)
                found.append(Cell(record.asset, record.partition))
            else:
                pending.extend(child for child in level["common_prefixes"] if not child.endswith("/versions"))
        return sorted(found, key=lambda cell: cell.path)

    def remove_version(self, cell: Cell, version: str) -> None:
        """Delete the files of one version."""
        paths = [entry["path"] for entry in self._list(f"{cell.path}/versions/{version}")]
        try:
            if paths:
                obstore.delete(self.objects, paths)
        except FileNotFoundError:
            pass  # another process removed it first
        except Exception as error:
            raise StoreError(f"cannot remove {cell.path}/versions/{version} in {self.url}: {error}") from error

    def prune(self, cell: Cell, keep: set[str]) -> None:
        """Delete versions that were superseded, or given up by a killed writer, long enough ago."""
        limit = f"{datetime.now(UTC) - KEEP_SUPERSEDED:%Y%m%dT%H%M%S}"
        for folder in self._level(f"{cell.path}/versions")["common_prefixes"]:
            version = folder.rsplit("/", 1)[-1]
            if version not in keep and version < limit:
                self.remove_version(cell, version)

    def _list(self, prefix: str) -> list[Any]:
        try:
            return [entry for page in obstore.list(self.objects, prefix) for entry in page]
        except Exception as error:
            raise StoreError(f"cannot list {prefix} in {self.url}: {error}") from error

    def _level(self, prefix: str) -> Any:
        try:
            return obstore.list_with_delimiter(self.objects, prefix)
        except Exception as error:
            raise StoreError(f"cannot list {prefix} in {self.url}: {error}") from error


def missing_message(cell: Cell) -> str:
    """Names a cell that is missing and the command that makes it."""
    key = "|".join(cell.partition[dimension] for dimension in sorted(cell.partition))
    command = f"dg launch --assets '{cell.asset}'" + (f" --partition '{key}'" if key else "")
    return f"{cell} has not been materialized: `{command}` makes it"


def sha256(content: bytes) -> str:
    """Hexadecimal SHA-256."""
    return hashlib.sha256(content).hexdigest()


def _damage(cell: Cell, path: str, what: str) -> str:
    return f"{cell} is damaged: {path} {what}; materialize the cell again, or restore the file"
