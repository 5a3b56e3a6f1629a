"""Which units of ReLUs were above 0."""

from keras import ops

from kvision._keras import replaced
from kvision.relus import bare_relus
from kvision.trackers.events import unique_names


def active_units(outputs):
    """[units] bool: which units, along the last axis, are above 0 (or NaN) anywhere."""
    return ops.logical_not(ops.max(ops.stop_gradient(outputs), axis=tuple(range(len(outputs.shape) - 1))) <= 0)


def named_bare_relus(model):
    """`(name, operation)` of the ReLUs in the graphs of `model` that no layer holds."""
    operations = bare_relus(model)
    return list(zip(unique_names(operation.name for operation in operations), operations, strict=True))


def inactive_on(data, model, operations):
    """`{name: [units] bool}`: units of bare ReLUs that are 0 for all of `data`, by one forward pass."""
    active = {}

    def recording(name, call):
        def recorded(*args, **kwargs):
            outputs = call(*args, **kwargs)
            axes = tuple(range(len(outputs.shape) - 1))
            active[name] = active.get(name, False) | ops.convert_to_numpy(ops.any(outputs > 0, axis=axes))
            return outputs

        return recorded

    with replaced([(operation, "call", recording(name, operation.call)) for name, operation in operations]):
        model(data, training=False)
    return {name: ~units for name, units in active.items()}
