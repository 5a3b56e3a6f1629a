"""The model of tasks whose loss needs more than Keras's `loss=`: a trunk that sees, a head that knows the rest."""

import contextlib
import math
import numbers
import re

import keras
from keras import ops

from kvision._keras import layers_of, reading_arrays_untuned
from kvision.batches import first_given
from kvision.errors import checked_names, unknown
from kvision.ops import operations_for


@keras.saving.register_keras_serializable("kvision")
class TaskModel(keras.Model):
    """A `keras.Model` out of a trunk and a head that brings its own losses and its own decoding.

    `compile("sgd")` suffices. `fit` and `evaluate` log every loss by its name, unweighted, and their weighted sum as
    `loss`; `predict` gives what the head decodes. The first batch is checked before the first step.

    Args:
        trunk: A functional `keras.Model` from images to a dict of features; None: the features are given as `x`, such
            as those of a cache.
        head: A serializable `keras.layers.Layer`, its weights made at construction, with
            `loss_names`, a tuple of names;
            `check(x, y)`, which raises on targets it cannot learn from (arrays or tensors of one batch);
            `losses(features, targets, training)`, giving `{name: float32 scalar}`; and
            `decode(features)`, giving what `predict` returns. Heads made of `Part`s need no `get_config`.
        name: Of the model.

    Call: images [b, h, w, c], or a dict of `"images"` and more that joins the features as it came → the dict of
    features and, unless training, the head's output as `"predictions"`.

    Raises:
        ValueError: by `compile` on a loss or metrics of its own; by `fit` and `evaluate` on sample weights, an empty
            data set or targets that the head refuses.

    ```python
    model = TaskModel(trunk, head)
    model.compile("sgd", loss_weights={"mask_loss": 2.0})
    model.fit(images, targets)
    ```
    """

    predictions_name = "predictions"
    metrics_advice = "Metrics are measured by callbacks."
    weights_advice = ""
    higher_is_better = None  # a pattern of names in the logs; losses are better when they are lower
    weight_sources = None  # a `kvision.weights.WeightSources`: how others name its weights
    _class_names = None

    def __init__(self, trunk, head, name=None, **options):
        super().__init__(name=name, **{"autocast": False} | options)  # images stay as they came
        self.trunk = trunk
        self.head = head
        self._loss_means = [keras.metrics.Mean(name=name) for name in head.loss_names]
        self._total = _Given(name="total")
        self._loss_weights = {}
        self._step_state = _StepState()
        self.built = True  # trunk and head are

    @property
    def class_names(self):
        """Texts in the order of the labels, saved with the model; None if unknown. May be set."""
        return self._class_names

    @class_names.setter
    def class_names(self, value):
        self._class_names = checked_names(self.name, value, getattr(self.head, "classes", None))

    def call(self, inputs, training=None):
        features = self.features(inputs, training)
        return features if training else features | {self.predictions_name: self.head.decode(features)}

    def features(self, inputs, training=None):
        """What the head is given: the features of the trunk, and what came beside the images."""
        if self.trunk is None:
            return dict(inputs)
        beside = dict(inputs) if hasattr(inputs, "keys") else {"images": inputs}
        return self.trunk(beside.pop("images"), training=training) | beside

    def compile(
        self, optimizer="rmsprop", loss=None, loss_weights=None, metrics=None, weighted_metrics=None, **options
    ):
        """As `keras.Model.compile`, without `loss` and `metrics`.

        Args:
            optimizer: As in Keras.
            loss_weights: `{loss name: factor}` of the losses in the sum that is trained on; 1 where it is left out.
            **options: Keras's others.

        Raises:
            ValueError: on `loss`, `metrics`, `weighted_metrics`, an unknown name (lists the nearest), or a factor that
                is no finite number of at least 0.
        """
        if any(given is not None for given in (loss, metrics, weighted_metrics)):
            raise ValueError(
                f"{self.name} brings its own losses ({', '.join(self.head.loss_names)}): call compile(optimizer) "
                f"without `loss` and `metrics`, with `loss_weights` to weigh them. {self.metrics_advice}"
            )
        self._loss_weights = self._checked_weights(loss_weights)
        super().compile(optimizer=optimizer, loss_weights=loss_weights, **options)
        self._step_state.train_functions.clear()
        self._build_optimizer()

    def _checked_weights(self, loss_weights):
        if loss_weights is None:
            return {}
        if not hasattr(loss_weights, "items"):
            names = ", ".join(self.head.loss_names)
            raise ValueError(f"{self.name}: loss_weights is a dict by the names {names}: got {loss_weights!r}.")
        for name, factor in loss_weights.items():
            if name not in self.head.loss_names:
                raise unknown(f"loss of {self.name} in loss_weights", name, self.head.loss_names)
            if not isinstance(factor, numbers.Real) or not 0 <= factor < math.inf:
                raise ValueError(
                    f"{self.name}: the factor of a loss is a finite number of at least 0: got {factor!r} for {name!r}."
                )
        return {name: float(factor) for name, factor in loss_weights.items()}

    def _build_optimizer(self):
        """Before the first step: TensorFlow traces a step that makes variables twice, seconds each time."""
        with self.scope():
            self.optimizer.build(self.trainable_variables)

    @property
    def distribute_strategy(self):  # of TensorFlow alone
        return reading_arrays_untuned(self, super().distribute_strategy)

    def scope(self):
        """The context in which variables of the training step are made: that of the model's replicas."""
        on_tensorflow = keras.backend.backend() == "tensorflow"
        return self.distribute_strategy.scope() if on_tensorflow else contextlib.nullcontext()

    def compile_from_config(self, config):
        self.compile(**keras.saving.deserialize_keras_object(config))

    # The step

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        self._refuse_weights(sample_weight)
        self.check_step(x, y)
        if training:
            for observer in self._step_state.observers:
                observer.update_state(x, y)
        losses = {name: ops.cast(loss, "float32") for name, loss in self.head.losses(y_pred, y, training).items()}
        batch = ops.shape(keras.tree.flatten(x)[0])[0]
        for mean in self._loss_means:
            mean.update_state(losses[mean.name], sample_weight=batch)
        total = sum(loss * self._loss_weights.get(name, 1.0) for name, loss in losses.items())
        total = self._total(ops.zeros((1,)), total[None])
        return total + super().compute_loss(x, None, None) if self.losses else total

    def check_step(self, x, y):
        """Called while a step is traced: raises on shapes it must not be compiled for."""

    def predict_step(self, *arguments):
        if keras.backend.backend() == "jax":
            outputs, state = super().predict_step(*arguments)
            return outputs[self.predictions_name], state
        return super().predict_step(*arguments)[self.predictions_name]

    def make_train_function(self, force=False):
        return super().make_train_function(self._is_outdated("train", force))

    def make_test_function(self, force=False):
        return super().make_test_function(self._is_outdated("test", force))

    def make_predict_function(self, force=False):
        return super().make_predict_function(self._is_outdated("predict", force))

    def _is_outdated(self, kind, force):
        """Whether an option of the head was changed since its last function of this kind was made."""
        now = getattr(self.head, "num_changes", 0)
        before = self._step_state.head_changes.setdefault(kind, now)
        self._step_state.head_changes[kind] = now
        if now != before and kind == "train":
            self._step_state.train_functions.clear()
        return force or now != before

    # Observers

    @property
    def metrics(self):
        return [*super().metrics, *self._step_state.observers]

    def add_observer(self, observer):
        """Let a metric see every batch inside the training step.

        It is no part of the model: a saved file does not hold it. Callbacks add it on train begin and remove it on
        train end; the step without it is kept and not compiled anew.

        Args:
            observer: A `keras.metrics.Metric`, made in `scope()`, whose `update_state(x, y)` is called with the inputs
                and targets of each training batch. Its `result()` enters the logs; `{}` keeps it out of them.
        """
        if observer not in self._step_state.observers:
            self._set_observers((*self._step_state.observers, observer))

    def remove_observer(self, observer):
        """Undo `add_observer`."""
        if observer in self._step_state.observers:
            self._set_observers(tuple(other for other in self._step_state.observers if other is not observer))

    def _set_observers(self, observers):
        state = self._step_state
        if keras.backend.backend() == "jax":
            self.jax_state_sync()
        state.train_functions[state.observers] = self.train_function
        state.observers = observers
        self.train_function = state.train_functions.get(observers)
        if self.compiled:
            self.make_train_function()

    # What is done and refused before the first step

    def fit(self, x=None, y=None, *arguments, **options):
        """Train; as `keras.Model.fit`, after a check of the targets (of a data set: of its first batch)."""
        self._refuse_weights(options.get("sample_weight"), options.get("class_weight"))
        self._refuse_initial_statistics()
        self._tell_modes(options.get("callbacks", arguments[3] if len(arguments) > 3 else None))
        self._check(x, y, "training data")
        validation = options.get("validation_data")
        if isinstance(validation, tuple | list):
            validation = (*validation, None, None)[: max(3, len(validation))]
            self._refuse_weights(*validation[2:])
            self._check(*validation[:2], "validation data")
        elif validation is not None:
            self._check(validation, None, "validation data")
        return super().fit(x, y, *arguments, **options)

    def evaluate(self, x=None, y=None, *arguments, **options):
        """As `keras.Model.evaluate`, after a check of the targets (of a data set: of its first batch)."""
        self._refuse_weights(options.get("sample_weight"))
        if not options.get("_use_cached_eval_dataset"):  # within `fit`, which has checked it
            self._check(x, y, "data")
        return super().evaluate(x, y, *arguments, **options)

    def _tell_modes(self, callbacks):
        """Tell callbacks that watch our numbers what `mode="auto"` means: Keras knows those of `compile` alone."""
        for callback in getattr(callbacks, "callbacks", None) or keras.tree.flatten(callbacks or ()):
            name = str(getattr(callback, "monitor", "")).removeprefix("val_")
            better = re.fullmatch(self.higher_is_better or "", name)
            if getattr(callback, "mode", None) == "auto" and (better or name in self.head.loss_names):
                callback.mode = "max" if better else "min"

    def check(self, x, y):
        """Raise on a batch that cannot be learned from; `x` and `y` are arrays or tensors."""
        self.head.check(x, y)

    def _refuse_weights(self, *weights):
        if any(weight is not None for weight in weights):
            raise ValueError(f"{self.name} takes no sample_weight and no class_weight{self.weights_advice}.")

    def _refuse_initial_statistics(self):
        for layer in layers_of(self):
            if getattr(layer, "frozen", False) and hasattr(layer, "moving_variance") and _is_initial(layer):
                raise ValueError(
                    f"{self.name}: the frozen batch normalisation {layer.name!r} still has its initial statistics, "
                    "mean 0 and variance 1: it would never normalise, and the training diverges. Load weights into the "
                    'backbone first (weights=), or build it with norm="group" to train from scratch.'
                )

    def _check(self, x, y, what):
        if y is None:
            batch = first_given(x)
            if batch is None:
                return
            if not batch:
                raise ValueError(f"{self.name}: the {what} has no batch. Is the folder, the filter or take() right?")
            x, y, *weights = (*batch, None)[: max(2, len(batch))]
            self._refuse_weights(*weights)
        if y is None:
            raise ValueError(f"{self.name}: the {what} has inputs but no targets: pass (inputs, targets).")
        if len(keras.tree.flatten(x)[0]) == 0:
            shapes = keras.tree.map_structure(lambda value: tuple(value.shape), x)
            raise ValueError(f"{self.name}: the {what} has no rows: got {shapes}.")
        self.check(x, y)

    # Files

    def export(self, filepath, format="tf_saved_model", verbose=None, input_signature=None, **options):
        """As `keras.Model.export`: the artefact gives what `predict` gives.

        Args:
            filepath, format, verbose, **options: As in Keras.
            input_signature: A `keras.InputSpec` of the inputs, or a dict of them by name, batch included; None: the
                images of the trunk. A head that needs more than images needs it.
        """
        if input_signature is None:
            if self.trunk is None:
                raise ValueError(f"{self.name} is fed with features: tell export their shapes by input_signature=.")
            image = self.trunk.inputs[0]
            input_signature = keras.InputSpec(shape=image.shape, dtype=image.dtype)
        if isinstance(input_signature, list | tuple) and len(input_signature) == 1:
            (input_signature,) = input_signature
        specs = input_signature if hasattr(input_signature, "items") else {"images": input_signature}
        inputs = {name: keras.Input(spec.shape[1:], dtype=spec.dtype, name=name) for name, spec in specs.items()}
        inputs = inputs if hasattr(input_signature, "items") else inputs["images"]
        with operations_for(format):
            outputs = self(inputs, training=False)[self.predictions_name]
            whole = keras.Model(inputs, outputs, name=self.name)
            whole(keras.tree.map_structure(lambda one: ops.zeros((1, *one.shape[1:]), one.dtype), inputs))  # for ONNX
            return whole.export(filepath, format=format, verbose=verbose, **options)

    def get_config(self):
        return {
            "trunk": keras.saving.serialize_keras_object(self.trunk),
            "head": keras.saving.serialize_keras_object(self.head),
            "name": self.name,
            "dtype": keras.saving.serialize_keras_object(self.dtype_policy),
            "weight_sources": keras.saving.serialize_keras_object(self.weight_sources),
            "class_names": self.class_names,
        }

    @classmethod
    def from_config(cls, config):
        parts = {part: keras.saving.deserialize_keras_object(config[part]) for part in ("trunk", "head")}
        sources = keras.saving.deserialize_keras_object(config.pop("weight_sources"))
        names = config.pop("class_names")
        model = cls(**config | parts)
        model.weight_sources = sources
        model.class_names = names
        return model


class _Given(keras.losses.Loss):
    """A loss already computed, handed to Keras so that several replicas share it as they share any other."""

    def call(self, y_true, y_pred):
        return y_pred


class _StepState:
    """What belongs to compiled functions; a plain object, so that Keras neither tracks nor saves it."""

    def __init__(self):
        self.observers = ()
        self.train_functions = {}  # by observers
        self.head_changes = {}  # by kind of function


def _is_initial(norm):
    mean, variance = map(ops.convert_to_numpy, (norm.moving_mean, norm.moving_variance))
    return bool((mean == 0).all() and (variance == 1).all())
