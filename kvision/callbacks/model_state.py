"""The whole state of a model in memory: copied between two steps, and put back."""

import re

import keras
import numpy as np

from kvision._keras import global_seed_variable
from kvision.trackers.events import unique_names

GROUPS = ("model", "optimizer", "metrics", "seeds")


def state_variables(model, groups=GROUPS):
    """`{"group/path": variable}` of all that training changes, each variable once.

    - `"model"`: weights, moving statistics and the seeds of dropout and the like.
    - `"optimizer"`: its steps, rate, slots, moving averages and accumulated gradients, and the loss scale.
    - `"metrics"`: the running sums of the epoch; those that a first batch makes are missing before it.
    - `"seeds"`: Keras's global seed, once something has drawn from it.

    On JAX the variables are brought up to date within an epoch. An optimizer that was not built is built.

    Args:
        model: A built and compiled `keras.Model`.
        groups: Which of the groups; all by default.
    """
    if hasattr(model, "jax_state_sync"):
        model.jax_state_sync()
    optimizer = getattr(model, "optimizer", None)
    if "optimizer" in groups and optimizer is not None and not optimizer.built and model.built:
        optimizer.build(model.trainable_variables)
    seed = global_seed_variable()
    of_group = {
        "model": model.variables,
        "optimizer": getattr(optimizer, "variables", ()),
        "metrics": model.metrics_variables,
        "seeds": () if seed is None else (seed,),
    }
    seen, variables = set(), {}
    for group in GROUPS:
        new = [v for v in {id(v): v for v in of_group[group]}.values() if id(v) not in seen]
        seen |= set(map(id, new))
        if group in groups:
            names = unique_names(f"{group}/{variable.path}" for variable in new)
            variables |= dict(zip(names, new, strict=True))
    return variables


def copy_state(model, groups=GROUPS):
    """The values of `state_variables(model, groups)`, as NumPy arrays that later steps leave alone."""
    variables = state_variables(model, groups)
    return {name: _copied(variable) for name, variable in variables.items()}


def restore_state(model, state):
    """Put back what `copy_state` gave, all of it or some entries; bit for bit, dtypes included.

    Args:
        model: The model, or one that is built alike: where the names differ because Keras numbered the layers anew,
            variables are taken in order.
        state: `{"group/path": array}`.

    Raises:
        ValueError: If the state is not one of such a model; nothing is changed then.
    """
    groups = tuple(dict.fromkeys(name.partition("/")[0] for name in state))
    variables = state_variables(model, groups)
    if not state.keys() <= variables.keys():
        variables = _in_order(model, state, variables)
    for name, array in state.items():
        if _kind(array) != _kind(variables[name]):
            raise _other_model(model, name, _kind(array), _kind(variables[name]))
    for name, array in state.items():
        variables[name].assign(array)


def _copied(variable):
    array = np.asarray(variable)  # on TensorFlow a copy; on JAX a view of memory that the next step may reuse
    return array if array.flags.owndata and array.flags.writeable else np.array(array)


def _in_order(model, state, variables):
    """The variables under the names of `state`, where only the numbers in the names differ."""
    given, present = list(state), list(variables)
    for name, other in zip(given, present, strict=False):
        got, expected = _described(name, state[name]), _described(other, variables[other])
        if got != expected:
            raise _other_model(model, name, got, expected)
    if len(given) != len(present):
        more = (given if len(given) > len(present) else present)[min(len(given), len(present))]
        raise _other_model(model, more, f"{len(given)} variables", len(present))
    return dict(zip(given, variables.values(), strict=True))


def _described(name, value):
    """What a variable is, without the scopes and numbers in its name, which depend on what was built before it."""
    shape, dtype = _kind(value)
    return f"{name.partition('/')[0]} {re.sub(r'_[0-9]+(?=[_ ]|$)', '', name.rpartition('/')[2])} of {dtype} {shape}"


def _kind(value):
    return tuple(value.shape), keras.backend.standardize_dtype(value.dtype)


def _other_model(model, name, got, expected):
    return ValueError(
        f"The saved state is not one of {model.name}: at {name!r} got {got}, expected {expected}. Build and compile "
        "the model as when it was saved."
    )
