"""Reading weights that others trained. Only here foreign file formats are known.

A network of kvision carries its reference's own names, so a torch key follows from a weight's path by the leaf rules
below; what differs beyond that stands in the architecture's `RENAMES`. All shapes are compared before anything is
written: on a mismatch nothing changes. No file can run code: torch's are read with `weights_only=True`, safetensors and
HDF5 hold arrays alone.
"""

from kvision.weights.loading import load as load
from kvision.weights.loading import load_published as load_published
from kvision.weights.loading import load_torch as load_torch
from kvision.weights.loading import set_epsilon as set_epsilon
from kvision.weights.sources import Published as Published
from kvision.weights.sources import WeightSources as WeightSources
from kvision.weights.sources import published_names as published_names
from kvision.weights.sources import remember as remember
