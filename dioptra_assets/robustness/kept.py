"""Models stay loaded and compiled as long as their parameters together take little memory."""

import functools
import math
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Generic, TypeVar

# Twenty small models of a transfer experiment stay, of the largest a few.
KEEP_BYTES = 1_000_000_000
# However large: the model that is attacked and the one that is evaluated.
KEEP_AT_LEAST = 2
# A compiled model takes some megabytes beside its parameters.
KEEP_AT_MOST = 64

Key = TypeVar("Key")
Value = TypeVar("Value")


class Kept(Generic[Key, Value]):
    """A function of one hashable argument that keeps what it made; what was used least lately goes first.

    Args:
        make: makes a value.
        model: from an argument and what was made of it to the model whose parameters count.
    """

    def __init__(self, make: Callable[[Key], Value], model: Callable[[Key, Value], Any]):
        functools.update_wrapper(self, make)
        self._make, self._model = make, model
        self._kept: OrderedDict[Key, tuple[Value, int]] = OrderedDict()
        self._lock = threading.RLock()

    def __call__(self, key: Key) -> Value:
        """What was made of an argument before, else what is made of it now."""
        with self._lock:
            if key not in self._kept:
                value = self._make(key)
                self._kept[key] = value, parameter_bytes(self._model(key, value))
            self._kept.move_to_end(key)
            value, _ = self._kept[key]
            while len(self._kept) > KEEP_AT_LEAST and (
                len(self._kept) > KEEP_AT_MOST or sum(size for _, size in self._kept.values()) > KEEP_BYTES
            ):
                self._kept.popitem(last=False)
            return value

    def cache_clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._kept.clear()


def parameter_bytes(model: Any) -> int:
    """What the weights of a Keras model take as float32; 0 for what has none."""
    return sum(4 * math.prod(weight.shape) for weight in getattr(model, "weights", ()))
