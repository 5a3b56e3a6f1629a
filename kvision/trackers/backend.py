"""What only the system and the backend know of a run: which process this is, and its memory."""

import contextlib
import sys

import keras

if keras.backend.backend() == "jax":
    from kvision.trackers._backend_jax import device_memory as device_memory
    from kvision.trackers._backend_jax import is_first_process as is_first_process
else:
    from kvision.trackers._backend_tensorflow import device_memory as device_memory
    from kvision.trackers._backend_tensorflow import is_first_process as is_first_process

with contextlib.suppress(ImportError):  # Windows has none
    import resource


def process_memory():
    """The most bytes that this process has held, or None where the system does not tell."""
    if "resource" not in globals():
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
