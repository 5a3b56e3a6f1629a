"""What is compared before anything is written: the weights of a model, and what a file has instead."""

import dataclasses

import keras
import numpy as np

from kvision._keras import layers_of, own_variables, print_message
from kvision.weights.files import Refused
from kvision.weights.sources import sources_of

OTHER_CLASSES = "the file has another number of classes"


@dataclasses.dataclass(frozen=True)
class Entry:
    """A weight of a model, and what the file has for it.

    Args:
        layer: That owns the weight, or None.
        variable: The weight, or what Keras saves in its place.
        path: Of the weight, for messages.
        value: An array in Keras's layout, or what becomes one by `np.asarray`; its `shape` and `dtype` are looked at
            before it is read. None: the file has none.
        key: What the file calls it; None: as the model does.
    """

    layer: object
    variable: object
    path: str
    value: object = None
    key: str | None = None

    @property
    def wanted(self):
        return tuple(self.variable.shape)

    @property
    def given(self):
        return None if self.value is None else tuple(self.value.shape)


@dataclasses.dataclass(frozen=True)
class Fitted:
    """What is to be written: `arrays` with their entries, and what is told: the layers that keep their fresh weights,
    by reason, and those whose kernel is a sum over the input channels."""

    arrays: list
    fresh: dict
    summed: list

    def tell(self, model):
        """One line, if there is something to tell."""
        facts = [
            f"{', '.join(layers)} {'starts' if len(layers) == 1 else 'start'} fresh: {reason}"
            for reason, layers in self.fresh.items()
        ]
        facts += [f"the kernel of {layer} is the sum over the file's input channels" for layer in self.summed]
        if facts:
            print_message(f"{model.name}: {'; '.join(facts)}.")


def weights_of(model):
    """Every weight with the layer that owns it, nested models included; states of random generators left out."""
    seen = set()
    for layer in layers_of(model):
        for variable in own_variables(layer):
            if id(variable) not in seen and not variable.path.endswith("seed_generator_state"):
                seen.add(id(variable))
                yield layer, variable


def compared(model, entries, surplus, count):
    """The `Fitted` of what a file has, or the ValueError that says what does not fit.

    A layer of the top (`WeightSources.top`) that the file lacks, or has with another number of outputs, stays fresh;
    nothing else may differ.

    Args:
        model: For its name, its input and its top.
        entries: `[Entry]`, of every weight of the model.
        surplus: What the file calls arrays that no weight of the model is for.
        count: Of the arrays in the file.
    """
    fresh = _fresh_layers(entries, sources_of(model))
    arrays, faults, summed = [], [], []
    for entry in entries:
        if entry.layer is not None and entry.layer.name in fresh:
            continue
        if entry.value is None:
            faults.append(("missing", f"{entry.path}: wants {entry.wanted}{_from(entry)}, which is not there"))
            continue
        value = entry.value
        if entry.given != entry.wanted:
            value = _refitted(model, entry)
            if value is None:
                faults.append((_kind(entry), f"{entry.path}: wants {entry.wanted}, {_file(entry)} gives {entry.given}"))
                continue
            if _is_grey(model, entry):
                summed.append(entry.layer.name)
        wanted, given = (keras.backend.standardize_dtype(entry.variable.dtype), str(value.dtype))
        if _family(wanted) != _family(given):
            faults.append(("dtype", f"{entry.path}: wants {wanted}, {_file(entry)} gives {given}"))
            continue
        arrays.append((entry, np.asarray(value, dtype=np.dtype(wanted))))
    faults += [("surplus", f"{key!r} of the file has no counterpart in the model") for key in surplus]
    if faults:
        raise _mismatch(model, faults, count)
    return Fitted(arrays, _reasons(fresh, entries), summed)


def _fresh_layers(entries, sources):
    """`{layer name: reason}` of the layers of the top whose weights the file does not have."""
    layers = {}
    for entry in entries:
        if entry.layer is not None and sources.is_top(entry.layer.name):
            layers.setdefault(entry.layer.name, []).append(entry)
    fresh = {}
    for name, own in layers.items():
        if all(entry.value is None for entry in own):
            fresh[name] = "the file has none"
        elif all(entry.value is not None and _kind(entry) == "outputs" for entry in own):
            fresh[name] = OTHER_CLASSES
    return fresh


def _reasons(fresh, entries):
    """`{reason: names of layers}` of what starts fresh; other numbers of classes with those of the outputs."""
    reasons = {}
    for layer, reason in fresh.items():
        reasons.setdefault(reason, []).append(layer)
    if OTHER_CLASSES in reasons:
        layers = reasons.pop(OTHER_CLASSES)
        own = [entry for entry in entries if entry.layer is not None and entry.layer.name in layers]
        pairs = dict.fromkeys(f"{entry.given[-1]} outputs, here {entry.wanted[-1]}" for entry in own)
        reasons[f"{OTHER_CLASSES} ({'; '.join(pairs)})"] = layers
    return reasons


def _kind(entry):
    """What a shape differs in: `"outputs"`, the last axis alone; `"channels"`, the input channels of a kernel alone."""
    wanted, given = entry.wanted, entry.given
    axes = [axis for axis in range(len(wanted)) if len(given) == len(wanted) and given[axis] != wanted[axis]]
    if axes == [len(wanted) - 1]:
        return "outputs"
    return "channels" if axes == [2] and len(wanted) == 4 else "shape"


def _is_grey(model, entry):
    """Whether a kernel for three channels meets a network of images of one."""
    inputs = getattr(model, "inputs", None) or [None]
    channels = getattr(inputs[0], "shape", (None,))[-1]
    is_first = isinstance(entry.layer, keras.layers.Conv2D) and channels == 1 and entry.wanted[-2:-1] == (1,)
    return is_first and _kind(entry) == "channels" and entry.given[2] == 3


def _refitted(model, entry):
    """An array of the wanted shape out of one of another, or None."""
    if _is_grey(model, entry):
        return np.asarray(entry.value, "float32").sum(axis=2, keepdims=True)
    if hasattr(entry.layer, "fit_weight"):
        try:
            array = entry.layer.fit_weight(np.asarray(entry.value))
        except ValueError:
            return None
        return array if array.shape == entry.wanted else None
    return None


def _family(dtype):
    """Floats of any width stand for one another; integers are not floats: those of a quantised file mean another."""
    kinds = {"float": "float", "bfloat": "float", "int": "int", "uint": "int"}
    return kinds.get(dtype.split("_")[0].rstrip("0123456789"), dtype)


def _from(entry):
    return "" if entry.key is None else f" from {entry.key!r}"


def _file(entry):
    return "the file" if entry.key is None else repr(entry.key)


def _mismatch(model, faults, count):
    kinds, texts = zip(*faults, strict=True)
    shown = "\n  ".join(texts[:5])
    more = f"\n  and {len(texts) - 5} more" if len(texts) > 5 else ""
    return Refused(
        f"These weights are not {model.name}'s: it has {len(list(weights_of(model)))} weights, the file {count}; "
        f"nothing was changed.\n  {shown}{more}\nLikely cause: {_likely_cause(set(kinds))}"
    )


def _likely_cause(kinds):
    causes = {
        "missing": "the file lacks layers: it is of a smaller variant, or names its weights in a way of its own.",
        "surplus": "the model lacks layers: build the variant that the file is of.",
        "outputs": "another number of classes: build the model with the file's.",
        "channels": "images of another number of channels: build the model with the file's (input_shape=).",
        "dtype": "the file is quantised: save the weights as floats.",
    }
    (kind,) = kinds if len(kinds) == 1 else ("several",)
    return causes.get(kind, "another variant, or names of another implementation.")
