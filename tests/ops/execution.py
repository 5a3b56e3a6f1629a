"""Run a function of tensors as a model would: eagerly, in a graph that does not know its batch size, or compiled."""

import keras
import numpy as np

MODES = ("eager", "graph", "jit")  # on JAX "graph" is "jit"


def execute(function, *arguments, mode="eager"):
    """`function(*arguments)` as NumPy arrays. In a graph of TensorFlow the first axis of every argument is unknown."""
    tensors = [keras.ops.convert_to_tensor(argument) for argument in arguments]
    if mode != "eager" and keras.backend.backend() == "jax":
        import jax

        function = jax.jit(function)
    elif mode != "eager":
        import tensorflow as tf

        signature = [tf.TensorSpec([None, *tensor.shape[1:]], tensor.dtype) for tensor in tensors]
        function = tf.function(function, signature, autograph=False, jit_compile=mode == "jit")
    return keras.tree.map_structure(keras.ops.convert_to_numpy, function(*tensors))


def random_boxes(rng, *shape, size=100, whole=False):
    """Boxes `[*shape, 4]` as corners within 0…size, float32. `whole` puts them on pixels: many ties, some empty."""
    if whole:
        corner = rng.integers(0, size, (*shape, 2))
        return np.concatenate([corner, rng.integers(corner, size, endpoint=True)], axis=-1).astype("float32")
    return np.sort(rng.uniform(0, size, (*shape, 2, 2)), axis=-2).reshape(*shape, 4).astype("float32")


def iou_twin(box1, box2):
    """Intersection over union of two boxes, in plain numbers."""
    width = max(min(box1[2], box2[2]) - max(box1[0], box2[0]), 0)
    height = max(min(box1[3], box2[3]) - max(box1[1], box2[1]), 0)
    union = area_twin(box1) + area_twin(box2) - width * height
    return width * height / union if union > 0 else 0.0


def area_twin(box):
    """Area of one box, in plain numbers."""
    return max(box[2] - box[0], 0) * max(box[3] - box[1], 0)
