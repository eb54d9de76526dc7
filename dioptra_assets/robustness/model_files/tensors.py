"""How large the tensors within a model are, told from their shapes before anything is computed."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dioptra_assets.robustness.model_files.config import UnsafeModelError

# Numbers an image. The largest tensor of vgg16 at 224 x 224 is 3.2 million; all of resnet152 together some 90 million.
MAX_TENSOR = 2**25
MAX_TENSORS = 2**29


def check_tensors(path: Path, model: Any) -> None:
    """Refuse a model whose layers would blow up an image: a few bytes of a file can ask for terabytes.

    Sizes that the model leaves open (`None`) count as 1: they are those of the images it is called on.

    Args:
        path: the file, for messages.
        model: a Keras model that may hold no weights yet.

    Raises:
        UnsafeModelError: naming the layer and the numbers an image; also where the model gives several outputs.
    """
    total = 0
    for layer, size in _sizes(model):
        total += size
        if size > MAX_TENSOR:
            raise UnsafeModelError(
                f"{path}: layer {layer!r} makes {size:,} numbers per image, at most {MAX_TENSOR:,} are allowed. Use"
                " a smaller model"
            )
    if total > MAX_TENSORS:
        raise UnsafeModelError(
            f"{path}: the layers make {total:,} numbers per image, at most {MAX_TENSORS:,} are allowed in all. Use"
            " a smaller model"
        )
    outputs = getattr(_graph(model), "_outputs_struct", None)
    if isinstance(outputs, dict) or (isinstance(outputs, list | tuple) and len(outputs) != 1):
        raise UnsafeModelError(
            f"{path}: the model gives a {type(outputs).__name__} of {len(outputs)} outputs: a classifier gives one"
            " tensor of logits. Save a model that ends in it"
        )


def _graph(model: Any) -> Any:
    """What holds the nodes of a model: a sequential one keeps a functional one."""
    return getattr(model, "_functional", None) or model


def _sizes(model: Any) -> Iterator[tuple[str, int]]:
    """Name of a layer and numbers an image, for each tensor that a call of it makes, in models within models too."""
    pending, seen = [model], set()
    while pending:
        current = pending.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        pending += [layer for layer in getattr(current, "layers", ()) if hasattr(layer, "layers")]
        by_depth = getattr(_graph(current), "_nodes_by_depth", {})
        for node in (node for nodes in by_depth.values() for node in nodes):
            operation = node.operation
            if hasattr(operation, "layers"):
                continue  # a model within this one: its own nodes are looked at
            for tensor in node.outputs:
                yield operation.name, _numbers(tensor.shape[1:])
            if type(operation).__name__ == "MultiHeadAttention":
                # Its scores: for each head, every position against every other.
                query, value = [*node.input_tensors, *node.input_tensors][:2]
                yield (
                    operation.name,
                    operation.num_heads * _numbers(query.shape[1:-1]) * _numbers(value.shape[1:-1]),
                )


def _numbers(shape: Any) -> int:
    return math.prod(int(size) if size is not None else 1 for size in shape)
