"""Looking at every byte of a store."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    pass


@dataclass
class Verified:
    """What a look at every byte of a store has found.

    Attributes:
        cells: how many are served, whole.
        versions: how many versions were looked at, superseded ones too.
        size: bytes that were read.
        faults: a sentence for each cell or version that is not what was written.
        damaged: folders of the cells that are served and are not what was written.
    """

    cells: int = 0
    versions: int = 0
    size: int = 0
    faults: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)


def verify_store(store: CellStore, prefix: str = "") -> Verified:
    """Compare every byte below a prefix with the manifests, of what is served and of what was superseded."""
    found = Verified()
    pointers, versions = listed(store, prefix)
    served = set()
    for folder in sorted(pointers | versions.keys()):
        if folder not in pointers and not any(versions[folder].values()):
            continue  # of a writer that was killed, or is at work: nobody was ever led to it
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
    """Serve what is damaged no more: `materialize` computes it again. Its files stay until a later version is there."""
    for folder in found.damaged:
        store.forget(Cell(folder))


def listed(store: CellStore, prefix: str) -> tuple[set[str], dict[str, dict[str, bool]]]:
    """The folders with a pointer; and folder -> version -> whether there is a manifest of it."""
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
