"""Reading weights that others trained. Only here foreign file formats are known.

A network of kvision carries its reference's own names, so a torch key follows from a weight's path by the leaf rules
of `torch_names`; what differs beyond that stands in the architecture's `RENAMES`. All shapes and types are compared
before anything is written: on a mismatch nothing changes. No file can run code: torch's are read with
`weights_only=True`, safetensors and HDF5 hold arrays alone; and what a header declares is compared with the size of the
file before memory is taken for it.
"""

from kvision.weights.keras_file import saved_layers as saved_layers
from kvision.weights.loading import load as load
from kvision.weights.loading import load_published as load_published
from kvision.weights.loading import load_torch as load_torch
from kvision.weights.loading import set_epsilon as set_epsilon
from kvision.weights.sources import Published as Published
from kvision.weights.sources import WeightSources as WeightSources
from kvision.weights.sources import published_names as published_names
from kvision.weights.sources import remember as remember
from kvision.weights.sources import sources_of as sources_of
