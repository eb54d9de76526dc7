"""What a benchmark does on each of the two engines of Keras: the bare gradient, and a Madry step, compiled."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np

from dioptra_assets.robustness.attacks import compiled
from dioptra_assets.robustness.training.madry import MadryTraining, adversarial_images

Work = Callable[[], None]
# Images and labels of one batch.
Rows = tuple[np.ndarray, np.ndarray]


class Backend(ABC):
    """What both have in common: a function is compiled, batches are put on the device, and a result is waited for."""

    @abstractmethod
    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, compiled."""

    @abstractmethod
    def put(self, *arrays: np.ndarray) -> tuple[Any, ...]:
        """The arrays on the device."""

    @abstractmethod
    def wait(self, result: Any) -> None:
        """Until the device has computed it."""

    def gradients(self, model: Any, images: np.ndarray, labels: np.ndarray, batches: int) -> Work:
        """As many gradients, each of one batch that is on the device."""
        gradient = self.compiled(lambda x, y: compiled.loss_gradient(model, x, y, model.output_shape[-1])[0])
        on_device = self.put(images, labels.astype(np.int32))

        def work() -> None:
            results = [gradient(*on_device) for _ in range(batches)]
            self.wait(results[-1])

        return work


def _optimizer(model: Any) -> Any:
    import keras

    optimizer: Any = keras.optimizers.Adam(1e-4)
    optimizer.build(model.trainable_variables)
    return optimizer


class Tensorflow(Backend):
    """What the cells of this testbed run on."""

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """As a `tf.function`."""
        import tensorflow as tf

        return tf.function(function)

    def put(self, *arrays: np.ndarray) -> tuple[Any, ...]:
        """As constants."""
        import tensorflow as tf

        return tuple(tf.constant(array) for array in arrays)

    def wait(self, result: Any) -> None:
        """By copying it back."""
        np.asarray(result)

    def device(self, wanted: str) -> str:
        """The name of the device; ends the program where it is not the kind that is wanted."""
        import tensorflow as tf

        if wanted == "cpu":
            tf.config.set_visible_devices([], "GPU")
            return f"CPU; tensorflow {tf.__version__}"
        gpus = tf.config.list_physical_devices("GPU")
        if not gpus:
            raise SystemExit("TensorFlow sees no GPU: make setup GPU=1, or use --device cpu")
        name = tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU")
        return f"{name}; tensorflow {tf.__version__}"

    def madry_steps(self, model: Any, config: MadryTraining, rows: Rows, batches: int) -> Work:
        """As many training steps on adversarial images, each compiled as one function."""
        import tensorflow as tf

        ops, optimizer = compiled.keras_ops(), _optimizer(model)
        images, labels = rows
        on_device = self.put(images, labels.astype(np.int32))

        @tf.function
        def step(images: Any, goals: Any) -> Any:
            noise = tf.random.uniform(tf.shape(images), -1.0, 1.0)
            attacked = adversarial_images(config, model, images, goals, noise)
            with tf.GradientTape() as tape:
                logits = model(attacked, training=True)
                loss = ops.mean(ops.sparse_categorical_crossentropy(goals, logits, from_logits=True))
            optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
            return loss

        def work() -> None:
            losses = [step(*on_device) for _ in range(batches)]
            self.wait(losses[-1])

        return work


class Jax(Backend):
    """The same attacks and training, compiled by XLA; no TensorFlow is needed."""

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """By `jax.jit`."""
        import jax  # pyright: ignore[reportMissingImports]

        return jax.jit(function)

    def put(self, *arrays: np.ndarray) -> tuple[Any, ...]:
        """On the first device."""
        import jax  # pyright: ignore[reportMissingImports]

        return jax.device_put(arrays)

    def wait(self, result: Any) -> None:
        """Until it is ready."""
        import jax  # pyright: ignore[reportMissingImports]

        jax.block_until_ready(result)

    def device(self, wanted: str) -> str:
        """The name of the device; ends the program where it is not the kind that is wanted."""
        import jax  # pyright: ignore[reportMissingImports]

        found = jax.devices()[0]
        if wanted == "gpu" and found.platform != "gpu":
            raise SystemExit(f"JAX sees no GPU, only {found.platform}: use --device cpu")
        return f"{found.device_kind}; jax {jax.__version__}"

    def madry_steps(self, model: Any, config: MadryTraining, rows: Rows, batches: int) -> Work:
        """As many training steps on adversarial images, each compiled as one function of weights, moments and batch."""
        import jax  # pyright: ignore[reportMissingImports]
        import keras

        ops, optimizer = compiled.keras_ops(), _optimizer(model)
        images, labels = rows
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
        on_device = self.put(images, goals)

        def work() -> None:
            state, key = begin, jax.random.key(0)
            for _ in range(batches):
                state, key = step(state, key, *on_device)
            self.wait(state)

        return work
