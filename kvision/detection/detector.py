"""The one model class of all detectors: a trunk that sees, a head that knows the losses and how to decode."""

import keras
from keras import ops

from kvision.contract import check_targets, images_of
from kvision.metrics import ExposureCount


@keras.saving.register_keras_serializable("kvision")
class Detector(keras.Model):
    """A `keras.Model` out of a trunk and a head; it knows no architecture.

    `compile("sgd")` suffices: the head brings the losses. `fit` and `evaluate` log every one of them by name, `predict`
    gives decoded detections. Targets follow the data contract (`kvision.contract`); the first batch is checked before
    the first step.

    Args:
        trunk: A functional `keras.Model` from images to a dict of features: backbone, neck and dense heads.
        head: A serializable `keras.layers.Layer`, its parts built at construction, with
            `loss_names`, a tuple of names;
            `classes`, the number of classes without a background;
            `losses(features, targets, training)`, giving `{name: scalar}`; and
            `detect(features)`, giving `{"boxes", "scores", "labels", …}` of a fixed size, padding labelled −1.
        name: Of the model.

    Call: images [b, h, w, 3] in 0…255 → the dict of features and, unless training, `"detections"`. Or a dict of
    `"images"` and more, such as `"proposals"`, which joins the features as it came.

    ```python
    detector = kvision.applications.RetinaNet(input_shape=(256, 256, 3), classes=3)
    detector.compile(keras.optimizers.SGD(0.01, momentum=0.9))
    detector.fit(images, {"boxes": boxes, "labels": labels})
    detector.predict(images)["boxes"]
    ```
    """

    def __init__(self, trunk, head, name=None, **options):
        super().__init__(name=name, **{"autocast": False} | options)  # pictures stay as they came
        self.trunk = trunk
        self.head = head
        self._loss_means = [keras.metrics.Mean(name=name) for name in head.loss_names]
        self._total = _Given(name="total")
        self._exposure = ExposureCount()  # for `callbacks.Exposure`
        self.built = True  # trunk and head are

    def call(self, images, training=None):
        given = dict(images) if hasattr(images, "keys") else {"images": images}
        features = self.trunk(given.pop("images"), training=training) | given
        return features if training else features | {"detections": self.head.detect(features)}

    def compile(self, optimizer="rmsprop", loss=None, metrics=None, **options):
        if loss is not None or metrics is not None:
            raise ValueError(
                f"{self.name} brings its own losses ({', '.join(self.head.loss_names)}): call compile(optimizer) "
                "without `loss` and `metrics`. Average precision is measured by `callbacks.DetectionMetrics`."
            )
        super().compile(optimizer=optimizer, **options)
        self._build_optimizer()

    def _build_optimizer(self):
        """Before the first step: TensorFlow traces a step that makes variables twice, seconds each time."""
        if keras.backend.backend() == "tensorflow":
            with self.distribute_strategy.scope():
                self.optimizer.build(self.trainable_variables)
        else:
            self.optimizer.build(self.trainable_variables)

    def compile_from_config(self, config):
        self.compile(**keras.saving.deserialize_keras_object(config))

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        self._refuse_weights(sample_weight)
        if y["boxes"].shape[1] is None:
            raise ValueError(
                f"{self.name} compiles for one number of boxes a picture: got batches of different ones. Pad all "
                "targets to the same number of rows with the label -1, as the readers of `kvision.data` do."
            )
        if training:
            self._exposure.update_state(x, y)
        losses = self.head.losses(y_pred, y, training)
        batch = ops.shape(y["boxes"])[0]
        for mean in self._loss_means:
            mean.update_state(losses[mean.name], sample_weight=batch)
        total = sum(ops.cast(loss, "float32") for loss in losses.values())
        total = self._total(ops.zeros((1,)), total[None])
        return total + super().compute_loss(x, None, None) if self.losses else total

    def predict_step(self, *arguments):
        if keras.backend.backend() == "jax":
            outputs, state = super().predict_step(*arguments)
            return outputs["detections"], state
        return super().predict_step(*arguments)["detections"]

    def fit(self, x=None, y=None, *arguments, **options):
        """Train; as `keras.Model.fit`, after a check of the targets (of a data set: of its first batch)."""
        self._refuse_weights(options.get("sample_weight"), options.get("class_weight"))
        self._check(x, y)
        if (validation := options.get("validation_data")) is not None:
            self._check(*validation if isinstance(validation, tuple | list) else (validation, None))
        return super().fit(x, y, *arguments, **options)

    def _refuse_weights(self, *weights):
        if any(weight is not None for weight in weights):
            raise ValueError(
                f'{self.name} takes no sample_weight and no class_weight: mark what not to learn by "crowd" or the '
                "label -1."
            )

    def _check(self, x, y):
        if y is None:
            if hasattr(x, "element_spec"):  # tf.data
                x, y = next(iter(x), (None, None))[:2]
            elif isinstance(x, keras.utils.PyDataset):
                x, y = x[0][:2]
            elif not hasattr(x, "shape") and not hasattr(x, "keys"):  # an iterator: what is read from it is lost
                return
        check_targets(tuple(images_of(x).shape), y, self.head.classes)

    def get_config(self):
        return {
            "trunk": keras.saving.serialize_keras_object(self.trunk),
            "head": keras.saving.serialize_keras_object(self.head),
            "name": self.name,
            "dtype": keras.saving.serialize_keras_object(self.dtype_policy),
        }

    @classmethod
    def from_config(cls, config):
        parts = {part: keras.saving.deserialize_keras_object(config[part]) for part in ("trunk", "head")}
        return cls(**config | parts)


class _Given(keras.losses.Loss):
    """A loss already computed, handed to Keras so that several replicas share it as they share any other."""

    def call(self, y_true, y_pred):
        return y_pred
