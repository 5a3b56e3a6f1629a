"""A classifier under attack: its logits, and the gradients that attacks follow.

Attacks ascend the cross-entropy of a class. It is softplus(m), with the margin m = logsumexp of the other logits minus
that of the class, and rises with m: the gradients of both have one direction. That of m does not vanish where the
network is sure, as that of the cross-entropy does in float32, so m is what is differentiated here.
"""

import functools

import numpy as np
from keras import ops

from kvision.visualize.images import check_differentiable
from kvision.visualize.logits import ends, look_like_probabilities
from kvision.visualize.probe import Probe
from kvision.visualize.targets import class_score, in_chunks

HIDDEN = -1e9  # in place of a logit that is not to count


class Classifier:
    """A model made ready for many attacks, whose graph is traced once; every attack takes it in place of the model.

    It reads the weights of the model at each run, so that it serves a training too.

    Args:
        model: A built `keras.Model` of images → logits or probabilities [b, classes], or [b, 1] of two classes.
        preprocess: A function from images to what the model takes, such as `model.preprocessing`; None: none.

    Raises:
        ValueError: on a model that is not built, or whose input is of integers.

    >>> model = keras.Sequential([keras.Input((4, 4, 1)), layers.Flatten(), layers.Dense(3)])
    >>> kvision.visualize.adversarial.Classifier(model).logits(np.zeros((2, 4, 4, 1))).shape
    (2, 3)
    """

    def __init__(self, model, *, preprocess=None):
        self.probe = Probe(model, preprocess=preprocess)
        check_differentiable(model)
        outputs = getattr(model, "output_shape", None)
        if any(kind == "sigmoid" for _, _, kind in ends(model)) and isinstance(outputs, tuple) and outputs[-1] != 1:
            raise ValueError(
                f"{model.name} ends in a sigmoid for each of {outputs[-1]} classes: expected one class an image, by a "
                "softmax or logits, or one output."
            )
        self.model = model
        self.preprocess = preprocess

    @classmethod
    def of(cls, model, preprocess):
        """`model` itself where it is a `Classifier`, else one of it."""
        if not isinstance(model, cls):
            return cls(model, preprocess=preprocess)
        if preprocess is not None:
            raise ValueError(
                "A Classifier has its preprocess already: give it there, Classifier(model, preprocess=...), and not "
                "to the attack."
            )
        return model

    def logits(self, images, batch_size=32):
        """Logits [b, classes] of images as float32; a model of one logit z gives those of two classes, 0 and z.

        Raises:
            ValueError: on outputs of another form.
        """
        return in_chunks(lambda chunk: self._classes(self.probe(self._tensor(chunk)).outputs), batch_size, images)

    def check(self, images, bounds):
        """Raise on a model that gives probabilities, or values that are not finite; the number of its classes."""
        logits = self.logits(images, len(images))
        if self._look_like_probabilities(logits):  # logits may add up to 1 by chance
            noise = np.random.default_rng(0).uniform(*bounds, images.shape).astype("float32")
            if self._look_like_probabilities(self.logits(noise, len(images))):
                raise ValueError(
                    f"{self.model.name} gives probabilities, whose gradient vanishes where it is sure, and its softmax "
                    "or sigmoid was not found: expected logits. Build it without that end."
                )
        if not np.isfinite(logits).all():
            raise ValueError(f"{self.model.name} gives logits that are not finite: expected finite ones.")
        return logits.shape[1]

    def _look_like_probabilities(self, logits):
        is_single = logits.shape[1] == 2 and not logits[:, 0].any()  # of one output
        return look_like_probabilities(logits[:, 1:] if is_single else logits, self.model)

    def margins(self, images, classes):
        """Margins [b] by which each image is missed by its class, and their gradients by the images, as tensors."""
        margins, gradients, _ = self._margin(self._tensor(images), ops.convert_to_tensor(classes, "int32"))
        return margins, gradients

    def differences(self, images, first, second):
        """The logit of one class minus that of another [b], and its gradients by the images, as tensors."""
        classes = (ops.convert_to_tensor(each, "int32") for each in (first, second))
        differences, gradients, _ = self._difference(self._tensor(images), *classes)
        return differences, gradients

    def class_gradients(self, images, classes):
        """Gradients of the logit of a class by each image, as a tensor."""
        return self._logit(self._tensor(images), ops.convert_to_tensor(classes, "int32"))[1]

    @functools.cached_property
    def _logit(self):
        return self.probe.with_gradients(
            lambda look, classes: class_score(look._replace(outputs=self._classes(look.outputs)), classes)
        )

    @functools.cached_property
    def _margin(self):
        return self.probe.with_gradients(lambda look, classes: margin(self._classes(look.outputs), classes))

    @functools.cached_property
    def _difference(self):
        def difference(look, first, second):
            look = look._replace(outputs=self._classes(look.outputs))
            return class_score(look, first) - class_score(look, second)

        return self.probe.with_gradients(difference)

    def _classes(self, outputs):
        """Outputs as float32 [b, classes]."""
        if not hasattr(outputs, "shape") or len(outputs.shape) != 2:
            got = tuple(outputs.shape) if hasattr(outputs, "shape") else type(outputs).__name__
            raise ValueError(f"{self.model.name} gives {got}: expected a classifier, with logits [b, classes].")
        outputs = ops.cast(outputs, "float32")
        return outputs if outputs.shape[1] > 1 else ops.concatenate([ops.zeros_like(outputs), outputs], axis=1)

    @staticmethod
    def _tensor(images):
        return ops.convert_to_tensor(images, "float32")


def margin(logits, classes):
    """logsumexp of the other logits minus that of the class: [b], above 0 where the class has less than half."""
    chosen = ops.arange(logits.shape[1], dtype="int32")[None] == ops.cast(classes, "int32")[:, None]
    others = ops.where(chosen, HIDDEN, logits)
    own = ops.where(chosen, logits, 0.0)
    return ops.logsumexp(others, axis=1) - ops.sum(own, axis=1)


def probabilities(logits):
    """The softmax of logits [b, classes], in NumPy."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def input_shape(model):
    """Height, width and channels of the images a model takes, None where it does not say."""
    shape = getattr(model, "input_shape", None)
    return tuple(shape[1:]) if isinstance(shape, tuple) and len(shape) == 4 else (None,) * 3
