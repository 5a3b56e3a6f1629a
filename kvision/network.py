"""A network that knows what its images go through first, and which maps it can give to a detector."""

import dataclasses
import inspect

import keras
import numpy as np
from keras import ops

from kvision._keras import build_compiled_metrics, is_sparse_loss, reading_arrays_untuned
from kvision.batches import first_given
from kvision.contract import check_label_maps, check_labels
from kvision.errors import checked_names
from kvision.moments import Variance, pixels_of
from kvision.ops import operations_for
from kvision.ops._backend import kernels
from kvision.weights import WeightSources


@keras.saving.register_keras_serializable("kvision")
@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """RGB images of 0…255 to what a network was trained on: scaled to a range, minus a mean, over a deviation.

    Args:
        value_range: What 0 and 255 become first.
        mean, deviation: Of the training images in that range, one number or one per channel; `deviation` > 0.

    Call: images [..., h, w, c] of any numeric type → float32 of the same shape; NumPy in, NumPy out.

    Raises:
        ValueError: on an empty range or a deviation that is not positive.

    >>> float(Preprocessing(value_range=(-1.0, 1.0))(np.array(255)))
    1.0
    """

    value_range: tuple = (0.0, 1.0)
    mean: float | tuple = 0.0
    deviation: float | tuple = 1.0

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = np.asarray(getattr(self, field.name), "float64").tolist()
            object.__setattr__(self, field.name, tuple(value) if isinstance(value, list) else value)
        low, high = self.value_range
        if not high > low or not np.all(np.asarray(self.deviation) > 0):
            raise ValueError(
                f"Preprocessing: got value_range={self.value_range}, deviation={self.deviation}. Give what 0 and 255 "
                "become in rising order, and deviations above 0."
            )

    def __call__(self, images):
        low, high = self.value_range
        unit = 255.0 / (high - low)
        offset = np.asarray((np.asarray(self.mean) - low) * unit, "float32")
        scale = np.asarray(np.asarray(self.deviation) * unit, "float32")
        if isinstance(images, np.ndarray):
            return (images.astype("float32") - offset) / scale
        return (ops.cast(images, "float32") - offset) / scale

    @classmethod
    def fit(cls, data, *, value_range=(0.0, 1.0), deviation=None):
        """The preprocessing after which each channel of a data set has mean 0 and deviation 1, fitted in one pass.

        Mean images, principal components and whitening are layers: `kvision.layers.MeanImage`, `PCA`, `ZCAWhitening`.

        Args:
            data: A `tf.data.Dataset`, an array, a `keras.utils.PyDataset` or an iterable of RGB images of 0…255, in
                batches or alone, with labels or without; sizes may differ. Padding that the targets tell of by
                `"image_size"` does not count.
            value_range: As of the class.
            deviation: One to keep instead of the data set's, in that range: 1 where only the mean is to be subtracted
                (Simonyan and Zisserman 2014). A channel that never changes gets 1.

        Raises:
            ValueError: On images that are not of 0…255, different numbers of channels, or none.

        >>> Preprocessing.fit(np.array([[[[0], [255]]]]))
        Preprocessing(value_range=(0.0, 1.0), mean=(0.5,), deviation=(0.5,))
        """
        low, high = cls(value_range).value_range
        moments, least, most = None, np.inf, -np.inf
        for pixels in pixels_of(data, "Preprocessing.fit"):
            moments = moments or Variance(pixels.shape[1])
            if pixels.shape[1] != len(moments.mean):
                raise ValueError(
                    f"Preprocessing.fit: the images have {len(moments.mean)} channels, and others {pixels.shape[1]}. "
                    "Read all of them with as many."
                )
            if len(pixels):
                moments.update(pixels)
                least, most = min(least, pixels.min()), max(most, pixels.max())
        if most <= 1 or least < 0:
            got = f"values from {least:.3g} to {most:.3g}" if moments and moments.count else "no pixels"
            raise ValueError(f"Preprocessing.fit: expected images of 0…255, as they were read, got {got}.")
        unit = (high - low) / 255.0
        if deviation is None:
            found = np.sqrt(moments.variance())
            deviation = np.where(found > 1e-9 * most, found * unit, 1.0)
        return cls(value_range, low + moments.mean * unit, deviation)

    def get_config(self):
        return dataclasses.asdict(self)

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def _is_registered(value):
    """Whether Keras finds a function, or the class of an object, when it loads a model."""
    owner = value if inspect.isfunction(value) else type(value)
    known = keras.saving.get_registered_object(keras.saving.get_registered_name(owner))
    return known is not None or owner.__module__.startswith("keras.")


def _entry(structure, name):
    """The entry of a dict, or of a list of one; what is neither is for all."""
    if isinstance(structure, dict):
        return structure.get(name)
    return structure[0] if isinstance(structure, tuple | list) and len(structure) == 1 else structure


@dataclasses.dataclass(frozen=True)
class _Description:
    """What a `Network` carries besides its graph."""

    preprocessing: object = None
    class_names: tuple | None = None
    feature_info: dict = dataclasses.field(default_factory=dict)
    weight_sources: WeightSources = dataclasses.field(default_factory=WeightSources)


@keras.saving.register_keras_serializable("kvision")
class Network(keras.Model):
    """A functional `keras.Model` that carries what it expects and gives, through save, load and `clone_model`.

    It is made, trained, saved and exported as any functional model is: `Network(inputs, outputs, name=None)`. What it
    carries are four attributes, which may be set. A new process imports kvision, then loads and uses it:
    `model = keras.saving.load_model(path)`, `model.predict(model.preprocessing(images))`, `model.class_names[label]`.

    preprocessing: What RGB images of 0…255 go through first, a serializable function or object, such as a
        `Preprocessing` or a layer of `kvision.layers` fitted by `adapt`, whose weights are saved too; None if unknown.
    class_names: Texts in the order of the labels, such as those of the data it was trained on; None if unknown.
    feature_info: The maps it can give, `{"C3": {"stride": 8, "channels": 512, "layer": its name}, …}`: a `stride` in
        pixels, None where the sizes are not static; `kvision.applications.cut` makes a model that returns them.
    weight_sources: A `kvision.weights.WeightSources`: how others name its weights.

    >>> network = kvision.applications.ResNet("tiny", features=("C3",), include_top=False)
    >>> network.feature_info["C3"]
    {'stride': 8, 'channels': 64, 'layer': 'layer2.0.relu3'}
    """

    _description = _Description()

    def __setattr__(self, name, value):
        if name == "preprocessing":  # a layer among its attributes would be a layer of the network to Keras
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    @property
    def preprocessing(self):
        return self._description.preprocessing

    @preprocessing.setter
    def preprocessing(self, value):
        if value is not None and not (callable(value) and _is_registered(value)):
            raise ValueError(
                f"{self.name}: preprocessing must be a function or an object that Keras can save with the model, got "
                f"{value!r}. Take kvision.network.Preprocessing, or register yours: "
                "@keras.saving.register_keras_serializable()."
            )
        self._describe(preprocessing=value)

    @property
    def class_names(self):
        return self._description.class_names

    @class_names.setter
    def class_names(self, value):
        self._describe(class_names=checked_names(self.name, value))

    @property
    def feature_info(self):
        return {level: dict(info) for level, info in self._description.feature_info.items()}

    @feature_info.setter
    def feature_info(self, value):
        self._describe(feature_info={level: dict(info) for level, info in value.items()})

    @property
    def weight_sources(self):
        return self._description.weight_sources

    @weight_sources.setter
    def weight_sources(self, value):
        self._describe(weight_sources=value)

    def _describe(self, **fields):
        self._description = dataclasses.replace(self._description, **fields)

    def _run_through_graph(self, inputs, *args, **options):
        # `keras.models.clone_model` passes from a model to its clone nothing but these new tensors.
        outputs = super()._run_through_graph(inputs, *args, **options)
        for tensor in keras.tree.flatten(outputs):
            if isinstance(tensor, keras.KerasTensor):
                tensor.description = self._description, self._layer_names()
        return outputs

    def build(self, input_shape):
        super().build(input_shape)
        for tensor in self.outputs:
            description, layers = getattr(tensor, "description", (None, set()))
            if description is not None and layers <= self._layer_names():  # a clone, not a model around another
                self._description = description

    def _layer_names(self):
        return {layer.name for layer in self.layers if not isinstance(layer, keras.layers.InputLayer)}

    def fit(self, x=None, y=None, *arguments, **options):
        """Train; as `keras.Model.fit`, after a check of the labels: of arrays, and maps of a data set's first batch."""
        self._check_labels(x, y, "training data")
        validation = options.get("validation_data")
        if isinstance(validation, tuple | list):
            self._check_labels(*validation[:2], "validation data")
        elif validation is not None:
            self._check_labels(validation, None, "validation data")
        return super().fit(x, y, *arguments, **options)

    def evaluate(self, x=None, y=None, *arguments, **options):
        """As `keras.Model.evaluate`, after the check of `fit`."""
        if not options.get("_use_cached_eval_dataset"):  # within `fit`, which has checked it
            self._check_labels(x, y, "data")
        return super().evaluate(x, y, *arguments, **options)

    def _check_labels(self, x, y, what):
        """Raises on class numbers that the outputs of a network with Keras's sparse loss are not for."""
        names = list(self.output) if isinstance(self.output, dict) else [None]
        losses = {name: _entry(getattr(self, "loss", None), name) for name in names}
        shapes = {name: getattr(_entry(self.output, name), "shape", ()) for name in names}
        shapes = {name: shape for name, shape in shapes.items() if is_sparse_loss(losses[name])}
        if any(len(shape) == 4 for shape in shapes.values()):
            _, y, *_ = (*(first_given(x, y) or ()), None, None)
        for name, shape in shapes.items():
            labels = _entry(y, name)
            if not (hasattr(labels, "shape") and hasattr(labels, "dtype")):
                continue
            labels, ignored = ops.convert_to_numpy(labels), getattr(losses[name], "ignore_class", None)
            if len(shape) == 4:
                _, *size, classes = shape
                check_label_maps(labels, size, classes, ignored, self.name, what)
            elif len(shape) == 2:
                check_labels(labels, shape[-1], ignored, self.name, what)

    @property
    def distribute_strategy(self):  # of TensorFlow alone
        return reading_arrays_untuned(self, super().distribute_strategy)

    def make_train_function(self, force=False):
        # TensorFlow traces a step that makes variables twice, seconds each time, so they are made before.
        if keras.backend.backend() == "tensorflow" and self.optimizer is not None and not self.optimizer.built:
            with self.distribute_strategy.scope(), keras.name_scope(self.optimizer.name, caller=self.optimizer):
                self.optimizer.build(self.trainable_variables)
        super().make_train_function(force)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        with kernels.outside_graph():
            build_compiled_metrics(self, y, y_pred)
        return super().compute_metrics(x, y, y_pred, sample_weight)

    def export(self, filepath, format="tf_saved_model", **options):
        """As `keras.Model.export`; a format of another runtime gets operations that it knows."""
        with operations_for(format):
            return super().export(filepath, format=format, **options)

    def get_config(self):
        return super().get_config() | {
            "preprocessing": keras.saving.serialize_keras_object(self.preprocessing),
            "class_names": self.class_names,
            "feature_info": self.feature_info,
            "weight_sources": keras.saving.serialize_keras_object(self.weight_sources),
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        described = {field.name for field in dataclasses.fields(_Description)} & config.keys()
        graph = {key: value for key, value in config.items() if key not in described}
        network = super().from_config(graph, custom_objects=custom_objects)
        for field in described:
            setattr(network, field, keras.saving.deserialize_keras_object(config[field], custom_objects=custom_objects))
        return network
