"""Models stay loaded, and what was compiled of them too, as long as they take little memory: one cache for both.

What is made of a model holds it in turn, so a cache of its own for each kind of function would keep models that the
others have given up. Here everything made of a model stands beside it and goes with it.

Why: docs/decisions/0033-what-is-made-of-a-model-is-kept-with-it.md
"""

import functools
import math
import threading
import weakref
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

from cachetools import LRUCache

# Twenty small models of a transfer experiment stay, of the largest a few.
KEEP_BYTES = 1_000_000_000
# However large: the model that is attacked and the one that is evaluated.
KEEP_AT_LEAST = 2
# What a model takes beside its parameters, and about what a compiled function of it takes.
OVERHEAD_BYTES = 4_000_000
# A sweep over something that has to be compiled anew each time does not fill the memory with one model.
MADE_AT_MOST = 16

Key = TypeVar("Key", bound=Hashable)


class _Entry:
    def __init__(self, model: Any) -> None:
        self.model = model
        self.made: LRUCache[Hashable, Any] = LRUCache(MADE_AT_MOST)

    def bytes(self) -> int:
        return parameter_bytes(self.model) + OVERHEAD_BYTES * (1 + len(self.made))


class KeptModels:
    """Models and what was made of them; what was used least lately goes first.

    Args:
        budget: bytes that all of them may take; `KEEP_AT_LEAST` stay whatever they take.
    """

    def __init__(self, budget: int = KEEP_BYTES) -> None:
        most = max(budget, KEEP_AT_LEAST)
        # No model counts for more than its share of those that stay at least.
        self._entries: LRUCache[int, _Entry] = LRUCache(most, lambda entry: min(entry.bytes(), most // KEEP_AT_LEAST))
        self._lock = threading.RLock()

    def __len__(self) -> int:
        """How many models are kept."""
        return len(self._entries)

    def use(self, model: Any) -> None:
        """Keep a model, as the one used last."""
        with self._lock:
            self._entry(model)

    def of(self, model: Any, key: Hashable, make: Callable[[], Any]) -> Any:
        """What was made of a model under a key, or what is made now.

        A model that only stands before another, and names it as `stands_for`, is kept with that.
        """
        with self._lock:
            entry = self._entry(getattr(model, "stands_for", model))
            # What is made holds the stand-in, so that its id is not given to another meanwhile.
            key = id(model), key
            if key not in entry.made:
                entry.made[key] = make()
                self._entries[id(entry.model)] = entry  # it is larger now
            return entry.made[key]

    def bytes(self) -> int:
        """About what all of them take."""
        with self._lock:
            return sum(entry.bytes() for entry in self._entries.values())

    def forget(self) -> None:
        """Keep nothing."""
        with self._lock:
            self._entries.clear()

    def _entry(self, model: Any) -> _Entry:
        entry = self._entries.get(id(model))
        if entry is None:
            entry = self._entries[id(model)] = _Entry(model)
        return entry


_models = KeptModels()


def made_of(model: Any, key: Hashable, make: Callable[[], Any]) -> Any:
    """What `make` makes of a model: made once for a key, and kept as long as the model is.

    Args:
        model: a Keras model, or what stands before one and names it as `stands_for`.
        key: tells apart what is made of one model. Begin it with the name of what is made.
        make: makes it.
    """
    return _models.of(model, key, make)


def held_bytes() -> int:
    """About what the kept models take, with what was made of them."""
    return _models.bytes()


class Loaded(Generic[Key]):
    """A function that loads a model, and gives one again that is still kept, or used by anybody."""

    def __init__(self, load: Callable[[Key], Any]) -> None:
        functools.update_wrapper(self, load)
        self._load = load
        self._known: weakref.WeakValueDictionary[Key, Any] = weakref.WeakValueDictionary()
        self._lock = threading.RLock()

    def __call__(self, key: Key) -> Any:
        """The model of `key`."""
        with self._lock:
            model = self._known.get(key)
            if model is None:
                model = self._known[key] = self._load(key)
            _models.use(model)
            return model

    def forget(self) -> None:
        """Load every model anew."""
        with self._lock:
            self._known.clear()


def parameter_bytes(model: Any) -> int:
    """What the weights of a Keras model take as float32; 0 for what has none."""
    return sum(4 * math.prod(weight.shape) for weight in getattr(model, "weights", ()))
