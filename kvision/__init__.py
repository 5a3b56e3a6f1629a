"""High-level vision training for Keras 3: networks, layers, callbacks that say what is wrong with a run.

The rooms that define what Keras must find in a saved model are imported here; the others load on first use.
"""

import importlib

from kvision import applications as applications
from kvision import layers as layers
from kvision import losses as losses
from kvision import metrics as metrics
from kvision import network as network
from kvision import optimizers as optimizers
from kvision import test_time as test_time
from kvision.detection import detector as detector

__version__ = "0.1.0"

_ON_FIRST_USE = ("callbacks", "data", "drawing", "trackers", "training", "visualize", "weights")


def __getattr__(name):
    if name in _ON_FIRST_USE:
        return importlib.import_module(f"kvision.{name}")
    raise AttributeError(f"module 'kvision' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *_ON_FIRST_USE])
