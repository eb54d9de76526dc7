"""The variables of a model that is loaded get their values without copies of them side by side.

A dense layer behind a photograph takes hundreds of megabytes. On Keras' way three copies of it are held at once: the
array that was read, TensorFlow's copy of it, and the tensor; and what TensorFlow frees, it keeps. Here it is the array
and the variable, for one variable after the other.
"""

import functools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from dioptra_assets.robustness.memory import on_gpu

# Numbers. Arrays of more are handed over, or looked at, with care.
LARGE = 4_000_000
# Bytes: TensorFlow wants its tensors to begin at a multiple of it.
ALIGNMENT = 64


class WeightlessVariables(list[Any]):
    """Stands in for Keras' list of the variables that were made without memory.

    What is assigned to them within the scope that made them is kept as the array it is.
    """

    def append(self, variable: Any) -> None:
        """List a variable that Keras has just made."""
        variable._convert_to_tensor = functools.partial(_array_or_tensor, type(variable), variable)
        super().append(variable)


def make_real(variable: Any, value: Any) -> None:
    """Give a variable that was made without memory its memory and its value.

    Args:
        variable: one of :class:`WeightlessVariables`.
        value: what was assigned to it: an array of its shape, or a tensor. None: its initializer draws it.

    Raises:
        TypeError: or ValueError, as the backend has it, when these numbers cannot be made those of the variable.
    """
    del variable._convert_to_tensor  # from here on it is that of its class
    if value is not None:
        tensor = _shared(value, variable.dtype)
        if tensor is None:
            tensor = variable._convert_to_tensor(value, dtype=variable.dtype)
        # Its first value: one drawn at random would take as much memory again.
        variable._initializer = functools.partial(_given, tensor)
    variable._deferred_initialize()


def parts(shape: Any) -> Iterator[Any]:
    """Indices that cut an array along its first axis, in order, into parts of at most `LARGE` numbers, or a row."""
    numbers = math.prod(shape)
    if numbers <= LARGE:
        yield ...
        return
    rows = max(1, LARGE * shape[0] // numbers)
    for first in range(0, shape[0], rows):
        yield slice(first, first + rows)


def _shared(value: Any, dtype: str) -> Any:
    """A large array as a tensor of TensorFlow that keeps it, where that can be; else None."""
    import keras

    shareable = isinstance(value, np.ndarray) and value.dtype.kind in "fiu" and value.dtype.name == dtype
    if not shareable or value.size <= LARGE or keras.backend.backend() != "tensorflow" or on_gpu():
        return None
    import tensorflow as tf

    memory = np.empty(value.nbytes + ALIGNMENT, np.uint8)
    first = -memory.ctypes.data % ALIGNMENT
    copied = memory[first : first + value.nbytes].view(value.dtype.newbyteorder("=")).reshape(value.shape)
    copied[...] = value
    return tf.experimental.dlpack.from_dlpack(copied.__dlpack__())


def _array_or_tensor(kind: Any, variable: Any, value: Any, dtype: Any = None) -> Any:
    return value if isinstance(value, np.ndarray) else kind._convert_to_tensor(variable, value, dtype=dtype)


def _given(value: Any, *_: Any, **__: Any) -> Any:
    """A value in the place of an initializer's."""
    return value
