"""The raw work: what no attack on a model can do without, to see how much an attack adds to it."""

from collections.abc import Callable
from typing import Any

import numpy as np

from dioptra_assets.robustness.attacks import compiled


def gradients(
    model: Any, images: np.ndarray, labels: np.ndarray, *, batch_size: int, steps: int = 1
) -> Callable[[], None]:
    """`steps` gradients of the loss of every image, each at the image itself, in one compiled call a batch."""
    ops = compiled.keras_ops()
    labels = np.asarray(labels, np.int32)

    def several(images: Any, labels: Any) -> dict[str, Any]:
        def again(_: Any, total: Any) -> Any:
            # What is added depends on what was added before, so that no gradient can be left out.
            return total + compiled.loss_gradient(model, images + 0.0 * total, labels, model.output_shape[-1])[0]

        return {"total": ops.fori_loop(0, steps, again, ops.zeros_like(images))}

    run = compiled.compile_batches(several)

    def work() -> None:
        for start in range(0, len(images), batch_size):
            run(images[start : start + batch_size], labels[start : start + batch_size])

    return work
