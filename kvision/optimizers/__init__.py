"""Schedules and optimizers that Keras lacks."""

from kvision.optimizers.adamw import AdamW
from kvision.optimizers.cyclical import ExponentialCyclical, OneCycle, Triangular, Triangular2
from kvision.optimizers.schedules import EveryEpochs, MultiStep
from kvision.optimizers.sgd import SGD

__all__ = ["SGD", "AdamW", "EveryEpochs", "ExponentialCyclical", "MultiStep", "OneCycle", "Triangular", "Triangular2"]
