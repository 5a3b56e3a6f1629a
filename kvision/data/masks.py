"""Images beside label maps, for semantic segmentation."""

import pathlib

import numpy as np
import PIL.Image
import tensorflow as tf

from kvision.data.decoding import decoder, scale_and_pad
from kvision.data.files import named_split, sub_folders, walk
from kvision.data.geometry import check_size, fit
from kvision.data.images import TURNS, read_header
from kvision.data.reader import reader

IGNORED = 255  # the label of pixels that belong to no class, and of padding


def segmentation_data(reading, pairs, headers, class_names, *, image_size=(512, 512)):
    """The data set of batches `(images, maps)`.

    Images are as of the readers of boxes; maps are [b, height, width] int32, the class of each pixel, by its nearest
    pixel of the file; 255 is ignored, and stands in the padding.

    Args:
        image_size: (height, width) of the images in pixels. Files are scaled until they fill one of the two, smoothly
            (antialiased), and padded at the right or the bottom.

    Returns:
        A `tf.data.Dataset` with the attributes of all readers.

    Raises:
        ValueError: if there is no image, or a size is not positive.
    """
    check_size(reading.reader, image_size)
    reading.require(headers)
    paths = list(headers)
    upright = [reading.is_upright(header) for header in headers.values()]
    sizes = [h.upright_size if turned else h.size for h, turned in zip(headers.values(), upright, strict=True)]
    scales = [fit(size, image_size)[0] for size in sizes]
    decode = decoder(paths, list(headers.values()), upright, channels=3)

    def draw(index):
        labels = read_map(pairs[paths[index]], len(class_names), sizes[index])
        rows, columns = (np.floor((np.arange(side) + 0.5) / scales[index]).astype(int) for side in image_size)
        inside = np.outer(rows < labels.shape[0], columns < labels.shape[1])
        nearest = labels[np.ix_(rows.clip(max=labels.shape[0] - 1), columns.clip(max=labels.shape[1] - 1))]
        return np.where(inside, nearest, IGNORED).astype("int32")

    def example(index):
        labels = tf.ensure_shape(tf.numpy_function(draw, [index], tf.int32), tuple(image_size))
        return scale_and_pad(decode(index), tf.constant(scales, tf.float32)[index], tuple(image_size)), labels

    facts = {"class_names": class_names, "files": {index: str(path) for index, path in enumerate(paths)}}
    return reading.dataset(example, paths, list(headers.values()), 3, facts)


@reader(segmentation_data)
def masks(reading, images, labels, class_names, **batch):
    """Read images beside label maps, whose pixels are the numbers of classes; 255 is ignored.

    A map has the name of its image with the ending `.png`, laid out alike in its own folder. Its numbers are those of
    the file, the indices of a palette and not its colours (VOC, Cityscapes' `labelTrainIds`).

    Args:
        images: Folder of the images.
        labels: Folder of the maps.
        class_names: Names of the classes, in the order of their numbers in the maps.
        **batch: Of the batches.

    Returns:
        A `tf.data.Dataset` of batches `(images, maps)`, see `segmentation_data`, with the attributes of `image_folder`
        but `counts`.

    Raises:
        ValueError: if a folder or a split does not exist, or no image can be used.

    ```python
    train = kvision.data.masks("images", "maps", ("background", "road"), split=(0, 0.8), shuffle=True)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=255)
    ```
    """
    images, labels = pathlib.Path(images), pathlib.Path(labels)
    for folder in (images, labels):
        if not folder.is_dir():
            raise ValueError(f"masks: {str(folder)!r} is not a folder. Expected one of images and one of label maps.")
    if reading.options.classes is not None:
        raise ValueError("masks: the maps hold the numbers of class_names, which classes= cannot order. Leave it out.")
    home = images
    if isinstance(reading.options.split, str):
        parts = {part.name: part for part in sub_folders(images)}
        home = named_split(f"split of {str(images)!r}", reading.options.split, parts)
    pairs = {}
    for path in reading.chosen(reading.images(walk(home), images), images):
        stem = labels / path.relative_to(images)
        found = next((f for f in (stem.with_suffix(".png"), stem.with_name(stem.name + ".png")) if f.is_file()), None)
        if found is None:
            reading.problem(path, "", f"there is no map {str(stem.with_suffix('.png'))!r} for it")
        else:
            pairs[path] = found
    headers = reading.headers(pairs)
    if reading.options.check == "full":
        headers = {
            path: header for path, header in headers.items() if _whole(reading, path, header, pairs, class_names)
        }
    return segmentation_data(reading, pairs, headers, tuple(map(str, class_names)), **batch)


def _whole(reading, path, header, pairs, class_names):
    size = header.upright_size if reading.is_upright(header) else header.size
    try:
        read_map(pairs[path], len(class_names), size)
    except ValueError as error:
        reading.unreadable(pairs[path], str(error))
        return False
    return True


def read_map(path, classes, size):
    """The numbers of a label map, [h, w] uint8 or uint16; a ValueError says why they cannot be the classes of an image.

    Args:
        path: Of the map.
        classes: How many there are.
        size: Height and width of the image.
    """
    header = read_header(path)
    try:
        with PIL.Image.open(path) as image:
            labels = np.asarray(image)
    except Exception:  # a decoder that meets damaged bytes may raise anything
        raise ValueError("its data are damaged or end too early") from None
    if labels.ndim != 2:
        raise ValueError(f"it has {labels.shape[-1]} channels; a map has one number for each pixel")
    if labels.shape != size and header.upright_size == size:
        transposed, *flips = TURNS[header.orientation]
        labels = np.flip(labels.T if transposed else labels, [axis for axis, turned in enumerate(flips) if turned])
    if labels.shape != tuple(size):
        raise ValueError(f"it has {labels.shape} pixels (height, width), its image {tuple(size)}")
    labels = labels.astype("int32")
    wrong = np.unique(labels[(labels >= classes) & (labels != IGNORED)])
    if wrong.size:
        raise ValueError(f"it holds the class {wrong[0]}; there are {classes}, counted from 0, and 255 is ignored")
    return labels
