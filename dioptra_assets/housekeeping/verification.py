"""Verify every byte of a store."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from pydantic import ValidationError

from resources.store import (
    A_MANIFEST,
    CURRENT,
    IN_A_VERSION,
    Cell,
    CellStore,
    DamagedCellError,
    Manifest,
    StoreError,
    sha256,
)


@dataclass
class Verified:
    """Result of :func:`verify_store`.

    Attributes:
        cells: number of intact cells.
        versions: number of versions checked, including superseded ones.
        size: bytes read.
        faults: one sentence per cell or version that differs from what was written.
        damaged: folders of the damaged cells.
    """

    cells: int = 0
    versions: int = 0
    size: int = 0
    faults: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)


def verify_store(store: CellStore, prefix: str = "") -> Verified:
    """Compare every byte below a prefix with the manifests, for served and superseded versions."""
    found = Verified()
    pointers, versions = listed(store, prefix)
    served = set()
    for folder in sorted(pointers | versions.keys()):
        if folder not in pointers and not any(versions[folder].values()):
            continue  # left by a killed writer, or being written: it was never served
        try:
            stored = store.open_folder(folder)
            stored.verify()
            served.add((folder, stored.version))
            found.cells += 1
            found.size += sum(record.size for record in stored.manifest.files.values())
        except DamagedCellError as error:
            found.faults.append(str(error))
            found.damaged.append(folder)
        except StoreError as error:
            found.faults.append(str(error))
    for folder, names in versions.items():
        for version, whole in names.items():
            found.versions += whole
            if whole and (folder, version) not in served and folder in {one for one, _ in served}:
                found.faults += _superseded_faults(store, folder, version, found)
    return found


def withdraw(store: CellStore, found: Verified) -> None:
    """Stop serving damaged cells, so that `materialize` computes them again. Their files stay until it has."""
    for folder in found.damaged:
        store.forget(Cell(folder))


def listed(store: CellStore, prefix: str) -> tuple[set[str], dict[str, dict[str, bool]]]:
    """The folders with a pointer, and for each folder its versions with whether they have a manifest."""
    pointers: set[str] = set()
    versions: dict[str, dict[str, bool]] = {}
    for path in store.sizes_below(prefix):
        if found := IN_A_VERSION.match(path):
            version = found["name"].partition("/")[0]
            whole = bool(A_MANIFEST.fullmatch(found["name"]))
            of_cell = versions.setdefault(found["folder"], {})
            of_cell[version] = of_cell.get(version, False) or whole
        elif path.endswith(f"/{CURRENT}"):
            pointers.add(path.removesuffix(f"/{CURRENT}"))
    return pointers, versions


def _superseded_faults(store: CellStore, folder: str, version: str, found: Verified) -> Iterator[str]:
    where = f"{folder}/versions/{version}"
    try:
        manifest = Manifest.model_validate_json(store.get(f"{where}/manifest.json") or b"")
    except ValidationError:
        yield f"{where}/manifest.json, of a superseded version, was altered or lost"
        return
    for name, record in manifest.files.items():
        content = store.get(f"{where}/{name}")
        if content is None or (len(content), sha256(content)) != (record.size, record.sha256):
            yield f"{where}/{name}, of a superseded version, was altered or lost"
        found.size += record.size
