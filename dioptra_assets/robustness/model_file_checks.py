"""What a Keras model file may hold, judged from its bytes alone: nothing of it is imported, built or run.

Keras' own safe mode refuses `Lambda`, but it still builds any other class of the library from the configuration of a
file, among them layers that load a SavedModel, read a vocabulary from a path or take as much memory as the file asks
for. So the rule here is the reverse: what is not known to be harmless is refused.
"""

import io
import json
import math
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dioptra_assets.robustness import model_file_classes as known

ARCHIVE_MEMBERS = ("config.json", "metadata.json", "model.weights.h5")
MAX_JSON_BYTES = 16 * 2**20
MAX_NORMALIZATION_ELEMENTS = 2**26
MAX_ATTRIBUTE_BYTES = 2**30

RESAVE = "Save the model again with Keras 3, `model.save('NAME.keras')`"


class UnsafeModelError(ValueError):
    """A model file was refused; the message names the file, what in it was refused, and what to do."""


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
    _check_config(path, config, found.arrays, legacy=False)
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


# ---- HDF5 ----


def _inspect_hdf5(path: Path, file: Any, size: int) -> ModelFile:
    import h5py

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
        _check_config(path, configs[name], arrays, legacy=True)
    full_model = "model_config" in configs
    weights = {name: shape for name, shape in arrays.items() if _is_model_weight(name, full_model)}
    return ModelFile(configs.get("model_config"), weights)


def _is_model_weight(name: str, full_model: bool) -> bool:
    parts = name.split("/")
    if full_model:
        return parts[0] == "model_weights"
    # Training state and the counters of random generators stand beside the weights and are not read.
    return parts[0] not in ("optimizer", "optimizer_weights", "metrics") and "seed_generator" not in parts


def _check_hdf5(path: Path, content: Any, size: int) -> dict[str, tuple[int, ...]]:
    import h5py

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
    import h5py

    kind = group.id.links.get_info(name.encode()).type
    if kind != h5py.h5l.TYPE_HARD:
        names = {h5py.h5l.TYPE_SOFT: "a soft link", h5py.h5l.TYPE_EXTERNAL: "an external link"}
        raise UnsafeModelError(
            f"{path}: HDF5 entry {where!r} is {names.get(kind, 'a link of unknown kind')}, which can lead outside the "
            f"file. {RESAVE}"
        )


def _check_array(path: Path, where: str, array: Any, size: int) -> int:
    """The bytes of one HDF5 array, which must lie whole and unpacked in this file."""
    import h5py

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
    import h5py

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


# ---- configuration ----


def _check_config(path: Path, config: dict[str, Any], arrays: Mapping[str, tuple[int, ...]], *, legacy: bool) -> None:
    """Walk a whole configuration; `legacy` is the older form inside HDF5, whose layers name no module."""
    stored = sum(math.prod(shape) for shape in arrays.values())
    for where, node in _dictionaries(config):
        if "class_name" in node:
            _check_object(path, where, node, legacy)
        if "compile_config" in node and where:
            raise UnsafeModelError(
                f"{path}: the model inside the model at {where} is compiled. Build it without compiling, then: {RESAVE}"
            )
        for call in node.get("inbound_nodes") or ():
            # A layer called on plain numbers would compute while the file is being read.
            if not (_has_keras_tensor(call) or (isinstance(call, list) and call and isinstance(call[0], list))):
                raise UnsafeModelError(f"{path}: a layer at {where} is called on constants alone. {RESAVE}")
        for key in ("units", "filters", "input_dim", "output_dim"):
            if isinstance(node.get(key), int | float) and node[key] > stored:
                raise UnsafeModelError(
                    f"{path}: {where}.{key} = {node[key]} asks for more weights than the {stored:,} numbers that the "
                    f"file stores. {RESAVE}"
                )
        if legacy:
            for key, value in node.items():
                # The legacy reader turns such texts into functions of Keras.
                if key != "name" and isinstance(value, str) and value in known.LEGACY_LOOKUPS:
                    raise UnsafeModelError(f"{path}: {where}.{key} = {value!r} names a function. {RESAVE}")


def _check_object(path: Path, where: str, node: dict[str, Any], legacy: bool) -> None:
    name, module, inner = node["class_name"], node.get("module"), node.get("config")
    label = f"{where} ({inner['name']!r})" if isinstance(inner, dict) and isinstance(inner.get("name"), str) else where
    advice = f"Replace it by built-in layers without code or files, then: {RESAVE}"
    if not isinstance(name, str):
        raise UnsafeModelError(f"{path}: {label} has a class name that is not a text. {advice}")
    if name in known.PLAIN_VALUES or (legacy and name in known.LEGACY_VALUES):
        return
    if name in ("__numpy__", "__tensor__"):
        if not _is_numbers(inner):
            raise UnsafeModelError(f"{path}: {label} is a constant that is no list of plain numbers. {advice}")
        return
    if name == "function":
        allowed = module in known.FUNCTION_MODULES and isinstance(inner, str) and inner in known.FUNCTIONS
        name = inner
    elif legacy and "module" not in node:
        allowed = name in known.ALL_CLASSES
    else:
        allowed = isinstance(module, str) and name in known.CLASSES.get(module, ())
    if not allowed or node.get("registered_name") not in (None, name):
        full_name = f"{module}.{name}" if module else f"{name}"
        raise UnsafeModelError(f"{path}: {label} is {full_name!r}, which is not among the allowed classes. {advice}")
    if name == "Normalization":
        _check_normalization(path, label, node)


def _check_normalization(path: Path, where: str, node: dict[str, Any]) -> None:
    # This layer alone fills arrays of the size of its input while it is built, before any weight can be compared.
    shape = (node.get("build_config") or {}).get("input_shape")
    if not isinstance(shape, list) or not all(size is None or isinstance(size, int) for size in shape):
        raise UnsafeModelError(f"{path}: Normalization at {where} does not say the shape of its input. {RESAVE}")
    if math.prod(size or 1 for size in shape) > MAX_NORMALIZATION_ELEMENTS:
        raise UnsafeModelError(f"{path}: Normalization at {where} is built for inputs of shape {shape}. {RESAVE}")


def _dictionaries(config: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    pending: list[tuple[str, Any]] = [("", config)]
    while pending:
        where, value = pending.pop()
        if isinstance(value, dict):
            yield where, value
            pending.extend((f"{where}.{key}".lstrip("."), item) for key, item in value.items())
        elif isinstance(value, list):
            pending.extend((f"{where}[{index}]", item) for index, item in enumerate(value))


def _has_keras_tensor(value: Any) -> bool:
    if isinstance(value, dict):
        return value.get("class_name") == "__keras_tensor__" or any(map(_has_keras_tensor, value.values()))
    return isinstance(value, list) and any(map(_has_keras_tensor, value))


def _is_numbers(constant: Any) -> bool:
    if not isinstance(constant, dict) or constant.get("dtype") not in known.DTYPES:
        return False
    pending = [constant.get("value")]
    while pending:
        value = pending.pop()
        if isinstance(value, list):
            pending.extend(value)
        elif not isinstance(value, int | float):
            return False
    return True
