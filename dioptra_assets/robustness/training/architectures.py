"""The model architectures. Every model takes float32 pixels in [0, 1] and gives logits.

Normalisation is a layer of the model, so a model that is attacked and a model that is evaluated cannot differ in range
or channel order. Every layer is named, so two models of one architecture have one config.

Why: docs/decisions/0007-logits.md
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import keras

ImageShape = tuple[int, int, int]
# keras.applications' ResNet50 and VGG16 were trained on BGR pixels of 0..255 less the mean colour of ImageNet.
IMAGENET_MEAN_BGR = (103.939, 116.779, 123.68)
IMAGENET_SHAPE = (224, 224, 3)
IMAGENET_CLASSES = 1000


@dataclass(frozen=True)
class Architecture:
    """What an architecture is, and which images it can take.

    Attributes:
        build: makes an untrained model from image shape and number of classes.
        min_size: the smallest height and width in pixels.
        channels: the numbers of channels it can take.
        pretrained: whether keras.applications has ImageNet weights for it.
    """

    build: Callable[[ImageShape, int], "keras.Model"]
    min_size: int
    channels: tuple[int, ...] = (1, 3)
    pretrained: bool = False


def check_fits(name: str, image_shape: ImageShape) -> None:
    """Refuse images that an architecture cannot take.

    Raises:
        ValueError: saying the size or channels given and what is allowed.
    """
    architecture = ARCHITECTURES[name]
    height, width, channels = image_shape
    if min(height, width) < architecture.min_size:
        size = architecture.min_size
        raise ValueError(f"{name} takes images of at least {size} x {size} pixels, these are {height} x {width}")
    if channels not in architecture.channels:
        allowed = " or ".join(map(str, architecture.channels))
        raise ValueError(f"{name} takes images of {allowed} channels, these have {channels}")


def build(name: str, image_shape: ImageShape, class_count: int) -> "keras.Model":
    """An untrained model.

    Args:
        name: a key of `ARCHITECTURES`.
        image_shape: (height, width, channels).
        class_count: number of logits.

    Raises:
        ValueError: when the architecture cannot take such images.
    """
    check_fits(name, image_shape)
    return ARCHITECTURES[name].build(image_shape, class_count)


def shallow_net(image_shape: ImageShape, class_count: int) -> "keras.Model":
    """One hidden layer of 32 sigmoid units."""
    from keras import Sequential, layers

    return Sequential(
        [
            layers.Input(image_shape, name="pixels"),
            layers.Flatten(name="flatten"),
            layers.Dense(32, activation="sigmoid", name="hidden"),
            layers.Dense(class_count, name="logits"),
        ],
        name="shallow_net",
    )


def le_net(image_shape: ImageShape, class_count: int) -> "keras.Model":
    """Two 3x3 convolutions, pooling and a dense layer: the demos' LeNet, after LeCun et al. 1998."""
    from keras import Sequential, layers

    return Sequential(
        [
            layers.Input(image_shape, name="pixels"),
            layers.Conv2D(32, 3, activation="relu", name="conv1"),
            layers.Conv2D(64, 3, activation="relu", name="conv2"),
            layers.MaxPooling2D(2, name="pool"),
            layers.Dropout(0.25, name="dropout1"),
            layers.Flatten(name="flatten"),
            layers.Dense(128, activation="relu", name="hidden"),
            layers.Dropout(0.5, name="dropout2"),
            layers.Dense(class_count, name="logits"),
        ],
        name="le_net",
    )


def alex_net(image_shape: ImageShape, class_count: int) -> "keras.Model":
    """The demos' AlexNet, after Krizhevsky et al. 2012, with batch normalisation and tanh dense layers."""
    from keras import Sequential, layers

    return Sequential(
        [
            layers.Input(image_shape, name="pixels"),
            layers.Conv2D(96, 11, strides=4, activation="relu", name="conv1"),
            layers.MaxPooling2D(3, strides=2, name="pool1"),
            layers.BatchNormalization(name="norm1"),
            layers.Conv2D(256, 5, activation="relu", name="conv2"),
            layers.MaxPooling2D(3, strides=2, name="pool2"),
            layers.BatchNormalization(name="norm2"),
            layers.Conv2D(256, 3, activation="relu", name="conv3"),
            layers.Conv2D(384, 3, activation="relu", name="conv4"),
            layers.Conv2D(384, 3, activation="relu", name="conv5"),
            layers.MaxPooling2D(3, strides=2, name="pool3"),
            layers.BatchNormalization(name="norm3"),
            layers.Flatten(name="flatten"),
            layers.Dense(4096, activation="tanh", name="hidden1"),
            layers.Dropout(0.5, name="dropout1"),
            layers.Dense(4096, activation="tanh", name="hidden2"),
            layers.Dropout(0.5, name="dropout2"),
            layers.Dense(class_count, name="logits"),
        ],
        name="alex_net",
    )


def resnet50(image_shape: ImageShape, class_count: int) -> "keras.Model":
    """ResNet-50 of keras.applications (He et al. 2015, arXiv 1512.03385)."""
    from keras import applications

    return _with_imagenet_preprocessing(applications.ResNet50, "resnet50", image_shape, class_count)


def vgg16(image_shape: ImageShape, class_count: int) -> "keras.Model":
    """VGG-16 of keras.applications (Simonyan and Zisserman 2014, arXiv 1409.1556)."""
    from keras import applications

    return _with_imagenet_preprocessing(applications.VGG16, "vgg16", image_shape, class_count)


def _with_imagenet_preprocessing(
    application: Callable[..., "keras.Model"], name: str, image_shape: ImageShape, class_count: int
) -> "keras.Model":
    import numpy as np
    from keras import Model, layers

    pixels = layers.Input(image_shape, name="pixels")
    # RGB in [0, 1] to BGR in 0..255 less the mean, as a fixed 1x1 convolution: a saved model needs no code of ours.
    preprocessing = layers.Conv2D(3, 1, trainable=False, name="preprocessing")
    scaled = preprocessing(pixels)
    preprocessing.set_weights([255.0 * np.eye(3)[::-1].reshape(1, 1, 3, 3), -np.array(IMAGENET_MEAN_BGR)])
    body = application(
        weights=None, input_shape=image_shape, classes=class_count, classifier_activation=None, name=f"{name}_body"
    )
    return Model(pixels, body(scaled), name=name)


ARCHITECTURES: dict[str, Architecture] = {
    "shallow_net": Architecture(shallow_net, min_size=1),
    "le_net": Architecture(le_net, min_size=6),
    "alex_net": Architecture(alex_net, min_size=195),
    "resnet50": Architecture(resnet50, min_size=32, channels=(3,), pretrained=True),
    "vgg16": Architecture(vgg16, min_size=32, channels=(3,), pretrained=True),
}
