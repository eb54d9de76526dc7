"""What an attack that follows gradients climbs: one number an image, which grows as the image leaves its goal.

The gradient of the cross-entropy is the error of the probabilities, and vanishes where a model is sure: multiply a
model's logits by 100 and it holds against an attack that fells it unscaled (Carlini & Wagner 2017, arXiv 1608.04644, on
defensive distillation). The directions along which `margin` and `dlr` rise most do not depend on that factor.

Why: docs/decisions/0030-losses-that-scale-cannot-hide.md
"""

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationInfo

from dioptra_assets.robustness.attacks import compiled

Loss = Literal["cross_entropy", "margin", "dlr"]


def check_loss(loss: Loss, class_count: int, *, targeted: bool) -> None:
    """Refuse `dlr` where a model has too few classes for it.

    Raises:
        ValueError: naming the field, the value and what to use.
    """
    least = 4 if targeted else 3
    if loss == "dlr" and class_count < least:
        rank = "the third and the fourth largest logit" if targeted else "the third largest logit"
        raise ValueError(
            f"loss is dlr, which takes {rank}, but there are {class_count} classes: at least {least} are allowed"
            f"{' with targeted' if targeted else ''}, use the loss margin"
        )


def loss_of(
    loss: Loss, goals: compiled.Tensor, labels: compiled.Tensor, class_count: int, *, targeted: bool
) -> Callable[[compiled.Tensor], compiled.Tensor]:
    """From logits, float32 [rows, class_count], to the loss of each image, [rows].

    It is raised to drive images out of their own class, and with `targeted` lowered to drive them to their goal.

    `cross_entropy`: that of the goal. `margin`: the largest other logit less that of the goal (Carlini & Wagner 2017,
    the function f6 without its floor). `dlr`: the difference of logits ratio of Croce & Hein 2020 (arXiv 2003.01690,
    equations 6 and 7): the margin of the label over the largest other, or targeted over the target, divided by the
    distance of the largest logits, which makes it independent of their scale and of a constant added to all.

    Args:
        loss: which.
        goals: int32 [rows]: the class to reach where targeted, else the label.
        labels: int32 [rows]: the true class, which only `dlr` with `targeted` asks for.
        class_count: number of classes.
        targeted: whether `goals` are to be reached.
    """
    ops = compiled.keras_ops()
    goal = ops.one_hot(goals, class_count, dtype="bool")

    def cross_entropy(logits: Any) -> Any:
        return ops.categorical_crossentropy(ops.cast(goal, "float32"), logits, from_logits=True)

    def margin(logits: Any) -> Any:
        return ops.max(ops.where(goal, -math.inf, logits), axis=1) - of_class(logits, goal)

    def dlr(logits: Any) -> Any:
        if targeted:
            largest, _ = ops.top_k(logits, 4)
            own = ops.one_hot(labels, class_count, dtype="bool")
            above = of_class(logits, own) - of_class(logits, goal)
            spread = largest[:, 0] - (largest[:, 2] + largest[:, 3]) / 2
        else:
            largest, _ = ops.top_k(logits, 3)
            above, spread = margin(logits), largest[:, 0] - largest[:, 2]
        return ops.where(spread > 0, above / ops.where(spread > 0, spread, 1.0), 0.0)

    def of_class(logits: Any, one_hot: Any) -> Any:
        return ops.sum(ops.where(one_hot, logits, 0.0), axis=1)

    return {"cross_entropy": cross_entropy, "margin": margin, "dlr": dlr}[loss]


def _loss_is_ours(loss: Loss, info: ValidationInfo) -> Loss:
    if loss != "cross_entropy" and info.data.get("engine") == "art":
        raise ValueError(f"loss is {loss} with the engine art: use the engine compiled, ART takes the cross-entropy")
    return loss


LossField = Annotated[
    Loss,
    AfterValidator(_loss_is_ours),
    Field(
        description="cross_entropy, as published; margin (of logits, Carlini & Wagner 2017) or dlr (Croce & Hein 2020, "
        "from three classes up, targeted from four), which a model cannot evade by large logits: they give the same "
        "robust accuracy whatever factor its logits are multiplied by."
    ),
]
