"""What only TensorFlow knows of a run."""

import tensorflow as tf


def is_first_process(model):
    """Whether this process is the first of those that train `model`."""
    strategy = getattr(model, "distribute_strategy", None)
    return strategy is None or bool(strategy.extended.should_checkpoint)


def device_memory():
    """The most bytes that this run has held on one accelerator; None on a CPU."""
    names = [device.name.removeprefix("/physical_device:") for device in tf.config.list_physical_devices("GPU")]
    return max((tf.config.experimental.get_memory_info(name)["peak"] for name in names), default=None)
