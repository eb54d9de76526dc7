"""The image sets of an experiment as a Croissant 1.0 record: every stored file with its SHA-256, every column.

Croissant (https://docs.mlcommons.org/croissant/docs/croissant-spec.html) is JSON-LD. It is made with `mlcroissant`,
which refuses what does not follow the specification. Of sets that have the same files and columns it makes one, and
the others are that one under other names: it takes 20 ms a set, and checks all against all.
"""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resources.image_store import INDEX
from resources.store import Cell, CellStore, StoredCell

if TYPE_CHECKING:
    import mlcroissant as mlc
    import pyarrow as pa

PARQUET = "application/x-parquet"
# Zarr has no registered media type; its metadata are JSON, its shards are bytes.
FORMATS = {".parquet": PARQUET, ".json": "application/json"}
BYTES = "application/octet-stream"
CLASSES = "classes"
COLUMNS = {
    "image_id": "name of the image, unique in the set; the same in every set that is made from it",
    "label": "its class, as the record set of the classes numbers them",
}
NOTE = (
    "Pixels are float32 in [0, 1], zarr v3 arrays [image, row, column, channel]; rows of an index are in the order of"
    " the pixels. A contentUrl is the path of a cell and of a file of it; the record that is exported beside a report"
    " has the whole path into the store instead."
)


def croissant(experiment: str, description: str, sets: Sequence[StoredCell]) -> bytes:
    """The record of an experiment's image sets; the same content gives the same bytes.

    Args:
        experiment: its name.
        description: of the experiment.
        sets: every image set, one at least, of the same classes.

    Raises:
        mlcroissant.ValidationError: when what is made is no Croissant record, which would be a fault of this module.
    """
    shapes = [_shape(stored) for stored in sets]
    examples: dict[tuple[Any, ...], StoredCell] = {}
    for shape, stored in zip(shapes, sets, strict=True):
        examples.setdefault(shape, stored)
    record = _record(experiment, description, list(examples.values()))
    files, record_sets = {}, {}
    for shape, example in examples.items():
        path = example.cell.path
        files[shape] = [one for one in record["distribution"] if one["@id"].startswith(f"{path}/")]
        (record_sets[shape],) = (one for one in record["recordSet"] if one["@id"] == path)
    record["distribution"], record["recordSet"] = [], record["recordSet"][:1]
    for shape, stored in zip(shapes, sets, strict=True):
        old, new = examples[shape].cell.path, stored.cell.path
        for name, file in zip(sorted(stored.manifest.files), files[shape], strict=True):
            held = stored.manifest.files[name]
            told = {"contentSize": f"{held.size} B", "sha256": held.sha256}
            record["distribution"].append(_renamed(file, old, new) | told)
        told = {"description": _description(stored.manifest.attributes, stored.manifest.data_version)}
        record["recordSet"].append(_renamed(record_sets[shape], old, new) | told)
    return (json.dumps(record, sort_keys=True, indent=1, ensure_ascii=False) + "\n").encode()


def _shape(stored: StoredCell) -> tuple[Any, ...]:
    """What two sets have in common whose descriptions differ in names, sizes and hashes alone."""
    import pyarrow.parquet as pq

    columns = pq.read_schema(io.BytesIO(stored.read(INDEX)))
    return tuple(sorted(stored.manifest.files)), tuple((column.name, str(column.type)) for column in columns)


def _renamed(value: Any, old: str, new: str) -> Any:
    """A description with every name that begins with the path of one set beginning with that of another."""
    if isinstance(value, dict):
        return {name: _renamed(one, old, new) for name, one in value.items()}
    if isinstance(value, list):
        return [_renamed(one, old, new) for one in value]
    if isinstance(value, str) and (value == old or value.startswith(f"{old}/")):
        return new + value.removeprefix(old)
    return value


def _record(experiment: str, description: str, sets: Sequence[StoredCell]) -> dict[str, Any]:
    """The record of some sets, made and checked by `mlcroissant`."""
    import mlcroissant as mlc

    classes = mlc.RecordSet(
        id=CLASSES,
        name=CLASSES,
        description="The classes that labels point to.",
        key=[f"{CLASSES}/label"],
        fields=[
            mlc.Field(id=f"{CLASSES}/{name}", name=name, description=what, data_types=[kind])
            for name, what, kind in (
                ("label", "position", mlc.DataType.INTEGER),
                ("name", "name of the class", mlc.DataType.TEXT),
            )
        ],
        data=[
            {f"{CLASSES}/label": label, f"{CLASSES}/name": name}
            for label, name in enumerate(sets[0].manifest.attributes["class_names"])
        ],
    )
    record = mlc.Metadata(
        name=experiment,
        description=" ".join(filter(None, (description, NOTE))),
        distribution=[file for stored in sets for file in _files(stored)],
        record_sets=[classes, *(_record_set(stored) for stored in sets)],
    )
    return record.to_json()


def located(content: bytes, store: CellStore) -> bytes:
    """A record whose files are named by their whole path in a store, so that readers find them.

    Args:
        content: what :func:`croissant` made.
        store: where its sets are. What it serves now is named: `mlcroissant` refuses a file of another content.
    """
    record = json.loads(content)
    base = store.url if "://" in store.url else Path(store.url).resolve().as_posix()
    sets = {one["@id"] for one in record["recordSet"]} - {CLASSES}
    # A path leads to its cell, whatever its dimensions are called; a set that is gone keeps its name.
    served = {path: stored.prefix for path in sets if (stored := store.find(Cell(path)))}
    for file in record["distribution"]:
        path = next((path for path in _above(file["contentUrl"]) if path in served), None)
        if path is not None:
            file["contentUrl"] = f"{base}/{served[path]}{file['contentUrl'].removeprefix(path)}"
    return (json.dumps(record, sort_keys=True, indent=1, ensure_ascii=False) + "\n").encode()


def _above(path: str) -> Iterator[str]:
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path


def _files(stored: StoredCell) -> list["mlc.FileObject"]:
    import mlcroissant as mlc

    return [
        mlc.FileObject(
            id=f"{stored.cell.path}/{name}",
            name=f"{stored.cell.path}/{name}",
            content_url=f"{stored.cell.path}/{name}",
            content_size=f"{record.size} B",
            encoding_formats=[FORMATS.get(Path(name).suffix, BYTES)],
            sha256=record.sha256,
        )
        for name, record in sorted(stored.manifest.files.items())
    ]


def _record_set(stored: StoredCell) -> "mlc.RecordSet":
    import mlcroissant as mlc
    import pyarrow.parquet as pq

    path, facts = stored.cell.path, stored.manifest.attributes
    return mlc.RecordSet(
        id=path,
        name=path,
        description=_description(facts, stored.manifest.data_version),
        key=[f"{path}/image_id"],
        fields=[
            mlc.Field(
                id=f"{path}/{column.name}",
                name=column.name,
                description=COLUMNS.get(column.name, column.name.replace("_", " ")),
                data_types=[_data_type(column.type)],
                source=mlc.Source(file_object=f"{path}/{INDEX}", extract=mlc.Extract(column=column.name)),
            )
            for column in pq.read_schema(io.BytesIO(stored.read(INDEX)))
        ],
    )


def _description(facts: Mapping[str, Any], data_version: str) -> str:
    """What a set is made of and by: the facts that its manifest has."""
    size = " x ".join(map(str, facts["image_shape"]))
    made = {name: facts[name] for name in ("attack", "defence", "seed", "model_version") if name in facts}
    told = [f"{facts['n']} images of {size}", f"data version {data_version}"]
    told += [f"{name.replace('_', ' ')} {json.dumps(value, sort_keys=True)}" for name, value in made.items()]
    return "; ".join(told)


def _data_type(kind: "pa.DataType") -> Any:
    import mlcroissant as mlc
    import pyarrow as pa

    if pa.types.is_boolean(kind):
        return mlc.DataType.BOOL
    if pa.types.is_integer(kind):
        return mlc.DataType.INTEGER
    if pa.types.is_floating(kind):
        return mlc.DataType.FLOAT
    return mlc.DataType.TEXT
