"""Images a second of FGM, PGD and Madry steps on JAX, beside the bare gradients: `python -m benchmarks.gpu --help`.

It needs jax, keras, numpy and what `dioptra_assets.robustness` imports (pandas, pydantic); no TensorFlow. The table is
kept in results/gpu.md.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.measure import keep
from dioptra_assets.robustness.adversarial_training import MadryTraining, adversarial_images
from dioptra_assets.robustness.architectures import build
from dioptra_assets.robustness.attacks import Attack, compiled, parse_attack, perturb_set
from dioptra_assets.robustness.image_set import ImageSet

# Image shape, classes, eps.
MODELS: dict[str, tuple[tuple[int, int, int], int, float]] = {
    "le_net": ((28, 28, 1), 10, 0.3),
    "resnet50": ((224, 224, 3), 1000, 4 / 255),
}
MADRY_STEPS = 7


def main(arguments: list[str] | None = None) -> None:
    """Print and keep the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu")
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu")
    parser.add_argument("--le-net", type=int, nargs="*", default=[256, 2048, 8192], metavar="ROWS", help="Batch sizes.")
    parser.add_argument("--resnet50", type=int, nargs="*", default=[32, 128, 256], metavar="ROWS", help="Batch sizes.")
    parser.add_argument("--batches", type=int, default=8, help="Batches a measurement.")
    parser.add_argument("--rounds", type=int, default=3, help="Measurements, of which the median counts.")
    parser.add_argument(
        "--quick", action="store_true", help="Tiny and le_net alone, to see that it runs; nothing is kept."
    )
    chosen = parser.parse_args(arguments)
    os.environ["KERAS_BACKEND"] = "jax"
    if chosen.device == "cpu":
        os.environ["JAX_PLATFORMS"] = "cpu"
    import jax  # pyright: ignore[reportMissingImports]

    device = jax.devices()[0]
    if chosen.device == "gpu" and device.platform != "gpu":
        raise SystemExit(f"JAX sees no GPU, only {device.platform}: use --device cpu")
    sizes = {"le_net": chosen.le_net, "resnet50": chosen.resnet50}
    if chosen.quick:
        sizes, chosen.batches, chosen.rounds = {"le_net": [4]}, 1, 1
    lines = ["| model | batch | work | gradients an image | images/s | of the bare rate |", "|---|---|---|---|---|---|"]
    for name, batches in sizes.items():
        for rows in batches:
            lines += measured(name, rows, chosen.batches, chosen.rounds, pgd_steps=2 if chosen.quick else 40)
            print("\n".join(lines[-4:]), flush=True)
    if not chosen.quick:
        keep("gpu", f"{_versions(device)}\n\n{EXPLAINED}\n\n" + "\n".join(lines))


EXPLAINED = """The bare rate is that of a compiled gradient of the loss on images that are already on the device.
Attacks take images from the host's memory and give them back there; PGD draws its random starts on the host. A Madry
step is the attack of a training batch and the step of the optimizer, on the device. Of the bare rate: what the
gradients alone would take, as a share of the time."""


def measured(name: str, batch: int, batches: int, rounds: int, *, pgd_steps: int) -> list[str]:
    """The lines of one model and batch size."""
    shape, classes, eps = MODELS[name]
    generator = np.random.default_rng(0)
    images = generator.random((batch * batches, *shape), np.float32)
    labels = generator.integers(0, classes, len(images))
    image_set = ImageSet.from_arrays(images, labels, [str(label) for label in range(classes)])
    model = build(name, shape, classes)

    def attack(entry: dict[str, Any]) -> Callable[[], None]:
        config: Attack = parse_attack(entry | {"eps": eps, "batch_size": batch})

        def work() -> None:
            for _ in perturb_set(config, model, image_set, seed=0, class_count=classes):
                pass

        return work

    bare = len(images) / _median(_gradients(model, images[:batch], labels[:batch], batches), rounds)
    work = {
        "FGM": (1, attack({"method": "fgm"})),
        f"PGD-{pgd_steps}": (pgd_steps, attack({"method": "pgd", "steps": pgd_steps})),
        f"Madry step, PGD-{MADRY_STEPS}": (
            MADRY_STEPS + 1,
            _madry_steps(model, MadryTraining(eps=eps, steps=MADRY_STEPS), images[:batch], labels[:batch], batches),
        ),
    }
    lines = [f"| {name} | {batch:,} | bare gradient | 1 | {bare:,.0f} | |"]
    for what, (gradients, run) in work.items():
        rate = len(images) / _median(run, rounds)
        lines.append(f"| {name} | {batch:,} | {what} | {gradients} | {rate:,.0f} | {rate * gradients / bare:.0%} |")
    return lines


def _gradients(model: Any, images: np.ndarray, labels: np.ndarray, batches: int) -> Callable[[], None]:
    """As many gradients, each of one batch that is on the device."""
    import jax  # pyright: ignore[reportMissingImports]

    gradient = jax.jit(lambda x, y: compiled.loss_gradient(model, x, y, model.output_shape[-1])[0])
    on_device = jax.device_put((images, labels.astype(np.int32)))

    def work() -> None:
        results = [gradient(*on_device) for _ in range(batches)]
        jax.block_until_ready(results[-1])

    return work


def _madry_steps(
    model: Any, config: MadryTraining, images: np.ndarray, labels: np.ndarray, batches: int
) -> Callable[[], None]:
    """As many training steps on adversarial images, each compiled as one function of weights, optimizer and batch."""
    import jax  # pyright: ignore[reportMissingImports]
    import keras

    ops = compiled.keras_ops()
    optimizer: Any = keras.optimizers.Adam(1e-4)
    optimizer.build(model.trainable_variables)
    goals = labels.astype(np.int32)

    def loss(trainable: Any, fixed: Any, attacked: Any, goals: Any) -> tuple[Any, Any]:
        logits, fixed = model.stateless_call(trainable, fixed, attacked, training=True)
        return ops.mean(ops.sparse_categorical_crossentropy(goals, logits, from_logits=True)), fixed

    @jax.jit
    def step(state: Any, key: Any, images: Any, goals: Any) -> tuple[Any, Any]:
        trainable, fixed, moments = state
        key, drawn = jax.random.split(key)
        noise = jax.random.uniform(drawn, images.shape, minval=-1.0, maxval=1.0)
        weights = [
            *zip(model.trainable_variables, trainable, strict=True),
            *zip(model.non_trainable_variables, fixed, strict=True),
        ]
        with keras.StatelessScope(state_mapping=weights):
            attacked = adversarial_images(config, model, images, goals, noise)
        slopes, fixed = jax.grad(loss, has_aux=True)(trainable, fixed, jax.lax.stop_gradient(attacked), goals)
        trainable, moments = optimizer.stateless_apply(moments, slopes, trainable)
        return (trainable, fixed, moments), key

    begin = tuple(
        [variable.value for variable in variables]
        for variables in (model.trainable_variables, model.non_trainable_variables, optimizer.variables)
    )
    on_device = jax.device_put((images, goals))

    def work() -> None:
        state, key = begin, jax.random.key(0)
        for _ in range(batches):
            state, key = step(state, key, *on_device)
        jax.block_until_ready(state)

    return work


def _median(work: Callable[[], None], rounds: int) -> float:
    """Seconds, after one run that compiles and is not counted."""
    work()
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def _versions(device: Any) -> str:
    import jax  # pyright: ignore[reportMissingImports]
    import keras

    return f"{device.device_kind}; jax {jax.__version__}, keras {keras.__version__}, numpy {np.__version__}"


if __name__ == "__main__":
    main()
