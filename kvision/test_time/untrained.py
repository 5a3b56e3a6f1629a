"""Models around a trained one that are themselves not trained."""

import keras
from keras import ops

from kvision.ops import operations_for


class Untrained(keras.Model):
    """A `keras.Model` without an optimizer; it is exported for one input of images."""

    def compile(self, loss=None, metrics=None, **options):
        """As `keras.Model.compile`, for `predict` and `evaluate`: without an optimizer.

        Args:
            loss, metrics: As in Keras.
            **options: Keras's others, such as `jit_compile`.

        Raises:
            ValueError: on an optimizer.
        """
        if "optimizer" in options or not _may_be_loss(loss):
            raise ValueError(
                f"{self.name} is not trained: call compile(loss, metrics=…) without an optimizer. Got as the loss: "
                f"{loss!r}."
            )
        super().compile("sgd", loss=loss, metrics=metrics, **options)  # Keras needs one; this has no state

    def compile_from_config(self, config):
        config = keras.saving.deserialize_keras_object(config)
        config.pop("optimizer", None)
        self.compile(**config)

    def fit(self, *arguments, **options):
        """Refused."""
        raise ValueError(f"{self.name} is not trained: call fit of the model inside, {self.inside.name}.")

    def train_on_batch(self, *arguments, **options):
        """Refused."""
        self.fit()

    @property
    def inside(self):
        """The model that is trained. Of subclasses."""
        raise NotImplementedError

    @property
    def image_shape(self):
        """Height, width and channels of the images it takes. Of subclasses."""
        raise NotImplementedError

    @property
    def class_names(self):
        """Those of the model inside, None if unknown."""
        return getattr(self.inside, "class_names", None)

    def check_images(self, images):
        """The images in float32 and of known size; a ValueError where it is another."""
        pairs = zip(images.shape[1:], self.image_shape, strict=False)
        if len(images.shape) != 4 or any(got not in (None, side) for got, side in pairs):
            raise ValueError(
                f"{self.name} takes images [b, {', '.join(map(str, self.image_shape))}]: got {tuple(images.shape)}. "
                "Resize them, or build it with another image_size=."
            )
        # After a batch of another size TensorFlow traces sizes as unknown: a sum makes them known, or fails.
        return ops.cast(images, "float32") + ops.zeros((1, *self.image_shape))

    def export(self, filepath, format="tf_saved_model", **options):
        """As `keras.Model.export`."""
        inputs = keras.Input(self.image_shape)
        with operations_for(format):
            whole = keras.Model(inputs, self(inputs), name=self.name)
            whole(ops.zeros((1, *self.image_shape)))  # for ONNX
            return whole.export(filepath, format=format, **options)


def checked_size(owner, image_size, default):
    """`image_size` as a tuple, None being the default; a ValueError for what is no height and width."""
    size = default if image_size is None else image_size
    if not isinstance(size, tuple | list) or len(size) != 2 or not all(isinstance(n, int) and n >= 1 for n in size):
        raise ValueError(f"{owner}: image_size is (height, width) in whole pixels: got {image_size!r}.")
    return tuple(size)


def _may_be_loss(loss):
    if isinstance(loss, str):
        try:
            keras.losses.get(loss)
        except ValueError:
            return False
    return not isinstance(loss, keras.optimizers.Optimizer)
