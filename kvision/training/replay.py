"""The batch at which a training broke, run again."""

import numpy as np
from keras import ops

from kvision.diagnosis import diagnose, read_batch_file


def replay(file, model):
    """Run the batch again at which `kvision.callbacks.Rollback` gave up, and look at every layer.

    The file holds the batch and the model's variables as they were, seeds of dropout included; nothing in it is
    unpickled. The model is left as it was.

    Args:
        file: Path of the `.npz` file that the error of `Rollback` names.
        model: A compiled `keras.Model`, built as the one that met the batch.

    Returns:
        A `kvision.training.Diagnosis`: printed, it is a table of the layers; `first` names the first one that is not
        finite, `samples` the samples of the batch.

    Raises:
        ValueError: If there is no such file, or it is no such batch, or that of another model.

    ```python
    print(kvision.training.replay("rollback-step-57.npz", model))
    ```
    """
    data, _, weights = read_batch_file(file)
    variables = model.variables
    given, expected = ([tuple(each.shape) for each in group] for group in (weights.values(), variables))
    if given != expected:
        parts = [pair for pair in zip(given, expected, strict=False) if pair[0] != pair[1]]
        got, want = parts[0] if parts else (f"{len(given)} variables", len(expected))
        raise ValueError(
            f"The batch of another model: got a variable of {got}, expected {want} for {model.name}. Build the model "
            "as the one that met the batch."
        )
    before = [np.array(ops.convert_to_numpy(variable)) for variable in variables]
    try:
        for variable, value in zip(variables, weights.values(), strict=True):
            variable.assign(value)
        return diagnose(model, data)
    finally:
        for variable, value in zip(variables, before, strict=True):
            variable.assign(value)
