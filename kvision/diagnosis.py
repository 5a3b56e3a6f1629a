"""Which layer of a model, and which sample of a batch, is the first that is not finite; and batches kept in files."""

import contextlib
import dataclasses
import io
import json
import pathlib

import keras
import numpy as np
from keras import ops

from kvision._keras import is_sparse_loss, layers_of, loss_mean, replaced, step_loss

_FACTS = "facts"


@dataclasses.dataclass(frozen=True)
class LayerReading:
    """What one layer gave in one training step.

    Args:
        name: Path of the layer.
        outputs: Largest magnitude of its outputs; NaN or infinite where they are not finite; None where it was not
            called with numbers.
        gradients: Largest magnitude of the gradients of its own weights, likewise; None where it has none.
    """

    name: str
    outputs: float | None
    gradients: float | None


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """One training step, looked at layer by layer.

    Args:
        loss: The loss of the batch.
        layers: A `LayerReading` a layer, in the order of the forward pass.
        samples: Indices in the batch of the samples that are not finite: by their inputs or targets, else by their
            outputs, else by their losses; none where all are.
        batch_is_finite: Whether all inputs and targets are finite.
        weights_are_finite: Whether all weights are finite.
        notes: Sentences on labels that are none of the classes.
    """

    loss: float
    layers: tuple
    samples: tuple = ()
    batch_is_finite: bool = True
    weights_are_finite: bool = True
    notes: tuple = ()

    @property
    def first(self):
        """`(layer path, "output" or "gradient")` of the first that is not finite, the forward pass first; or None."""
        for layer in self.layers:
            if layer.outputs is not None and not np.isfinite(layer.outputs):
                return layer.name, "output"
        for layer in reversed(self.layers):  # gradients flow from the loss to the input
            if layer.gradients is not None and not np.isfinite(layer.gradients):
                return layer.name, "gradient"
        return None

    @property
    def sentence(self):
        """What is not finite first, in words."""
        samples = _listed(self.samples)
        if not self.batch_is_finite:
            return batch_sentence(self.samples)
        if self.first is not None:
            weights = "" if self.weights_are_finite else "; weights are not finite"
            return f"the {self.first[1]} of {self.first[0]} is the first that is not finite{samples}{weights}"
        if not np.isfinite(self.loss):
            notes = "".join(f". {note}" for note in self.notes).removesuffix(".")
            return f"the loss is {self.loss}, all outputs of layers are finite{samples}{notes}"
        return "loss, outputs and gradients are finite"

    def __str__(self):
        width = max([len(layer.name) for layer in self.layers] + [5])
        rows = [f"{'layer':<{width}}  largest output  largest gradient"]
        for layer in self.layers:
            numbers = ["" if number is None else f"{number:.3g}" for number in (layer.outputs, layer.gradients)]
            rows.append(f"{layer.name:<{width}}  {numbers[0]:>14}  {numbers[1]:>16}")
        return "\n".join([*rows, f"loss {self.loss:.6g}: {self.sentence}"])


def batch_sentence(samples):
    """What is wrong with a batch whose `samples` are not finite, in words."""
    return f"the batch holds numbers that are not finite{_listed(samples)}"


def _listed(samples):
    return f" (sample {_few(samples)} of the batch)" if samples else ""


def _few(parts):
    return ", ".join(map(str, parts[:8])) + (f" and {len(parts) - 8} more" if len(parts) > 8 else "")


def diagnose(model, data):
    """Run one training step on a batch, apply nothing, and look at every layer.

    Weights, moving statistics, seeds and metrics are left as they were.

    Args:
        model: A built and compiled `keras.Model`.
        data: A batch as its data set gives it: `x`, `(x, y)` or `(x, y, sample_weight)`.

    Returns:
        A `Diagnosis`.
    """
    data = keras.tree.map_structure(lambda each: None if each is None else ops.convert_to_tensor(each), data)
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    variables = [*model.non_trainable_variables, *model.metrics_variables]
    before = [np.array(ops.convert_to_numpy(variable)) for variable in variables]

    def restore():
        for variable, value in zip(variables, before, strict=True):
            variable.assign(value)

    found, outputs, loss = {}, None, float("nan")
    try:
        with replaced([(layer, "call", _reading(layer, found)) for layer in layers_of(model)]):
            outputs = model(x, training=True)
            with contextlib.suppress(Exception):  # a model whose own `train_step` computes its loss
                loss = _largest(step_loss(model, x, y, outputs, sample_weight), signed=True)
        restore()
        step = _gradients(model, data)
        gradients = {id(v): gradient for v, gradient in zip(model.trainable_variables, step[0], strict=False)}
        loss = step[1] if np.isnan(loss) and step[1] is not None else loss
        samples, batch_is_finite = _samples(model, x, y, sample_weight, outputs, np.isfinite(loss))
    finally:
        restore()
    layers = dict.fromkeys(found)
    layers |= {layer: None for layer in layers_of(model) if any(id(v) in gradients for v in _own(layer))}
    return Diagnosis(
        loss,
        tuple(LayerReading(layer.path or layer.name, found.get(layer), _of(layer, gradients)) for layer in layers),
        samples,
        batch_is_finite,
        all(np.isfinite(_largest(variable)) for variable in model.variables),
        tuple(_labels(model, data)),
    )


def _own(layer):
    inner = {id(variable) for each in layers_of(layer) for variable in each.variables}
    return [variable for variable in layer.trainable_variables if id(variable) not in inner]


def _of(layer, gradients):
    own = [gradients[id(variable)] for variable in _own(layer) if gradients.get(id(variable)) is not None]
    return float(np.max(own)) if own else None  # NaN where one is


def _reading(layer, found):
    call = layer.call

    def reading(*args, **kwargs):
        outputs = call(*args, **kwargs)
        with contextlib.suppress(Exception):  # what is no number, or not known yet, tells nothing
            now = _largest(outputs)
            found[layer] = now if layer not in found else float(np.max([found[layer], now]))
        return outputs

    return reading


def _largest(tensors, signed=False):
    """Largest magnitude in a structure of tensors; NaN where there is one."""
    numbers = [np.asarray(ops.convert_to_numpy(ops.cast(each, "float32"))) for each in keras.tree.flatten(tensors)]
    if signed:
        return float(np.mean(numbers[0]))
    return float(np.max([np.max(np.abs(each), initial=0.0) for each in numbers]))


def _gradients(model, data):
    """The largest magnitude of each gradient that the step would apply, and the loss it tells, or None."""
    mean, optimizer = loss_mean(model), model.optimizer
    taken, losses, attributes = [], [], []
    on_jax = keras.backend.backend() == "jax"

    def take(*arguments, **options):
        gradients = arguments[1 if on_jax else 0]
        taken.append([None if gradient is None else _largest(gradient) for gradient in gradients])
        return (arguments[2], arguments[0]) if on_jax else None

    if optimizer is not None:
        if not optimizer.built:
            optimizer.build(model.trainable_variables)
        attributes.append((optimizer, "stateless_apply" if on_jax else "apply", take))
    if mean is not None:
        update_state = mean.update_state

        def read_loss(values, *args, **kwargs):
            losses.append(_largest(values, signed=True))
            return update_state(values, *args, **kwargs)

        attributes.append((mean, "update_state", read_loss))
    groups = (model.trainable_variables, model.non_trainable_variables, optimizer.variables, model.metrics_variables)
    state = tuple([variable.value for variable in group] for group in groups)
    with replaced(attributes):
        try:
            model.train_step(state, data) if on_jax else model.train_step(data)
        except Exception:
            if not taken:  # else what came after the gradients failed, such as a metric
                raise
    return (taken[0] if taken else []), (losses[0] if losses else None)


def _samples(model, x, y, sample_weight, outputs, loss_is_finite):
    """Indices of the samples that are not finite, and whether the batch itself is finite."""
    broken = broken_samples((x, y, sample_weight))
    if broken:
        return broken, False
    count = _count(x)
    broken = broken_samples(outputs)
    if broken and len(broken) < count:
        return broken, True
    if broken or loss_is_finite:
        return (), True
    losses = []
    with contextlib.suppress(Exception):  # a loss of the whole batch alone
        for index in range(count):

            def one(tree, index=index):
                return keras.tree.map_structure(lambda each: None if each is None else each[index : index + 1], tree)

            losses.append(_largest(step_loss(model, one(x), one(y), one(outputs), one(sample_weight)), signed=True))
    broken = tuple(index for index, loss in enumerate(losses) if not np.isfinite(loss))
    return (broken if len(broken) < count else ()), True


def _count(tree):
    return min((len(each) for each in keras.tree.flatten(tree) if each is not None and len(each.shape)), default=0)


def broken_samples(tree):
    """Indices along the first axis at which any array of floats in `tree` is not finite."""
    rows = set()
    for each in keras.tree.flatten(tree):
        if each is None or not len(each.shape) or not keras.backend.is_float_dtype(each.dtype):
            continue
        array = np.asarray(ops.convert_to_numpy(ops.cast(each, "float32")))
        rows |= set(np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(axis=1)).tolist())
    return tuple(sorted(rows))


def notes_on(model, data):
    """Sentences about a batch at which a step failed: its shapes, and the labels that are none of the classes."""
    shapes = [f"{list(each.shape)} {keras.backend.standardize_dtype(each.dtype)}" for each in _arrays(data)]
    return [f"The batch: {', '.join(shapes)}.", *_labels(model, data)]


def _labels(model, data):
    """A sentence on labels outside the classes of a model with a loss of integer labels, in a list; or none."""
    _, y, _ = keras.utils.unpack_x_y_sample_weight(data)
    loss = getattr(model, "loss", None)
    shape = getattr(model, "output_shape", None) if getattr(model, "inputs", None) else None
    if not is_sparse_loss(loss) or not hasattr(y, "shape") or not isinstance(shape, tuple):
        return []
    labels, classes = np.asarray(ops.convert_to_numpy(y)), shape[-1]
    wrong = ((labels < 0) | (labels >= classes)) & (labels != getattr(loss, "ignore_class", None))
    told = [f"sample {index[0]} has label {labels[tuple(index)]}" for index in np.argwhere(wrong)]
    if not told:
        return []
    return [f"Labels: {_few(told)}; expected 0...{classes - 1}. Mend the labels, or build the model with more classes."]


def _arrays(tree):
    return [each for each in keras.tree.flatten(tree) if hasattr(each, "shape") and hasattr(each, "dtype")]


# Files


def batch_file(data, facts, weights):
    """The bytes of an npz file that `read_batch_file` reads: no object in it, nothing to unpickle.

    `data` are arrays or tensors in tuples, lists and dicts, `facts` texts and numbers by name, `weights` arrays.
    """
    arrays = []
    structure = _structure(data, arrays)
    contents = {f"batch/{index}": array for index, array in enumerate(arrays)}
    names, dtypes = list(weights), {}
    for index, name in enumerate(names):
        array = np.asarray(weights[name])
        if array.dtype.kind == "V" or array.dtype.name == "bfloat16":  # NumPy's files know none of it
            dtypes[name], array = array.dtype.name, array.astype("float32")
        contents[f"weight/{index}"] = array
    told = {"structure": structure, "facts": facts, "weights": names, "dtypes": dtypes}
    content = io.BytesIO()
    np.savez(content, **contents, **{_FACTS: np.array(json.dumps(told))})
    return content.getvalue()


def read_batch_file(path):
    """`(data, facts, weights)` of a file that `batch_file` made; ValueError where there is no such file."""
    try:
        content = io.BytesIO(pathlib.Path(path).read_bytes())  # NumPy leaves a file open that it cannot read
        with np.load(content, allow_pickle=False) as file:
            told = json.loads(str(file[_FACTS]))
            arrays = {name: file[name] for name in file.files if name != _FACTS}
        data = _rebuilt(told["structure"], arrays)
        weights = {name: arrays[f"weight/{index}"] for index, name in enumerate(told["weights"])}
    except FileNotFoundError:
        raise ValueError(
            f"There is no file {str(path)!r}: expected an npz file as Rollback names in its error. Give that file."
        ) from None
    except Exception as error:
        raise ValueError(
            f"Not a batch that Rollback saved: got {str(path)!r} ({error}), expected an npz file as it names in its "
            "error. Give that file."
        ) from error
    return data, told["facts"], {name: _cast(array, told["dtypes"].get(name)) for name, array in weights.items()}


def _cast(array, dtype):
    return array if dtype is None else np.asarray(ops.convert_to_numpy(ops.cast(array, dtype)))


def _structure(data, arrays):
    if data is None:
        return None
    if isinstance(data, dict):
        return {"dict": {str(key): _structure(value, arrays) for key, value in data.items()}}
    if isinstance(data, tuple | list):
        kind = "tuple" if isinstance(data, tuple) else "list"
        return {kind: [_structure(value, arrays) for value in data]}
    arrays.append(np.asarray(ops.convert_to_numpy(data)))
    return {"array": len(arrays) - 1}


def _rebuilt(structure, arrays):
    if structure is None:
        return None
    ((kind, inner),) = structure.items()
    if kind == "dict":
        return {key: _rebuilt(value, arrays) for key, value in inner.items()}
    if kind == "array":
        return arrays[f"batch/{inner}"]
    rebuilt = [_rebuilt(value, arrays) for value in inner]
    return tuple(rebuilt) if kind == "tuple" else rebuilt
