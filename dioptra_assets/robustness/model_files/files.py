"""Keras models as files: strangers' models are loaded without running code, and a model has a digest.

`enable_unsafe_deserialization` is process-wide and has no undo, so it is never called here. Even if other code of the
process has called it, the checks before loading refuse what it would let through.

Why: docs/decisions/0009-models-are-files.md
"""

import hashlib
import json
import math
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dioptra_assets.robustness.model_files.checks import (
    ARCHIVE_MEMBERS,
    ModelFile,
    check_model_file,
    inspect_model_file,
)
from dioptra_assets.robustness.model_files.config import RESAVE, UnsafeModelError
from dioptra_assets.robustness.model_files.tensors import check_tensors
from dioptra_assets.robustness.model_files.variables import WeightlessVariables, make_real, parts

if TYPE_CHECKING:
    import keras

__all__ = ["UnsafeModelError", "check_model_file", "load_model", "load_weights", "save_model", "weights_digest"]

MAX_RANDOM_STATE = 16


def load_model(path: str | Path) -> "keras.Model":
    """Load a Keras model of any origin, uncompiled, without running any code that its file brings.

    The model is built without memory for its weights; only when every weight it wants was found in the file, in the
    right shape, and no tensor within it is absurdly large, does it become real.

    Args:
        path: a `.keras` archive or a full HDF5 model (`.h5`, `.hdf5`).

    Raises:
        UnsafeModelError: when the file is refused (see `check_model_file`), cannot be built, or when the weights it
            stores are not those of the architecture it describes.
        FileNotFoundError: when there is no file at `path`.
    """
    import keras

    path = Path(path).resolve()
    found = inspect_model_file(path)
    if found.config is None:
        raise UnsafeModelError(f"{path}: the file holds weights alone. Build the model and use load_weights")
    scope = keras.StatelessScope(initialize_variables=False)
    with _weightless_variables() as variables:
        try:
            with _unpacked(path) as unpacked, scope:
                model: Any = keras.saving.load_model(unpacked, compile=False, safe_mode=True)
        except Exception as error:
            raise UnsafeModelError(f"{path}: Keras cannot build this model: {_first_lines(error)}. {RESAVE}") from error
        check_tensors(path, model)
        wanted = {id(variable) for variable in model.weights}
        for variable in variables:
            is_state = id(variable) not in wanted and math.prod(variable.shape) <= MAX_RANDOM_STATE
            if scope.get_current_value(variable) is None and not is_state:
                raise UnsafeModelError(
                    f"{path}: the file stores no value for weight {variable.path!r} of shape {tuple(variable.shape)}, "
                    f"which its architecture wants. {RESAVE}"
                )
        _check_count(path, model, found)
        try:
            for variable in variables:
                make_real(variable, scope.state_mapping.pop(id(variable), None))
        except (TypeError, ValueError) as error:
            raise UnsafeModelError(
                f"{path}: Keras cannot take these weights: {_first_lines(error)}. {RESAVE}"
            ) from error
    return model


def load_weights(model: "keras.Model", path: str | Path) -> None:
    """Give a built model the weights of a file; the model is left as it was when they do not fit.

    Args:
        model: a built model. Weights of a whole model inside it, such as a `keras.applications` body behind a layer of
            preprocessing, go to that one.
        path: a `.keras` archive, a `.weights.h5` file, or an older `.h5` or `.hdf5` file such as those of
            `keras.applications`, whose layers are matched by their order.

    Raises:
        UnsafeModelError: when the file is refused (see `check_model_file`).
        ValueError: when the weights do not fit the model; the message names the file and the layer.
        FileNotFoundError: when there is no file at `path`.
    """
    import keras

    path = Path(path).resolve()
    found = inspect_model_file(path)
    target = _target(model, found)
    scope = keras.StatelessScope(initialize_variables=False)
    with _weights_file(path) as weights_file:
        try:
            with scope:
                # The state of an optimizer stays as it is: a file from elsewhere holds another one's, or none.
                if weights_file.name.endswith("weights.h5"):
                    target.load_weights(weights_file, objects_to_skip=_optimizers(target))
                else:
                    target.load_weights(weights_file)
        except Exception as error:
            raise ValueError(
                f"{path}: these weights do not fit the model {target.name!r}: {_first_lines(error)}. "
                "Use the architecture that they were saved from"
            ) from error
    for variable in target.weights:
        if scope.get_current_value(variable) is None:
            raise ValueError(
                f"{path}: the file stores no value for weight {variable.path!r} of shape {tuple(variable.shape)} of "
                f"the model {target.name!r}. Use the architecture that the weights were saved from"
            )
    _check_count(path, target, found)
    _assign(target, scope)


def save_model(model: "keras.Model", path: str | Path) -> None:
    """Write a model as a `.keras` archive: architecture and weights, without the state of its training.

    The file appears whole or not at all, a model that `load_model` would refuse is not written, and the same model
    gives the same bytes.

    Raises:
        UnsafeModelError: when the model holds a layer that `load_model` refuses.
        ValueError: when `path` does not end in `.keras` or the model is not built.
    """
    import keras

    path = Path(path)
    if path.suffix != ".keras":
        raise ValueError(f"{path}: models are saved as .keras; change the name to {path.with_suffix('.keras').name}")
    # Keras' own writer keeps the optimizer (three times the size with Adam), custom losses, which no reader may load,
    # and the time of day.
    config = {"config.json": _architecture(model), "metadata.json": {"keras_version": keras.version()}}
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".saving-") as folder:
        weights, partial = Path(folder) / "model.weights.h5", Path(folder) / path.name
        keras.saving.save_weights(model, weights, objects_to_skip=_optimizers(model))
        with zipfile.ZipFile(partial, "w") as archive:
            for name, value in config.items():
                archive.writestr(zipfile.ZipInfo(name), json.dumps(value))
            info = zipfile.ZipInfo(weights.name)
            info.file_size = weights.stat().st_size
            with weights.open("rb") as source, archive.open(info, "w") as target:
                shutil.copyfileobj(source, target, 2**20)
        try:
            check_model_file(partial)
        except UnsafeModelError as error:
            raise UnsafeModelError(f"{path} was not written: {str(error).removeprefix(f'{partial}: ')}") from error
        partial.replace(path)


def weights_digest(model: "keras.Model") -> str:
    """The sha256, as 64 hexadecimal digits, of a model's architecture and weights.

    Layers count by their place, not by their name, which Keras numbers through a session; what belongs to training
    alone (optimizer, state of random generators) does not count. Another version of Keras may describe the same
    architecture otherwise and so give another digest.
    """
    digest = hashlib.sha256()
    digest.update(json.dumps(_nameless(_architecture(model), {}), sort_keys=True).encode())
    for position, variable in enumerate(model.weights):
        # A scalar is told as numpy's contiguous arrays have it: with one axis.
        digest.update(f"\n{position} {tuple(variable.shape) or (1,)} {variable.dtype}\n".encode())
        for part in parts(variable.shape):
            digest.update(np.asarray(variable.value[part]).tobytes())
    return digest.hexdigest()


@contextmanager
def _weightless_variables() -> Iterator[list[Any]]:
    """The variables that a StatelessScope makes without memory are listed, and forgotten at the end.

    Keras keeps such variables in a list of the thread and would allocate all of them at the end of the next scope, also
    those of a model that was refused.
    """
    from keras.src.backend.common import global_state

    name = "uninitialized_variables"
    before, variables = global_state.get_global_attribute(name), WeightlessVariables()
    global_state.set_global_attribute(name, variables)
    try:
        yield variables
    finally:
        global_state.set_global_attribute(name, before or [])


def _assign(model: "keras.Model", scope: "keras.StatelessScope") -> None:
    for variable in model.weights:
        variable.assign(scope.get_current_value(variable))


def _target(model: "keras.Model", found: ModelFile) -> "keras.Model":
    """The model, or the one model among its layers that has as many weights as the file."""
    import keras

    if len(model.weights) == len(found.arrays):
        return model
    inner = [layer for layer in model.layers if isinstance(layer, keras.Model)]
    fitting = [layer for layer in inner if len(layer.weights) == len(found.arrays)]
    return fitting[0] if len(fitting) == 1 else model


def _optimizers(model: "keras.Model") -> list[Any]:
    """The optimizers of a model and of the models inside it."""
    layers = [model, *model._flatten_layers(include_self=False)]
    return [layer.optimizer for layer in layers if getattr(layer, "optimizer", None) is not None]


def _check_count(path: Path, model: "keras.Model", found: ModelFile) -> None:
    if len(found.arrays) != len(model.weights):
        raise UnsafeModelError(
            f"{path}: the file stores {len(found.arrays)} weights, the model {model.name!r} has {len(model.weights)}. "
            "Use the architecture that the weights were saved from"
        )


@contextmanager
def _unpacked(path: Path) -> Iterator[Path]:
    """What Keras loads: a folder with the members of an archive, whose weights it would hold in memory once more."""
    if path.suffix != ".keras":
        yield path
        return
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(path) as archive:
        for member in ARCHIVE_MEMBERS:
            archive.extract(member, folder)
        yield Path(folder)


@contextmanager
def _weights_file(path: Path) -> Iterator[Path]:
    """The HDF5 file with the weights of `path`, taken out of an archive for the time being."""
    with _unpacked(path) as unpacked:
        yield unpacked / "model.weights.h5" if unpacked.is_dir() else unpacked


def _first_lines(error: Exception) -> str:
    """What Keras says, without the configuration it repeats at full length."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines)[:600]}".rstrip(".")


def _architecture(model: "keras.Model") -> Any:
    """The configuration of a model as JSON, without compile arguments and without numbers that are memory addresses."""
    return _without(json.loads(model.to_json()), {"compile_config", "shared_object_id"})


def _without(value: Any, keys: set[str]) -> Any:
    if isinstance(value, dict):
        return {key: _without(item, keys) for key, item in value.items() if key not in keys}
    return [_without(item, keys) for item in value] if isinstance(value, list) else value


def _nameless(value: Any, places: dict[str, str]) -> Any:
    """A configuration whose layers are called by their place in the model that holds them."""
    if isinstance(value, list):
        if len(value) == 3 and isinstance(value[0], str) and value[0] in places:
            return [places[value[0]], *value[1:]]
        return [_nameless(item, places) for item in value]
    if not isinstance(value, dict):
        return value
    layers = value.get("layers")
    if isinstance(layers, list):
        names = [layer.get("name") or layer.get("config", {}).get("name") for layer in layers]
        places = {name: f"layer {place}" for place, name in enumerate(names)}
    is_named = value.get("class_name") != "DTypePolicy"
    return {
        key: _nameless({k: v for k, v in item.items() if k != "name"}, places)
        if key == "config" and is_named and isinstance(item, dict)
        else _nameless(item, places)
        for key, item in value.items()
        if not (key == "name" and "class_name" in value)
    }
