"""What only JAX knows of a run."""

import jax


def is_first_process(model):
    """Whether this process is the first of those that train `model`."""
    return jax.process_index() == 0


def device_memory():
    """The most bytes that this run has held on one accelerator; None on a CPU."""
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.local_devices()]
    return max((peak for peak in peaks if peak), default=None)
