"""What a Keras model file may hold, judged from its bytes alone: nothing of it is imported, built or run."""

import io
import json
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dioptra_assets.robustness.model_files.config import RESAVE, UnsafeModelError, check_config

ARCHIVE_MEMBERS = ("config.json", "metadata.json", "model.weights.h5")
MAX_JSON_BYTES = 16 * 2**20
MAX_ATTRIBUTE_BYTES = 2**30


@dataclass(frozen=True)
class ModelFile:
    """What was found in a model file that passed the checks.

    Attributes:
        config: the architecture, or None for a file of weights alone.
        arrays: path in the HDF5 file -> shape, of every array stored as a weight of the model.
    """

    config: dict[str, Any] | None
    arrays: Mapping[str, tuple[int, ...]]


def check_model_file(path: str | Path) -> None:
    """Refuse a Keras file that could run code, reach outside itself or take absurd memory when it is loaded.

    Accepts `.keras` archives, full HDF5 models (`.h5`, `.hdf5`) and HDF5 files of weights alone, without importing
    Keras. Sizes that only building the model can tell are checked by `model_files.load_model`.

    Raises:
        UnsafeModelError: when anything in the file is not known to be harmless.
        FileNotFoundError: when there is no file at `path`.
    """
    inspect_model_file(path)


def inspect_model_file(path: str | Path) -> ModelFile:
    """`check_model_file`, and what it found."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such model file. Check the path")
    if not path.is_file():
        raise UnsafeModelError(f"{path}: a folder or a device is not a model file. {RESAVE}")
    if path.name.endswith(".keras"):
        return _inspect_archive(path)
    if path.name.endswith((".h5", ".hdf5")):
        with path.open("rb") as file:
            return _inspect_hdf5(path, file, path.stat().st_size)
    raise UnsafeModelError(f"{path}: the name ends neither in .keras nor in .h5 or .hdf5. {RESAVE}")


def _inspect_archive(path: Path) -> ModelFile:
    try:
        with zipfile.ZipFile(path) as archive:
            _check_members(path, archive.infolist())
            config = _json_object(path, "config.json", archive.read("config.json"))
            # Reading whole also verifies the checksum; uncompressed members are never larger than the file.
            weights = archive.read("model.weights.h5")
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError) as error:
        raise UnsafeModelError(f"{path}: not a sound .keras archive ({error}). {RESAVE}") from error
    found = _inspect_hdf5(path, io.BytesIO(weights), len(weights))
    if found.config is not None:
        raise UnsafeModelError(f"{path}: model.weights.h5 holds a second architecture (model_config). {RESAVE}")
    check_config(path, config, _numbers(found.arrays), legacy=False)
    return ModelFile(config, found.arrays)


def _check_members(path: Path, members: list[zipfile.ZipInfo]) -> None:
    names = sorted(member.filename for member in members)
    for name in names:
        if name not in ARCHIVE_MEMBERS:
            raise UnsafeModelError(
                f"{path}: the archive holds {name!r}; only {', '.join(ARCHIVE_MEMBERS)} are allowed, so models whose "
                f"layers carry assets cannot be used. Remove those layers, then: {RESAVE}"
            )
    if names != sorted(ARCHIVE_MEMBERS):
        raise UnsafeModelError(f"{path}: the archive must hold {ARCHIVE_MEMBERS} once each, not {names}. {RESAVE}")
    for member in members:
        file_type = member.external_attr >> 28
        if file_type not in (0, 0o10):
            raise UnsafeModelError(f"{path}: {member.filename} is a link or a device, not a regular file. {RESAVE}")
        # Keras never compresses members; without compression there is no bomb.
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            raise UnsafeModelError(
                f"{path}: {member.filename} is compressed ({member.compress_size:,} bytes that declare "
                f"{member.file_size:,}). {RESAVE}"
            )
        if member.filename.endswith(".json") and member.file_size > MAX_JSON_BYTES:
            raise UnsafeModelError(
                f"{path}: {member.filename} has {member.file_size:,} bytes, more than {MAX_JSON_BYTES:,}. {RESAVE}"
            )


def _json_object(path: Path, name: str, text: bytes | str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UnsafeModelError(f"{path}: {name} is not sound JSON ({error}). {RESAVE}") from error
    if not isinstance(value, dict):
        raise UnsafeModelError(f"{path}: {name} is not a JSON object. {RESAVE}")
    return value


def _numbers(arrays: Mapping[str, tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in arrays.values())


def _h5py() -> Any:
    """The library, whose low level modules are compiled and carry no types."""
    import h5py

    return h5py


def _inspect_hdf5(path: Path, file: Any, size: int) -> ModelFile:
    h5py = _h5py()

    try:
        with h5py.File(file, "r") as content:
            arrays = _check_hdf5(path, content, size)
            texts = {name: content.attrs[name] for name in ("model_config", "training_config") if name in content.attrs}
    except UnsafeModelError:
        raise
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, NotImplementedError, UnicodeError) as error:
        raise UnsafeModelError(f"{path}: not a sound HDF5 file ({error}). {RESAVE}") from error
    configs = {}
    for name, text in texts.items():
        if not isinstance(text, str | bytes) or len(text) > MAX_JSON_BYTES:
            raise UnsafeModelError(f"{path}: {name} is not a text of at most {MAX_JSON_BYTES:,} bytes. {RESAVE}")
        configs[name] = _json_object(path, name, text)
        check_config(path, configs[name], _numbers(arrays), legacy=True)
    full_model = "model_config" in configs
    weights = {name: shape for name, shape in arrays.items() if _is_model_weight(name, full_model)}
    return ModelFile(configs.get("model_config"), weights)


def _is_model_weight(name: str, full_model: bool) -> bool:
    parts = name.split("/")
    if full_model:
        return parts[0] == "model_weights"
    # Training state and the counters of random generators stand beside the weights and are not read.
    return parts[0] != "metrics" and not {"optimizer", "optimizer_weights", "seed_generator"} & set(parts)


def _check_hdf5(path: Path, content: Any, size: int) -> dict[str, tuple[int, ...]]:
    h5py = _h5py()

    arrays: dict[str, tuple[int, ...]] = {}
    declared = texts = 0
    seen = {h5py.h5o.get_info(content["/"].id).addr}
    pending = [("", content["/"])]
    while pending:
        prefix, group = pending.pop()
        texts = max(texts, _check_attributes(path, prefix or "/", group, size))
        for name in group:
            where = f"{prefix}{name}"
            _check_link(path, where, group, name)
            item = group[name]
            # A second hard link could make a cycle, or one small array count many times.
            address = h5py.h5o.get_info(item.id).addr
            if address in seen:
                raise UnsafeModelError(f"{path}: HDF5 entry {where!r} is a second link to another entry. {RESAVE}")
            seen.add(address)
            if isinstance(item, h5py.Group):
                pending.append((f"{where}/", item))
            elif isinstance(item, h5py.Dataset):
                texts = max(texts, _check_attributes(path, where, item, size))
                declared += _check_array(path, where, item, size)
                arrays[where] = item.shape
            else:
                raise UnsafeModelError(f"{path}: HDF5 entry {where!r} is neither a group nor an array. {RESAVE}")
    if declared > size:
        raise UnsafeModelError(
            f"{path}: the HDF5 arrays declare {declared:,} bytes in all, the file has {size:,}. {RESAVE}"
        )
    # Many references to one long text would be read as many copies of it.
    if texts * (size - declared) > MAX_ATTRIBUTE_BYTES:
        raise UnsafeModelError(f"{path}: an HDF5 attribute holds {texts:,} texts of unknown length. {RESAVE}")
    return arrays


def _check_link(path: Path, where: str, group: Any, name: str) -> None:
    h5py = _h5py()

    kind = group.id.links.get_info(name.encode()).type
    if kind != h5py.h5l.TYPE_HARD:
        names = {h5py.h5l.TYPE_SOFT: "a soft link", h5py.h5l.TYPE_EXTERNAL: "an external link"}
        raise UnsafeModelError(
            f"{path}: HDF5 entry {where!r} is {names.get(kind, 'a link of unknown kind')}, which can lead outside the "
            f"file. {RESAVE}"
        )


def _check_array(path: Path, where: str, array: Any, size: int) -> int:
    """The bytes of one HDF5 array, which must lie whole and unpacked in this file."""
    h5py = _h5py()

    layout = array.id.get_create_plist()
    number = (h5py.h5t.INTEGER, h5py.h5t.FLOAT, h5py.h5t.ENUM)
    # bfloat16 is stored as two opaque bytes.
    kind, bfloat16 = array.id.get_type().get_class(), array.dtype == "V2"
    if array.shape is None or not (kind in number or (kind == h5py.h5t.OPAQUE and bfloat16)):
        raise UnsafeModelError(f"{path}: HDF5 array {where!r} holds {array.dtype}, not numbers. {RESAVE}")
    if layout.get_layout() == h5py.h5d.VIRTUAL:
        raise UnsafeModelError(f"{path}: HDF5 array {where!r} is virtual: its values lie in other files. {RESAVE}")
    if layout.get_external_count():
        raise UnsafeModelError(f"{path}: HDF5 array {where!r} has its values in another file. {RESAVE}")
    declared = math.prod(array.shape) * array.dtype.itemsize
    if declared > size:
        raise UnsafeModelError(
            f"{path}: HDF5 array {where!r} of shape {array.shape} declares {declared:,} bytes, the file has {size:,}. "
            f"{RESAVE}"
        )
    if layout.get_layout() not in (h5py.h5d.CONTIGUOUS, h5py.h5d.COMPACT) or layout.get_nfilters():
        raise UnsafeModelError(
            f"{path}: HDF5 array {where!r} is compressed or stored in chunks, which Keras never does. {RESAVE}"
        )
    stored = array.id.get_storage_size()
    if stored != declared:
        raise UnsafeModelError(
            f"{path}: HDF5 array {where!r} declares {declared:,} bytes but stores {stored:,}. {RESAVE}"
        )
    return declared


def _check_attributes(path: Path, where: str, item: Any, size: int) -> int:
    """Refuse attributes that are no plain numbers or texts; the largest number of texts of variable length in one."""
    h5py = _h5py()

    texts = 0
    plain = (h5py.h5t.STRING, h5py.h5t.INTEGER, h5py.h5t.FLOAT, h5py.h5t.ENUM)
    for index in range(h5py.h5a.get_num_attrs(item.id)):
        attribute = h5py.h5a.open(item.id, index=index)
        kind = attribute.get_type()
        count = math.prod(attribute.shape or ())
        if kind.get_class() not in plain or count * kind.get_size() > size:
            name = attribute.name.decode(errors="replace")
            raise UnsafeModelError(f"{path}: HDF5 attribute {name!r} of {where!r} is no plain number or text. {RESAVE}")
        if kind.get_class() == h5py.h5t.STRING and kind.is_variable_str() and count > 1:
            texts = max(texts, count)
    return texts
