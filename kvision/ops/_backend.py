"""The one place that picks the backend's own kernels."""

import keras

if keras.backend.backend() == "tensorflow":
    from kvision.ops import _tensorflow as kernels
elif keras.backend.backend() == "jax":
    from kvision.ops import _jax as kernels
else:
    raise ImportError(
        f"kvision runs on TensorFlow and JAX: got the Keras backend {keras.backend.backend()!r}, "
        "expected 'tensorflow' or 'jax'. Set KERAS_BACKEND before importing keras."
    )

__all__ = ["kernels"]
