"""Images beside label maps, for semantic segmentation."""

import concurrent.futures
import pathlib

import numpy as np
import tensorflow as tf

from kvision.data.decoding import decoder, scale_and_pad
from kvision.data.files import named_split, natural, read_text, sub_folders, walk
from kvision.data.geometry import check_size, fit
from kvision.data.label_maps import IGNORED, Coding, Naming, suggested_suffixes
from kvision.data.reader import reader


def segmentation_data(reading, pairs, headers, coding, *, image_size=(512, 512)):
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
    if min(image_size) < 1:
        raise ValueError(f"{reading.reader}: image_size must be at least 1, got {min(image_size)}.")
    reading.require(headers)
    paths = list(headers)
    upright = [reading.is_upright(header) for header in headers.values()]
    sizes = [_size(reading, header) for header in headers.values()]
    scales = [fit(size, image_size)[0] for size in sizes]
    decode = decoder(paths, list(headers.values()), upright, channels=3)

    def draw(index):
        labels = coding.read(pairs[paths[index]], sizes[index])
        rows, columns = (np.floor((np.arange(side) + 0.5) / scales[index]).astype(int) for side in image_size)
        inside = np.outer(rows < labels.shape[0], columns < labels.shape[1])
        nearest = labels[np.ix_(rows.clip(max=labels.shape[0] - 1), columns.clip(max=labels.shape[1] - 1))]
        return np.where(inside, nearest, IGNORED).astype("int32")

    def example(index):
        labels = tf.ensure_shape(tf.numpy_function(draw, [index], tf.int32), tuple(image_size))
        return scale_and_pad(decode(index), tf.constant(scales, tf.float32)[index], tuple(image_size)), labels

    def fault(index):
        """What is wrong with a map that failed in training, and the map; None if it can be read."""
        try:
            coding.read(pairs[paths[index]], sizes[index])
        except ValueError as error:
            return pairs[paths[index]], str(error)
        return None

    facts = {"class_names": coding.class_names, "files": {index: str(path) for index, path in enumerate(paths)}}
    return reading.dataset(example, paths, list(headers.values()), 3, facts, fault=fault)


def _size(reading, header):
    return header.upright_size if reading.is_upright(header) else header.size


@reader(segmentation_data)
def masks(reading, images, labels, class_names, palette=None, ignored_label=IGNORED, suffixes=("", ""), **batch):
    """Read images beside label maps, whose pixels are the numbers or the colours of classes.

    A map has the name of its image, or another end of it (`suffixes`), with the ending `.png` (`.tif`, `.bmp` or
    `.gif`), laid out alike in its own folder. Without a palette its numbers are those of the file, the indices of a
    palette and not its colours (VOC, Cityscapes' `labelTrainIds`). Whatever the files hold, ignored pixels are
    delivered as 255, as augmentation and padding have it.

    A map that has another size than its image, holds numbers or colours of no class, or is ignored as a whole is left
    out with its image and reported.

    Args:
        images: Folder of the images. With a `split` that names a list of VOC's `ImageSets/Segmentation` beside this
            folder, such as `"train"`, the images of the list; else a named split is a folder in it.
        labels: Folder of the maps.
        class_names: Names of the classes, in the order of their numbers in the maps; at most 255.
        palette: None takes the numbers of the files. A list of colours (r, g, b) in the order of the classes takes the
            colours, also those of an indexed file. A dict goes from colour, or from number, to a class: its number,
            its name, or None for pixels to ignore. What is not in it is an error of the file.
        ignored_label: The number of pixels to ignore, where there is no palette; None ignores none.
        suffixes: What ends the name of an image, and what that of its map has in its place:
            `("_leftImg8bit", "_gtFine_labelTrainIds")` of Cityscapes, `("", "_L")` of CamVid.
        **batch: Of the batches.

    Returns:
        A `tf.data.Dataset` of batches `(images, maps)`, see `segmentation_data`, with the attributes of `image_folder`
        but `counts`.

    Raises:
        ValueError: if a folder or a split does not exist, the palette fits no class, suffixes are no two texts, or no
            image can be used.

    ```python
    train = kvision.data.masks("images", "maps", ("background", "road"), split=(0, 0.8), shuffle=True)
    colours = {(0, 0, 0): "background", (128, 64, 128): "road", (224, 224, 192): None}
    train = kvision.data.masks("images", "colour maps", ("background", "road"), palette=colours)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=255)
    ```
    """
    coding = Coding(reading.reader, tuple(map(str, class_names)), palette, ignored_label)
    pairs = paired(reading, images, labels, Naming(reading.reader, suffixes))
    headers = reading.headers(pairs)
    if reading.options.check == "full":
        headers = _checked(reading, headers, pairs, coding)
    return segmentation_data(reading, pairs, headers, coding, **batch)


def paired(reading, images, maps, naming):
    """`{image: map}` of two folders by a `Naming`, those of the split; an image without a map is a problem.

    Raises:
        ValueError: If a folder or a split does not exist, or classes are given.
    """
    images, maps = pathlib.Path(images), pathlib.Path(maps)
    for folder in (images, maps):
        if not folder.is_dir():
            raise ValueError(
                f"{reading.reader}: {str(folder)!r} is not a folder. Expected one of images and one of label maps."
            )
    if reading.options.classes is not None:
        raise ValueError(
            f"{reading.reader}: the maps hold the numbers of class_names, which classes= cannot order. Leave it out."
        )
    pairs, without = {}, []
    for path in reading.chosen(reading.images(_of_split(reading, images), images), images):
        if naming.is_map(path, images, maps):
            continue
        found = naming.map_of(path, images, maps)
        if found is None:
            without.append(path)
        else:
            pairs[path] = found
    remedy = suggested_suffixes(without, images, maps) if without and not pairs else ""
    for path in without:
        reading.problem(path, "", naming.missing(path, images, maps) + remedy)
        remedy = ""
    return pairs


def _of_split(reading, images):
    """The files of a named split: of a folder in that of the images, or of a list of VOC's."""
    split = reading.options.split
    if not isinstance(split, str):
        return walk(images)
    lists = images.parent / "ImageSets" / "Segmentation"
    listed = {path.stem: path for path in sorted(lists.glob("*.txt"), key=natural)}
    parts = {part.name: part for part in sub_folders(images)}
    found = named_split(f"split of {str(images)!r}", split, listed | parts)
    if found.is_dir():
        return walk(found)
    named = {path.with_suffix("").relative_to(images).as_posix(): path for path in walk(images)}
    files = []
    for row, line in enumerate(read_text(found).splitlines()):
        name = "".join(line.split()[:1])
        if name in named:
            files.append(named[name])
        elif name:
            reading.problem(found, f"line {row + 1}", f"there is no image {str(images / name)!r}")
    return files


def _checked(reading, headers, pairs, coding):
    """The headers of the images whose map can be read; the other maps are problems."""

    def look(path):
        try:
            return np.unique(coding.read(pairs[path], _size(reading, headers[path]))).tolist()
        except ValueError as error:
            return str(error)

    with concurrent.futures.ThreadPoolExecutor() as pool:
        found = dict(zip(headers, pool.map(look, headers), strict=True))
    for path, seen in found.items():
        if isinstance(seen, str):
            reading.unreadable(pairs[path], seen, "map")
    usable = {path: set(seen) for path, seen in found.items() if not isinstance(seen, str)}
    ignores = coding.table is None and coding.ignored_label == IGNORED
    if ignores and len(coding.class_names) > 1 and set().union(*usable.values()) == {0, IGNORED}:
        reading.notes.append(
            "every map holds the numbers 0 and 255 alone, and 255 is ignored: if it is an object, pass "
            f"palette={{0: {coding.class_names[0]!r}, 255: {coding.class_names[-1]!r}}}"
        )
    return {path: headers[path] for path in usable}
