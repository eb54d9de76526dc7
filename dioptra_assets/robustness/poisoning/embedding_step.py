"""The training step of the adversarial embedding: a model and a discriminator of its features, in turn."""

import math
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    import keras


def kind_weights(target_class: int, index: pd.DataFrame) -> tuple[float, float]:
    """What a clean and a poisoned row of the target class weigh in the discriminator's loss, both kinds the same.

    A row of another class weighs nothing. The mean of the weights over all rows is 1, or 0 where a kind is missing:
    there is then nothing to tell apart.
    """
    poisoned = int(index["poisoned"].sum())
    clean = int((index["label"] == target_class).sum()) - poisoned
    if not poisoned or not clean:
        return 0.0, 0.0
    return len(index) / (2 * clean), len(index) / (2 * poisoned)


def with_features(model: "keras.Model", feature_layer: int | str) -> "keras.Model":
    """The model with two outputs, the output of a layer and the logits.

    In a network wrapped in preprocessing (resnet50, vgg16) names and indices are those of the network itself.

    Raises:
        ValueError: when there is no such layer, naming those there are.
    """
    import keras

    inner = model.layers[-1]
    if isinstance(inner, keras.Model):
        images = model.inputs[0]
        scaled = images
        for layer in model.layers[:-1]:
            scaled = scaled if isinstance(layer, keras.layers.InputLayer) else layer(scaled)
        return keras.Model(images, with_features(inner, feature_layer)(scaled))
    names = [layer.name for layer in model.layers]
    if isinstance(feature_layer, str):
        index = names.index(feature_layer) if feature_layer in names else None
    else:
        index = feature_layer if -len(names) <= feature_layer < len(names) else None
    if index is None:
        listed = ", ".join(f"{number} {name}" for number, name in enumerate(names))
        raise ValueError(f"feature_layer is {feature_layer!r}: {model.name} has the layers {listed}")
    return keras.Model(model.inputs, [model.layers[index].output, model.outputs[0]])


def make_trainer(
    model: "keras.Model",
    *,
    target_class: int,
    weights: tuple[float, float],
    feature_layer: int | str,
    layer_sizes: tuple[int, int],
    regularization_factor: float,
    learning_rate: float,
) -> Any:
    """A Keras model whose training step trains `model` and a discriminator of its features in turn.

    Args:
        model: gives logits.
        target_class: class of the rows that the discriminator sees.
        weights: see :func:`kind_weights`.
        feature_layer: see :func:`with_features`.
        layer_sizes: units of the discriminator's two layers.
        regularization_factor: weight of hiding against classifying.
        learning_rate: of the discriminator, trained by Adam.

    Returns:
        Not compiled yet; to be fitted on images and coded labels, 2 * label + poisoned.

    Raises:
        ValueError: when the model has no such feature layer.
    """
    import keras
    import tensorflow as tf

    joint = with_features(model, feature_layer)
    width = math.prod(joint.outputs[0].shape[1:])
    discriminator = keras.Sequential(
        [
            keras.layers.Input((width,)),
            keras.layers.Dense(layer_sizes[0]),
            keras.layers.LeakyReLU(0.2),
            keras.layers.Dense(layer_sizes[1]),
            keras.layers.LeakyReLU(0.2),
            keras.layers.Dense(1),
        ]
    )
    discriminator_optimizer = keras.optimizers.Adam(learning_rate)
    discriminator_optimizer.build(discriminator.trainable_variables)
    names = ("loss", "accuracy", "discriminator_loss", "discriminator_accuracy")

    class Trainer(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.joint, self.discriminator = joint, discriminator
            self.means: Any = {name: keras.metrics.Mean(name) for name in names}
            self.built = True

        @property
        def metrics(self) -> list[Any]:
            return list(self.means.values())

        def call(self, images: Any, training: bool = False) -> Any:
            return joint(images, training=training)[1]

        def train_step(self, data: Any) -> dict[str, Any]:
            images, coded = data
            labels, poisoned = coded // 2, tf.cast(coded % 2, tf.float32)
            kind = tf.where(coded % 2 == 1, weights[1], weights[0])
            weight = tf.where(labels == target_class, kind, 0.0)
            with tf.GradientTape(persistent=True) as tape:
                features, logits = joint(images, training=True)
                score = discriminator(tf.reshape(features, (-1, width)), training=True)[:, 0]
                losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
                loss = tf.reduce_mean(losses)
                told_apart = tf.nn.sigmoid_cross_entropy_with_logits(poisoned, score)
                recognition = tf.reduce_mean(weight * told_apart)
                undecided = tf.nn.sigmoid_cross_entropy_with_logits(tf.fill(tf.shape(score), 0.5), score)
                confusion = tf.reduce_mean(weight * undecided)
            hiding, classifying = tape.gradient(confusion, features), tape.gradient(loss, features)
            most = tf.math.divide_no_nan(tf.norm(classifying), tf.norm(hiding))
            pull = tf.minimum(regularization_factor, most) * hiding
            # One way back through the layers below the features, for both.
            gradients = tape.gradient(
                [loss, features], model.trainable_variables, output_gradients=[tf.ones_like(loss), pull]
            )
            own = tape.gradient(recognition, discriminator.trainable_variables)
            self.optimizer.apply(gradients, model.trainable_variables)
            discriminator_optimizer.apply(own, discriminator.trainable_variables)
            self._note(losses, logits, labels)
            self.means["discriminator_loss"].update_state(told_apart, weight)
            right = tf.cast(tf.equal(score > 0, poisoned > 0), tf.float32)
            self.means["discriminator_accuracy"].update_state(right, weight)
            return {name: mean.result() for name, mean in self.means.items()}

        def test_step(self, data: Any) -> dict[str, Any]:
            images, coded = data
            logits = joint(images, training=False)[1]
            self._note(tf.nn.sparse_softmax_cross_entropy_with_logits(coded // 2, logits), logits, coded // 2)
            return {name: self.means[name].result() for name in ("loss", "accuracy")}

        def _note(self, losses: Any, logits: Any, labels: Any) -> None:
            self.means["loss"].update_state(losses)
            right = tf.equal(tf.argmax(logits, axis=1, output_type=labels.dtype), labels)
            self.means["accuracy"].update_state(tf.cast(right, tf.float32))

    return Trainer()
