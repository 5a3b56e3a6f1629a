"""A folder with one sub-folder per class."""

import pathlib

import numpy as np

from kvision.data.files import fraction, is_hidden, named_split, natural, relative, split_of, sub_folders, walk
from kvision.data.images import SUFFIXES, UNREAD, is_image
from kvision.data.labels import check_channels, labelled_images
from kvision.data.reader import reader


@reader(labelled_images, batch_size=32)
def image_folder(reading, folder, *, channels=3, **batch):
    """Read a folder of class sub-folders; files that cannot be read are left out and named, never fatal.

    Sub-folders such as `train` and `val` that hold the same classes are splits, whose names `split` takes. Classes are
    in natural order of their names, `2` before `10`. Without `shuffle` the order of the images is fixed too, and mixes
    the classes: it is that of the hash by which `split` divides.

    Args:
        folder: Path; each sub-folder is a class, and images may lie deeper in it. Hidden folders, `__MACOSX` and the
            like are left out, links are followed.
        channels: 3 for RGB, 1 for grey.
        **batch: Of the batches.

    Returns:
        A `tf.data.Dataset` of batches (images [b, height, width, channels] float32 of 0…255, labels [b] int32), with
        the attributes `class_names`, `classes` (their number), `counts` (images used of each), `files`
        (`{index: path}`), `problems` (what is left out, and why) and `source`.

    Raises:
        ValueError: if the folder or the split does not exist, or holds no images, or those of one class only.

    ```python
    train = kvision.data.image_folder("flowers", split=(0, 0.8), image_size=(64, 64), shuffle=True)
    validation = kvision.data.image_folder(
        "flowers", split=(0.8, 1), image_size=(64, 64), classes=train.class_names
    )
    model.fit(train, validation_data=validation)
    ```
    """
    check_channels(reading, channels)
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise ValueError(
            f"image_folder: {str(folder)!r} is not a folder. Expected a folder with one sub-folder per class."
        )
    found = _classes(reading, folder)
    names = reading.class_names(found)
    for name in sorted(set(found) - set(names)):
        for _ in found[name]:
            reading.other_class(folder / name, name)
    label_of = {path: names.index(name) for name, paths in found.items() if name in names for path in paths}
    chosen = sorted(reading.chosen(label_of, folder), key=lambda path: fraction(relative(path, folder)))
    headers = reading.headers(chosen, channels)
    labels = np.array([label_of[path] for path in headers], "int32")
    counts = tuple(np.bincount(labels, minlength=len(names)).tolist())
    for label, name in enumerate(names):
        if not counts[label] and any(label_of[path] == label for path in chosen):
            raise ValueError(
                f"image_folder: class {name!r} of {str(folder)!r} has images, but none that can be read. "
                f"{reading.summary()}"
            )
    empty = [name for name, count in zip(names, counts, strict=True) if not count]
    if empty and len(empty) < len(names):
        reading.notes.append(f"there is no image of {', '.join(map(repr, empty))} here; the labels keep their order")
    facts = {"class_names": names, "counts": counts}
    return labelled_images(reading, list(headers), list(headers.values()), labels, channels, facts, **batch)


def _classes(reading, folder):
    """`{class: [path, …]}` of the images of the split, or of all."""
    tops = sub_folders(folder)
    images = {top: [path for path in walk(top) if is_image(path)] for top in tops}
    splits = {top.name: top for top in tops if split_of(top.name) and sub_folders(top)}
    split = reading.options.split
    if splits and all(top.name in splits for top, paths in images.items() if paths):
        named = isinstance(split, str)
        chosen = [named_split(f"split of {str(folder)!r}", split, splits)] if named else list(splits.values())
        if split is None and len(splits) > 1:
            reading.notes.append(f"reads {', '.join(splits)} together; split={next(iter(splits))!r} reads one of them")
    elif isinstance(split, str):
        raise ValueError(
            f"image_folder: {str(folder)!r} has no splits such as train and val above its classes: got split={split!r}."
            " Pass a range such as split=(0, 0.8), or a list of files."
        )
    else:
        splits, chosen = {"": folder}, [folder]
    found = {}
    for top in splits.values():  # classes are those of all splits
        for home in sub_folders(top):
            every = walk(home)
            paths = [path for path in every if is_image(path)]
            if top in chosen:
                if not paths:
                    reading.problem(home, "", "there is no image in it that is read: it is no class")
                reading.images(every, folder)
            if paths:
                found.setdefault(home.name, []).extend(paths if top in chosen else [])
    for home in dict.fromkeys([*chosen, folder]):
        for path in filter(pathlib.Path.is_file, home.iterdir()):
            if path.suffix.lower() in (*SUFFIXES, *UNREAD) and not is_hidden(path.name):
                reading.problem(path, "", "the image lies in no sub-folder of a class, and is left out")
    if not found:
        raise ValueError(
            f"image_folder: no images ({', '.join(SUFFIXES)}) in the sub-folders of {str(folder)!r}. "
            f"Expected one sub-folder per class, with its images inside. {reading.summary()}".rstrip()
        )
    if len(found) < 2:
        raise ValueError(
            f"image_folder: {str(folder)!r} holds images of one class only ({next(iter(found))!r}); a classifier needs "
            f"at least two sub-folders with images. {reading.summary()}".rstrip()
        )
    return dict(sorted(found.items(), key=lambda item: natural(item[0])))
