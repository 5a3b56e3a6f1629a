"""A classifier that looks at several views of each image and gives the mean of their scores."""

import keras
from keras import ops

from kvision._keras import graph_of, producer
from kvision.test_time.untrained import Untrained, checked_size
from kvision.test_time.views import View, cut_views

SCORES = ("softmax", "sigmoid")
ACTIVATIONS = (*SCORES, "linear")


@keras.saving.register_keras_serializable("kvision")
class TestTimeAverage(Untrained):
    """A trained classifier on several views of each image: the mean of their scores.

    Krizhevsky et al. 2012 (AlexNet), section 4.1: the softmax outputs are averaged, not the logits. It is a
    `keras.Model`: `predict`, `evaluate` after `compile(loss, metrics)`, `save` and `export`. All views of a batch go
    through the model at once: with 144 views choose a small `batch_size`. It is not trained: train the model inside.

    Args:
        model: A functional or sequential `keras.Model` from images [b, h, w, c] of a static size to scores
            [b, classes]. Its weights are shared, not copied.
        views: `Flips()`, `TenCrops()`, `MultiScale()`, `GoogLeNetCrops()`, or any serializable object or function
            `(image_size, model_size)` → list of `View`s.
        image_size: Height and width of the images it takes; None: those of `model`. They are prepared as those of
            `model` are (`preprocessing`).
        activation: What makes scores of the model's outputs: `"softmax"` or `"sigmoid"` for logits; `"linear"`: the
            outputs are averaged as they are. None: the model itself ends in softmax or sigmoid.
        name: Of the model.

    Call: images [b, *image_size, c] → the mean scores [b, classes], float32.

    Raises:
        ValueError: on a model without a static size or with several outputs, on logits without `activation`, on an
            `activation` after one of the model's own, and on views that do not fit.

    >>> model = keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(3, activation="softmax")])
    >>> average = TestTimeAverage(model, kvision.test_time.TenCrops(), image_size=(10, 10))
    >>> average.predict(np.ones((2, 10, 10, 1)), verbose=0).shape
    (2, 3)
    """

    __test__ = False  # or pytest would collect a class of this name from whoever imports it

    def __init__(self, model, views, image_size=None, activation=None, name=None, **options):
        *size, channels = _static_shape(model)
        _check_activation(model, activation)
        image_size = checked_size("TestTimeAverage", image_size, size)
        super().__init__(
            name=name or f"{model.name}_test_time", **{"autocast": False} | options
        )  # images stay as they came
        self.model = model
        self.views = views
        self.image_size = image_size
        self.activation = activation
        self._model_size = tuple(size)
        self._views = _Fixed(views(self.image_size, self._model_size))
        _check_views(views, self._views.all)
        self._channels = channels
        self.built = True  # the model is

    @property
    def num_views(self):
        """How many views of an image there are."""
        return len(self._views.all)

    @property
    def preprocessing(self):
        """What images go through first: that of the model, None if unknown."""
        return getattr(self.model, "preprocessing", None)

    @property
    def inside(self):
        return self.model

    @property
    def image_shape(self):
        return (*self.image_size, self._channels)

    def call(self, images):
        views = cut_views(self.check_images(images), self._views.all, self._model_size)
        outputs = self.model(ops.reshape(views, (-1, *views.shape[2:])), training=False)
        scores = keras.activations.get(self.activation)(ops.cast(outputs, "float32"))
        return ops.mean(ops.reshape(scores, (-1, self.num_views, scores.shape[-1])), axis=1)

    def compute_output_shape(self, input_shape):
        return (input_shape[0], self.model.output_shape[-1])

    def get_config(self):
        return {
            "model": keras.saving.serialize_keras_object(self.model),
            "views": keras.saving.serialize_keras_object(self.views),
            "image_size": self.image_size,
            "activation": self.activation,
            "name": self.name,
            "dtype": keras.saving.serialize_keras_object(self.dtype_policy),
        }

    @classmethod
    def from_config(cls, config):
        parts = {part: keras.saving.deserialize_keras_object(config[part]) for part in ("model", "views")}
        return cls(**config | parts)


class _Fixed:
    """A list that Keras neither tracks nor saves."""

    def __init__(self, values):
        self.all = tuple(values)


def _static_shape(model):
    """Height, width and channels that a model takes."""
    inputs = getattr(graph_of(model), "inputs", None)
    outputs = getattr(graph_of(model), "outputs", None)
    given, made = ([tuple(tensor.shape) for tensor in tensors or ()] for tensors in (inputs, outputs))
    ranks = [len(shape) for shape in (*given, *made)]
    if ranks != [4, 2] or None in (*given[0][1:], made[0][1]):
        raise ValueError(
            "TestTimeAverage needs a functional or sequential model from images [b, h, w, c] of a static size to "
            f"scores [b, classes]: got {getattr(model, 'name', model)} with inputs {given} and outputs {made}. "
            "Detectors are for TestTimeDetection."
        )
    return given[0][1:]


def _check_activation(model, activation):
    own = _last_activation(model)
    if activation is None and own not in SCORES:
        what = "logits" if own == "linear" else "outputs of unknown kind"
        raise ValueError(
            f'{model.name} ends in {what}, and scores are averaged: pass activation="softmax" (one class an image) or '
            '"sigmoid" (several); activation="linear" averages the outputs as they are.'
        )
    if activation is not None and activation not in ACTIVATIONS:
        raise ValueError(f"TestTimeAverage: activation is one of {ACTIVATIONS} or None: got {activation!r}.")
    if activation in SCORES and own in SCORES:
        raise ValueError(f"{model.name} ends in {own} already: leave out activation={activation!r}.")


def _last_activation(model):
    """The name of the activation that a model ends in, `"linear"` for none; None where it cannot be told."""
    layer = producer(graph_of(model).outputs[0])
    if isinstance(layer, keras.Model):
        return _last_activation(layer) if getattr(graph_of(layer), "outputs", None) else None
    if isinstance(layer, keras.layers.Softmax):
        return "softmax"
    activation = getattr(layer, "activation", None)
    name = getattr(activation, "__name__", None) or type(layer).__name__.lower()
    return name if name in ACTIVATIONS else None


def _check_views(rule, views):
    if not views or not all(isinstance(view, View) for view in views):
        raise ValueError(
            f"TestTimeAverage: views give a list of kvision.test_time.View, at least one: got {views!r} of {rule!r}."
        )
