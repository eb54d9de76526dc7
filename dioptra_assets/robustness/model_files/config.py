"""What the configuration of a Keras model may say, judged as plain JSON.

Keras' own safe mode refuses `Lambda`, but it still builds any other class of the library from the configuration of a
file, among them layers that load a SavedModel, read a vocabulary from a path or take as much memory as the file asks
for. So the rule here is the reverse: what is not known to be harmless is refused.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dioptra_assets.robustness.model_files import allowed as known

MAX_NORMALIZATION_ELEMENTS = 2**26
# The deepest models of keras.applications have 1,100 layers; Keras builds some seventy a second, and recursively.
MAX_LAYERS = 2_000
MAX_CALLS = 2 * MAX_LAYERS  # one layer may be called many times

RESAVE = "Save the model again with Keras 3, `model.save('NAME.keras')`"


class UnsafeModelError(ValueError):
    """A model file was refused; the message names the file, what in it was refused, and what to do."""


def check_config(path: Path, config: dict[str, Any], stored: int, *, legacy: bool) -> None:
    """Refuse a configuration that names anything unknown or asks for more weights than there are.

    Args:
        path: the file, for messages.
        config: the whole configuration of a model, or of its training.
        stored: how many numbers the file stores.
        legacy: whether this is the older form inside HDF5, whose layers name no module.

    Raises:
        UnsafeModelError: naming the place in the configuration.
    """
    _check_layers(path, config)
    for where, node in _dictionaries(config):
        if "class_name" in node:
            _check_object(path, where, node, legacy)
        if node.get("compile_config") and where:
            raise UnsafeModelError(
                f"{path}: the model inside the model at {where} is compiled. Build it without compiling, then: {RESAVE}"
            )
        for call in node.get("inbound_nodes") or ():
            # A layer called on plain numbers would compute while the file is being read.
            if not (_has_keras_tensor(call) or (isinstance(call, list) and call and isinstance(call[0], list))):
                raise UnsafeModelError(f"{path}: a layer at {where} is called on constants alone. {RESAVE}")
        # LoRA and quantization compute with weights while they are being read.
        if node.get("lora_rank") or node.get("quantization_config"):
            raise UnsafeModelError(f"{path}: the layer at {where} is quantized or has a lora_rank. {RESAVE} in floats")
        if isinstance(node.get("dtype"), str) and node["dtype"] not in known.DTYPES:
            raise UnsafeModelError(
                f"{path}: {where}.dtype = {node['dtype']!r} is not a plain dtype. {RESAVE} in floats"
            )
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


def _check_layers(path: Path, config: dict[str, Any]) -> None:
    layers = calls = 0
    for _, node in _dictionaries(config):
        layers += node.get("class_name") in known.LAYERS if isinstance(node.get("class_name"), str) else 0
        calls += len(node.get("inbound_nodes") or ())
    if layers > MAX_LAYERS or calls > MAX_CALLS:
        raise UnsafeModelError(
            f"{path}: the model has more than {MAX_LAYERS:,} layers or {MAX_CALLS:,} calls of layers. Use a smaller"
            " model"
        )


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
    if name == "DTypePolicy" and (not isinstance(inner, dict) or inner.get("name") not in known.DTYPES):
        raise UnsafeModelError(f"{path}: {label} is not the policy of a plain dtype. {RESAVE} in floats")
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
    # Keras looks for tensors in plain lists and dictionaries, not inside other objects.
    if isinstance(value, dict) and "class_name" in value:
        return value["class_name"] == "__keras_tensor__"
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(map(_has_keras_tensor, items))


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
