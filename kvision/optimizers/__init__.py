"""Schedules and optimizers that Keras lacks."""

from kvision.optimizers.cyclical import ExponentialCyclical, OneCycle, Triangular, Triangular2
from kvision.optimizers.schedules import EveryEpochs, MultiStep
from kvision.optimizers.sgd import SGD

__all__ = ["SGD", "EveryEpochs", "ExponentialCyclical", "MultiStep", "OneCycle", "Triangular", "Triangular2"]
