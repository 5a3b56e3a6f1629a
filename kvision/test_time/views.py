"""Views of an image: which windows of it, at which size, mirrored or not; and how they are cut out."""

import dataclasses

import keras
from keras import ops

from kvision.ops import resize_bilinear


@dataclasses.dataclass(frozen=True)
class View:
    """One view: the image is resized, a window is cut out, resized to what the model takes, and flipped.

    Args:
        image_size: Height and width the whole image is resized to first, in pixels.
        window: Top, left, height and width of the window, in pixels of the resized image.
        mirrored: Whether left and right change places.
        upside_down: Whether top and bottom change places.

    Raises:
        ValueError: on a window that is not inside the resized image.

    >>> View(image_size=(256, 256), window=(0, 32, 224, 224)).mirrored
    False
    """

    image_size: tuple
    window: tuple
    mirrored: bool = False
    upside_down: bool = False

    def __post_init__(self):
        top, left, height, width = self.window
        bottom, right = top + height, left + width
        inside = 0 <= top < bottom <= self.image_size[0] and 0 <= left < right <= self.image_size[1]
        if not inside or not all(isinstance(side, int) for side in (*self.image_size, *self.window)):
            raise ValueError(
                "A view is a window (top, left, height, width) of whole pixels inside the resized image: got the "
                f"window {self.window} and the image size {self.image_size}."
            )


def cut_views(images, views, size):
    """All views of each image, in the order of `views`.

    Args:
        images: `[b, h, w, c]` of a static size.
        views: A list of n `View`s.
        size: Height and width of what is made.

    Returns:
        `[b, n, *size, c]`, float32. The image is resized once for each size, bilinear and antialiased.

    >>> views = [View((4, 6), (0, 0, 4, 4)), View((4, 6), (0, 2, 4, 4), mirrored=True)]
    >>> tuple(cut_views(np.zeros((3, 4, 6, 1)), views, (4, 4)).shape)
    (3, 2, 4, 4, 1)
    """
    images = ops.cast(images, "float32")
    resized, windows, cut = {}, {}, []
    for view in views:
        if view.image_size not in resized:
            resized[view.image_size] = resize_bilinear(images, view.image_size)
        window = (view.image_size, view.window)
        if window not in windows:
            top, left, height, width = view.window
            pixels = resized[view.image_size][:, top : top + height, left : left + width]
            windows[window] = resize_bilinear(pixels, size)
        axes = [axis for axis, flipped in ((1, view.upside_down), (2, view.mirrored)) if flipped]
        cut.append(ops.flip(windows[window], axis=axes) if axes else windows[window])
    return ops.stack(cut, axis=1)


class _Views:
    """Views by a rule; those that are equal count once."""

    def __call__(self, image_size, model_size):
        """The list of `View`s of images of a size (height, width) for a model of another."""
        return list(dict.fromkeys(self._views(image_size, model_size)))

    def get_config(self):
        return dataclasses.asdict(self)

    @classmethod
    def from_config(cls, config):
        return cls(**config)


@keras.saving.register_keras_serializable("kvision")
@dataclasses.dataclass(frozen=True)
class Flips(_Views):
    """The image and its mirror image.

    An image of another size than the model's is resized to cover it, and its centre is taken.

    Args:
        vertical: Whether each of the two is also turned upside down, for images without an up, such as aerial ones.

    >>> len(Flips()((224, 224), (224, 224))), len(Flips(vertical=True)((224, 224), (224, 224)))
    (2, 4)
    """

    vertical: bool = False

    def _views(self, image_size, model_size):
        resized, window = _centre(image_size, model_size, 1.0)
        for upside_down in (False, True)[: 1 + self.vertical]:
            for mirrored in (False, True):
                yield View(resized, window, mirrored, upside_down)


@keras.saving.register_keras_serializable("kvision")
@dataclasses.dataclass(frozen=True)
class TenCrops(_Views):
    """The four corners and the centre of the image, and their mirror images.

    Krizhevsky et al. 2012, "ImageNet Classification with Deep Convolutional Neural Networks", section 4.1: crops of
    224 of images of 256. In torchvision's order: top left, top right, bottom left, bottom right and centre of the
    image, then those of its mirror image.

    Raises:
        ValueError: where called, on images that are not larger than the model's.

    >>> len(TenCrops()((256, 256), (224, 224)))
    10
    """

    def _views(self, image_size, model_size):
        if min(image_size[0] - model_size[0], image_size[1] - model_size[1]) < 0 or image_size == model_size:
            raise ValueError(
                f"Ten crops of {_by(model_size)} need larger images: got {_by(image_size)}. Give image_size=, in the "
                f"paper's proportion {_by([round(side * 8 / 7) for side in model_size])}."
            )
        windows = [*_corners(image_size, model_size), _centre_window(image_size, model_size)]
        for window in windows:
            yield View(image_size, window)
        for top, left, height, width in windows:
            yield View(image_size, (top, image_size[1] - left - width, height, width), mirrored=True)


@keras.saving.register_keras_serializable("kvision")
@dataclasses.dataclass(frozen=True)
class MultiScale(_Views):
    """The centre of the image at several scales.

    Simonyan and Zisserman 2015 (VGG), section 4.2, with windows of the model's size.

    Args:
        scales: At 1 the resized image just covers the model's input, at 1.25 it is a quarter larger; each at least 1.
        mirrored: Whether mirror images come with them.

    Raises:
        ValueError: on no scale, or one below 1: it would leave a border that the model has never seen.

    >>> [view.image_size for view in MultiScale((1.0, 1.25))((300, 400), (224, 224))]
    [(224, 299), (280, 373)]
    """

    scales: tuple = (1.0, 1.15, 1.3)
    mirrored: bool = False

    def __post_init__(self):
        object.__setattr__(self, "scales", tuple(self.scales))
        if not self.scales or not all(1 <= scale < float("inf") for scale in self.scales):
            raise ValueError(f"MultiScale: scales are numbers of at least 1, one or more: got {self.scales}.")

    def _views(self, image_size, model_size):
        for scale in self.scales:
            for mirrored in (False, True)[: 1 + self.mirrored]:
                yield View(*_centre(image_size, model_size, scale), mirrored)


@keras.saving.register_keras_serializable("kvision")
@dataclasses.dataclass(frozen=True)
class GoogLeNetCrops(_Views):
    """The 144 crops of GoogLeNet (Szegedy et al. 2015, "Going Deeper with Convolutions", section 7).

    The image at four scales; of each, the squares at left, centre and right (of portraits top, centre and bottom); of
    each square its corners and centre, and the square itself resized; and their mirror images. The three squares of a
    square image are one: 48 views remain.

    Args:
        scales: Lengths of the shorter side, in pixels, none below the model's side. The paper's, for 224 pixels, are
            8/7, 9/7, 10/7 and 11/7 of it.

    Raises:
        ValueError: on no scale; where called, on a scale below the model's side, or a model that is not square.

    >>> len(GoogLeNetCrops()((300, 400), (224, 224)))
    144
    """

    scales: tuple = (256, 288, 320, 352)

    def __post_init__(self):
        object.__setattr__(self, "scales", tuple(self.scales))
        if not self.scales or not all(isinstance(scale, int) and scale >= 1 for scale in self.scales):
            raise ValueError(f"GoogLeNetCrops: scales are whole numbers of pixels, one or more: got {self.scales}.")

    def _views(self, image_size, model_size):
        if model_size[0] != model_size[1] or min(self.scales) < model_size[0]:
            raise ValueError(
                f"GoogLeNetCrops needs a square model, and scales not below its side: got {_by(model_size)} and the "
                f"scales {self.scales}. The paper's proportions are scales="
                f"{tuple(round(min(model_size) * k / 7) for k in (8, 9, 10, 11))}."
            )
        for side in self.scales:
            resized = tuple(round(length * side / min(image_size)) for length in image_size)
            for down, across in ((0, 0), (0.5, 0.5), (1, 1)):
                square = round((resized[0] - side) * down), round((resized[1] - side) * across)
                windows = [*_corners((side, side), model_size), _centre_window((side, side), model_size)]
                for top, left, *size in [*windows, (0, 0, side, side)]:
                    for mirrored in (False, True):
                        yield View(resized, (square[0] + top, square[1] + left, *size), mirrored)


def _corners(image_size, size):
    bottom, right = image_size[0] - size[0], image_size[1] - size[1]
    return [(top, left, *size) for top in (0, bottom) for left in (0, right)]


def _centre_window(image_size, size):
    return (*(round((whole - part) / 2) for whole, part in zip(image_size, size, strict=True)), *size)


def _centre(image_size, model_size, scale):
    """The size of an image that covers the model's input `scale` times, and its central window."""
    factor = scale * max(part / whole for whole, part in zip(image_size, model_size, strict=True))
    resized = tuple(max(round(whole * factor), part) for whole, part in zip(image_size, model_size, strict=True))
    return resized, _centre_window(resized, model_size)


def _by(size):
    return " x ".join(map(str, size))
