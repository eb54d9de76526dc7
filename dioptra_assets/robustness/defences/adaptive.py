"""The attacker who knows the defence: model and defence attacked together.

A defence that an attack does not see stops it at times only because the attack was not aimed at it. What a
preprocessing defence is worth is told by an attack on the whole (Athalye et al. 2018, arXiv 1802.00420; Tramer et al.
2020, arXiv 2002.08347), so its oblivious and its adaptive number belong side by side.
"""

import functools
import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np

from dioptra_assets.robustness.defences.base import AddsNoise, Defence
from dioptra_assets.robustness.model_cache import made_of
from dioptra_assets.robustness.seeds import derive_seed

DEFAULT_EOT_SAMPLES = 10


class DefendedModel:
    """A model behind a defence, with what attacks use of a Keras model; made by :func:`defended_model`."""

    def __init__(self, model: Any, defence: Defence, seed: int, eot_samples: int) -> None:
        self.model = model
        self.defence = defence
        self.eot_samples = eot_samples
        # Not the streams that a defended set is drawn from: the attacker knows the defence, not its dice.
        self._seeds = [derive_seed(seed, "expectation over transformation", str(i)) for i in range(eot_samples)]

    @property
    def stands_for(self) -> Any:
        """The model, which it is kept in memory with."""
        return self.model

    @property
    def images_a_query(self) -> int:
        """How many images the model is given for one."""
        return self.eot_samples if self.defence.draws else 1

    @property
    def name(self) -> str:
        """What errors call it."""
        return f"{self.model.name} behind {self.defence.method}"

    @property
    def input_shape(self) -> tuple[int | None, ...]:
        """(None, height, width, channels)."""
        return self.model.input_shape

    @property
    def output_shape(self) -> tuple[int | None, ...]:
        """(None, classes)."""
        return self.model.output_shape

    @property
    def layers(self) -> list[Any]:
        """The layers of the model."""
        return self.model.layers

    def __call__(self, images: Any, training: bool = False) -> Any:
        """Logits [rows, classes] of float32 images [rows, height, width, channels]; the mean over draws, if any."""
        import tensorflow as tf

        images = tf.convert_to_tensor(images, tf.float32)
        if not self.defence.draws:
            return self.model(_straight_through(functools.partial(_same, self.defence), images), training=training)
        drawn = self._with_noise(images) if isinstance(self.defence, AddsNoise) else self._drawn(images)
        logits = self.model(drawn, training=training)
        return tf.reduce_mean(tf.reshape(logits, [self.eot_samples, -1, logits.shape[-1]]), axis=0)

    def _with_noise(self, images: Any) -> Any:
        """All draws one after the other, [samples * rows, height, width, channels]."""
        import tensorflow as tf

        noise = tf.ensure_shape(tf.numpy_function(self._noise, [images], tf.float32), [self.eot_samples, *images.shape])
        noisy = tf.clip_by_value(images[None] + noise, 0.0, 1.0)
        return tf.reshape(noisy, [-1, *images.shape[1:]])

    def _drawn(self, images: Any) -> Any:
        """As :meth:`_with_noise`, of any other defence that draws: forwards as it is, backwards the identity."""
        import tensorflow as tf

        draw = functools.partial(_draw, self.defence, self._seeds)
        return _straight_through(draw, tf.tile(images, [self.eot_samples, 1, 1, 1]))

    def _noise(self, images: np.ndarray) -> np.ndarray:
        """float32 [samples, rows, height, width, channels]."""
        assert isinstance(self.defence, AddsNoise)
        keys = _keys(images)
        return np.stack([self.defence.noise(images.shape, keys=keys, seed=seed) for seed in self._seeds])


def _same(defence: Defence, images: np.ndarray) -> np.ndarray:
    """What a defence that does not draw makes of images."""
    return defence.transform(images, rows=np.zeros(len(images), np.int64), seed=0)


def _draw(defence: Defence, seeds: list[int], images: np.ndarray) -> np.ndarray:
    """What a defence that draws makes of images that stand there once for each seed."""
    parts = np.split(images, len(seeds))
    rows = (_keys(parts[0]) >> np.uint64(1)).astype(np.int64)
    return np.concatenate(
        [defence.transform(part, rows=rows, seed=seed) for part, seed in zip(parts, seeds, strict=True)]
    )


def _keys(images: np.ndarray) -> np.ndarray:
    """For each image what its draws depend on, uint64: anew for each step of an attack, the same in any batch.

    A model is not told step and row. The pixels tell both, but for a rounding, which must not change the draws.
    """
    rounded = np.rint(images * 4095.0).astype(np.int32)
    digests = b"".join(hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in rounded)
    return np.frombuffer(digests, "<u8")


def defended_model(model: Any, defence: Defence, seed: int, eot_samples: int = DEFAULT_EOT_SAMPLES) -> Any:
    """What an adaptive attack attacks: a stand-in for the model, to be handed to `perturb_set` in its place.

    Smoothing and JPEG are applied forwards and taken for the identity backwards, since their output is near their input
    (backward pass differentiable approximation, BPDA: Athalye et al. 2018, section 4.1). Of a defence that draws the
    logits are the mean over `eot_samples` draws, so their gradient is the mean of the draws' gradients (expectation
    over transformation, EOT: section 4.2), through noise exactly, clipping included, and through any other draw as
    above. The draws are new whenever the pixels are, depend on nothing else but
    `seed`, and are not those of a defended set.

    The same arguments give the same object, so attacks that are compiled once a model are compiled once here too.

    Args:
        model: a Keras model that gives logits, on the backend TensorFlow.
        defence: with `apply_predict` false it does not stand before the model, and the model itself is given back.
        seed: of the cell, 0 or more.
        eot_samples: draws of a random defence, at least 1; memory and time of an attack grow with it. Without effect
            on the others.

    Raises:
        ValueError: when `eot_samples` is below 1.
        RuntimeError: when Keras does not run on TensorFlow.
    """
    import keras

    if eot_samples < 1:
        raise ValueError(f"eot_samples is {eot_samples}, it must be at least 1")
    if keras.backend.backend() != "tensorflow":
        raise RuntimeError(
            f"adaptive attacks need Keras on tensorflow, not on {keras.backend.backend()}: set KERAS_BACKEND to "
            "tensorflow"
        )
    if not defence.apply_predict:
        return model
    key = "defended", defence, seed, eot_samples
    return made_of(model, key, lambda: DefendedModel(model, defence, seed, eot_samples))


def _straight_through(transform: Callable[[np.ndarray], np.ndarray], images: Any) -> Any:
    """The transformed images, with the gradient of the identity.

    TensorFlow never lets go of a gradient that was named in a graph: `transform` must not hold a model.
    """
    import tensorflow as tf

    @tf.custom_gradient
    def through(x: Any) -> Any:
        transformed = tf.ensure_shape(tf.numpy_function(transform, [x], tf.float32), x.shape)
        return transformed, lambda upstream: upstream

    return through(images)
