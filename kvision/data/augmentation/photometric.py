"""Changes of colour alone: jitter, SSD's distortion, lighting along the principal components of the colours."""

import dataclasses
import math

import numpy as np
import tensorflow as tf

from kvision.data.augmentation.samples import Transform, inside, size_of, uniform
from kvision.data.augmentation.warps import matrix3
from kvision.moments import Covariance, pixels_of

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, which image tools use for grey
TO_YIQ = np.array([LUMA, (0.595716, -0.274453, -0.321263), (0.211456, -0.522591, 0.311135)])

# Principal components of the colours of ImageNet's training set, of values in 0…1: eigenvalues of their covariance, and
# the vectors as columns. Krizhevsky, Sutskever and Hinton 2012, section 4.1.
IMAGENET_EIGENVALUES = (0.2175, 0.0188, 0.0045)
IMAGENET_EIGENVECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Photometric(Transform):
    """A change of the pixels' values that moves nothing; the padding of an image stays black."""

    def apply(self, image, targets, seed):
        new = tf.clip_by_value(self.recoloured(tf.cast(image, tf.float32), targets, seed), 0.0, 255.0)
        if "image_size" in targets:
            new = tf.where(inside(size_of(image), targets["image_size"])[..., None], new, 0.0)
        return new, targets

    def recoloured(self, image, targets, seed):
        """The image [h, w, c], float32. Of subclasses."""
        raise NotImplementedError


def mean_grey(image, targets):
    """The mean lightness of an image's valid region."""
    height, width = size_of(image)
    rows = tf.reshape(image, [height, width * image.shape[-1]])  # summed up first: both axes at once are slow
    sums = tf.reduce_sum(tf.reshape(tf.reduce_sum(rows, axis=0), [width, image.shape[-1]]), axis=0)
    pixels = tf.cast(tf.reduce_prod(targets.get("image_size", tf.stack([height, width]))), tf.float32)
    return (tf.tensordot(sums, tf.constant(LUMA), 1) if image.shape[-1] == 3 else tf.reduce_mean(sums)) / pixels


def linear_colours(image, matrix, bias):
    """Each pixel's colours times a matrix [3, 3], plus a bias."""
    height, width = size_of(image)
    group = math.gcd(width, 4) if isinstance(width, int) else 1  # pixels at once: products of three columns are slow
    blocks = tf.eye(group)[:, None, :, None] * tf.transpose(matrix)[None, :, None, :]
    pixels = tf.reshape(image, [-1, 3 * group])
    product = tf.matmul(pixels, tf.reshape(blocks, [3 * group, 3 * group]))
    rows = tf.reshape(product, [height, 3 * width]) + tf.tile(bias, [width])
    return tf.reshape(rows, tf.shape(image))


def jitter(image, targets, brightness, contrast, saturation, hue):
    """An image with other brightness, contrast and saturation (factors) and hue (in turns), in one pass.

    Each is a linear map of the colours, contrast about the mean grey; all together are one, and the result is not cut
    to 0…255. Hue turns about the grey axis, in the YIQ colours; None leaves it.
    """
    grey = mean_grey(image, targets)
    if image.shape[-1] != 3:
        return image * brightness * contrast + (1.0 - contrast) * grey * brightness
    luma = tf.tile(tf.constant([LUMA]), [3, 1])
    colours = saturation * tf.eye(3) + (1.0 - saturation) * luma
    if hue is not None:
        turn = 2.0 * np.pi * hue
        rotation = matrix3(1.0, 0.0, 0.0, 0.0, tf.cos(turn), -tf.sin(turn), 0.0, tf.sin(turn), tf.cos(turn))
        to_yiq, to_rgb = (tf.constant(matrix, tf.float32) for matrix in (TO_YIQ, np.linalg.inv(TO_YIQ)))
        colours = to_rgb @ rotation @ to_yiq @ colours
    bias = tf.fill([3], (1.0 - contrast) * grey * brightness)
    return linear_colours(image, colours * (brightness * contrast), bias)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ColorJitter(Photometric):
    """Random brightness, contrast, saturation and hue.

    Howard 2013, "Some improvements on deep convolutional neural network based image classification", section 2.2, takes
    0.5 for the first three. They are one linear map of the colours, so an image is passed over once; HSV's hue, which
    torchvision turns, is YIQ's here.

    Args:
        rate: How often, in [0, 1].
        brightness, contrast, saturation: A factor is drawn evenly from 1 − value … 1 + value; in [0, 1].
        hue: Turns of the colour circle, at most, in either direction, in [0, 0.5].

    >>> image = ColorJitter()(tf.fill([8, 8, 3], 100.0), seed=(0, 1))
    >>> tuple(image.shape)
    (8, 8, 3)
    """

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        for name, most in (("brightness", 1), ("contrast", 1), ("saturation", 1), ("hue", 0.5)):
            self.check(name, 0 <= getattr(self, name) <= most, f"in [0, {most}]")

    def recoloured(self, image, targets, seed):
        factors = ((1 - most, 1 + most) for most in (self.brightness, self.contrast, self.saturation))
        *drawn, hue = uniform(seed, *factors, (-self.hue, self.hue))
        return jitter(image, targets, *drawn, hue if self.hue else None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhotometricDistortion(Photometric):
    """SSD's distortion: brightness, contrast, saturation, hue and order of the channels, each in half of the images.

    Liu et al. 2016, "SSD", section 2.2, after Howard 2013; the ranges are those of torchvision.

    Args:
        rate: How often, in [0, 1].
        brightness, contrast, saturation: Smallest and largest factor.
        hue: Smallest and largest turn of the colour circle.

    >>> image = PhotometricDistortion()(tf.fill([8, 8, 3], 100.0), seed=(0, 1))
    >>> tuple(image.shape)
    (8, 8, 3)
    """

    brightness: tuple = (0.875, 1.125)
    contrast: tuple = (0.5, 1.5)
    saturation: tuple = (0.5, 1.5)
    hue: tuple = (-0.05, 0.05)

    def __post_init__(self):
        super().__post_init__()
        for name in ("brightness", "contrast", "saturation"):
            self.check_range(name, low=0.0)
        self.check_range("hue", -0.5, 0.5)

    def recoloured(self, image, targets, seed):
        first, second = tf.unstack(tf.random.split(seed))
        ranges = (self.brightness, self.contrast, self.saturation, self.hue)
        drawn = uniform(first, *ranges, *[(0.0, 1.0)] * 5)
        made = [
            tf.where(coin < 0.5, value, neutral)
            for value, coin, neutral in zip(drawn, drawn[4:8], (1.0, 1.0, 1.0, 0.0), strict=False)
        ]
        image = jitter(image, targets, *made)
        if image.shape[-1] != 3:
            return image
        order = tf.argsort(tf.random.stateless_uniform([3], second))
        return tf.gather(image, tf.where(drawn[8] < 0.5, order, tf.range(3)), axis=-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ColorPCA(Photometric):
    """Lighting: to all pixels, a random multiple of each principal component of the colours is added.

    Krizhevsky, Sutskever and Hinton 2012, "ImageNet classification with deep convolutional neural networks", section
    4.1: the components times their eigenvalues, of colours in 0…1, times numbers of a normal distribution.

    Args:
        rate: How often, in [0, 1].
        sigma: Standard deviation of these numbers.
        eigenvalues: [3], of the covariance of the colours in 0…1. `ColorPCA.fit` finds those of your images; the
            default ones are ImageNet's.
        eigenvectors: [3, 3], as columns.

    >>> image = ColorPCA()(tf.fill([8, 8, 3], 100.0), seed=(0, 1))
    >>> tuple(image.shape)
    (8, 8, 3)
    """

    sigma: float = 0.1
    eigenvalues: tuple = IMAGENET_EIGENVALUES
    eigenvectors: tuple = IMAGENET_EIGENVECTORS

    def __post_init__(self):
        super().__post_init__()
        self.check("sigma", self.sigma >= 0, "at least 0")
        self.check("eigenvalues", np.shape(self.eigenvalues) == (3,), "three numbers")
        self.check("eigenvectors", np.shape(self.eigenvectors) == (3, 3), "three rows of three, vectors as columns")

    def recoloured(self, image, targets, seed):
        if image.shape[-1] != 3:
            raise ValueError(f"ColorPCA: images must be RGB, got {image.shape[-1]} channels.")
        multiples = self.sigma * tf.random.stateless_normal([3], seed) * tf.constant(self.eigenvalues, tf.float32)
        return image + 255.0 * tf.linalg.matvec(tf.constant(self.eigenvectors, tf.float32), multiples)

    @classmethod
    def fit(cls, dataset, *, rate=1.0, sigma=0.1):
        """This transform with the components of the colours of a data set, read once.

        Args:
            dataset: A `tf.data.Dataset` of samples or batches of images in 0…255, as `augment` takes them; padding
                that the targets tell of does not count.
            rate, sigma: As of the class.

        >>> images = np.random.default_rng(0).integers(0, 255, (4, 8, 8, 3))
        >>> fitted = ColorPCA.fit(tf.data.Dataset.from_tensor_slices(images.astype("float32")))
        >>> np.shape(fitted.eigenvectors)
        (3, 3)
        """
        moments = Covariance(3)
        for pixels in pixels_of(dataset, "ColorPCA.fit"):
            if pixels.shape[1] != 3:
                raise ValueError(
                    f"ColorPCA.fit: expected RGB images, got {pixels.shape[1]} channels. Read them as RGB."
                )
            moments.update(pixels / 255.0)
        if moments.count < 2:
            raise ValueError("ColorPCA.fit: the data set has no pixels; give it at least one image.")
        values, vectors = np.linalg.eigh(moments.variance())
        order = np.argsort(-values)
        values, vectors = np.maximum(values[order], 0.0), vectors[:, order]
        return cls(
            rate=rate,
            sigma=sigma,
            eigenvalues=tuple(values.tolist()),
            eigenvectors=tuple(map(tuple, vectors.tolist())),
        )
