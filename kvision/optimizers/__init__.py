"""Schedules and optimizers that Keras lacks."""

from kvision.optimizers.schedules import (
    EveryEpochs,
    ExponentialCyclical,
    MultiStep,
    OneCycle,
    Triangular,
    Triangular2,
)

__all__ = ["EveryEpochs", "ExponentialCyclical", "MultiStep", "OneCycle", "Triangular", "Triangular2"]
