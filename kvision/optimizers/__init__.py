"""Schedules and optimizers that Keras lacks."""

from kvision.optimizers.schedules import (
    EveryEpochs,
    ExponentialCyclical,
    MultiStep,
    OneCycle,
    Triangular,
    Triangular2,
)
from kvision.optimizers.sgd import SGD

__all__ = ["SGD", "EveryEpochs", "ExponentialCyclical", "MultiStep", "OneCycle", "Triangular", "Triangular2"]
