"""The device a cell runs on."""

import os


def prepare_device() -> str:
    """Make TensorFlow share a GPU and repeat itself, and say what it runs on.

    Called before a cell does any work with TensorFlow. Memory growth keeps one cell from taking a whole GPU.

    Returns:
        `GPU NAME` or `CPU`.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        try:
            tf.config.experimental.set_memory_growth(gpu, True)
        except RuntimeError:
            break  # the GPU is in use already: growth was set before that, or cannot be any more
    tf.config.experimental.enable_op_determinism()
    if not gpus:
        return "CPU"
    return f"GPU {tf.config.experimental.get_device_details(gpus[0]).get('device_name', '')}".strip()
