"""How many images a model is given at once, so that it stays within the memory it may take.

A photograph costs a model hundreds of times what a digit does, so no number of images is right for both. What one costs
is worked out from the shapes of what the layers give, before anything is computed. The number asked for is halved until
it fits, so that a model is given the same batches on every machine that has the memory.

Why: docs/decisions/0032-batches-follow-what-an-image-costs.md
"""

import functools
import math
import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

VARIABLE = "DIOPTRA_ASSETS_MEMORY"
# Without a declared limit a batch gets so much, or a quarter of what is free where that is less. More images at once
# are no faster on a CPU.
BATCH_BYTES = 1_000_000_000
SHARE_OF_FREE = 0.25
# Beside its batches a process holds what it reads and writes: a shard of images as it is, encoded, and on its way.
BESIDE_BATCHES = 200_000_000
# No batch is larger, whatever an entry says.
MOST_AT_ONCE = 65_536

# Bytes for each byte that the layers give: with gradients it is held, and passed through once more and a half (measured
# on le_net with photographs of 224 x 224).
WITH_GRADIENTS, FORWARD = 2.5, 1.0
# The image, its iterate, its gradient and the step, some of them in double precision.
COPIES_OF_AN_IMAGE = 12

UNITS = {"": 10**9, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


class _Resident:
    """What this process took when it was first asked, without the models it kept."""

    first: int | None = None


def declared_limit() -> int | None:
    """The bytes that this process may take in all, as the environment declares them; None where it does not.

    Raises:
        ValueError: where the variable cannot be read, naming it, its value and what is allowed.
    """
    text = os.environ.get(VARIABLE, "").strip()
    if not text:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text)
    number, unit = found.groups() if found else ("0", "")
    size = int(float(number) * UNITS.get(unit.upper(), 0))
    if size <= 0:
        raise ValueError(f"{VARIABLE} is {text!r}: allowed is a size above 0, such as 2 GB, 500 MB or 4 (GB)")
    return size


def batch_budget() -> int:
    """The bytes that a batch may take now.

    Raises:
        ValueError: as :func:`declared_limit`.
    """
    limit = declared_limit()
    if limit is None:
        return min(BATCH_BYTES, int(SHARE_OF_FREE * _free()))
    return max(0, limit - BESIDE_BATCHES - _in_use())


def image_bytes(model: Any, *, gradients: bool = True) -> int:
    """About what one image costs a model, from the shapes of what its layers give.

    Args:
        model: a Keras model, or what stands before one: it then names the model as `stands_for`, and as
            `images_a_query` how many images that model is given for one.
        gradients: whether gradients are taken, or images only classified.
    """
    image = 4 * math.prod(size or 1 for size in getattr(model, "input_shape", ())[1:])
    held = 4 * _values(getattr(model, "stands_for", model)) * getattr(model, "images_a_query", 1)
    return int(held * (WITH_GRADIENTS if gradients else FORWARD) + COPIES_OF_AN_IMAGE * image)


def rows_that_fit(model: Any, at_most: int, *, gradients: bool = True, log: Callable[[str], None] | None = None) -> int:
    """`at_most` images at once, halved until they fit; 1 where even one is too many.

    On a GPU `at_most`: there a batch that does not fit is an error that can be told (:func:`out_of_memory`) and mended.

    Args:
        model: see :func:`image_bytes`.
        at_most: images at once that were asked for.
        gradients: see :func:`image_bytes`.
        log: told in a sentence where it is fewer.

    Raises:
        ValueError: as :func:`declared_limit`.
    """
    if on_gpu():
        return at_most
    each, budget, rows = image_bytes(model, gradients=gradients), batch_budget(), at_most
    while rows > 1 and rows * each > budget:
        rows = halved(rows)
    if rows < at_most and log:
        log(
            f"{model.name}: {at_most} images at once would take about {at_most * each / 1e9:.1f} GB, and "
            f"{budget / 1e9:.1f} GB may be taken: {rows} at once ({VARIABLE} sets the limit)"
        )
    return rows


def halved(rows: int) -> int:
    """Half as many rows, at least 1."""
    return max(1, -(-rows // 2))


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a batch did not fit: of Python, TensorFlow or JAX."""
    told = type(error).__name__ == "ResourceExhaustedError" or "RESOURCE_EXHAUSTED" in str(error)
    return told or isinstance(error, MemoryError)


def _values(model: Any) -> int:
    """How many numbers the layers of a model give for one image; 0 for what has no layers."""
    # A Sequential keeps the model it stands for; its layers keep what each of its earlier, shorter forms gave, too.
    graph = getattr(model, "_functional", None) or model
    total = 0
    for node in (node for depth in getattr(graph, "_nodes_by_depth", {}).values() for node in depth):
        inner = _values(node.operation)
        if not node.is_input:
            given = sum(math.prod(size or 1 for size in tensor.shape[1:]) for tensor in node.output_tensors)
            total += inner or given
    return total


def _in_use() -> int:
    """What this process takes for something else than batches.

    What earlier batches took is given back to the process, not to the system, and taken again.
    """
    import psutil

    from dioptra_assets.robustness import model_cache

    resident, models = psutil.Process().memory_info().rss, model_cache.held_bytes()
    if _Resident.first is None:
        _Resident.first = max(0, resident - models)
    return min(resident, _Resident.first + models)


def _free() -> int:
    """What this machine has free, or the control group that this process is held in."""
    import psutil

    free, group = psutil.virtual_memory().available, Path("/sys/fs/cgroup")
    with suppress(OSError, ValueError):  # no control group, or one without a limit
        free = min(free, int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return max(0, free)


@functools.cache
def on_gpu() -> bool:
    """Whether models compute on a GPU."""
    import keras

    if keras.backend.backend() == "jax":
        import jax  # pyright: ignore[reportMissingImports]

        return jax.default_backend() != "cpu"
    import tensorflow as tf

    # Not the logical ones: to list those would set the GPU up before it was told to share its memory.
    return bool(tf.config.list_physical_devices("GPU"))
