"""Boxes and masks over an image, as W&B draws them."""

import numpy as np

LARGEST_MASK_CLASS = 127  # W&B keeps masks as signed bytes


def wandb_image(overlay):
    """A `wandb.Image` out of an `Overlay`.

    Ids of classes are the labels; where there are masks they are the labels + 1, for the mask's 0 is the background. So
    they are in label maps, where 0 is what has no class.
    """
    import wandb

    maps = {kind: layer for kind, layer in overlay.layers.items() if "label_map" in layer}
    boxed = {kind: layer for kind, layer in overlay.layers.items() if "label_map" not in layer}
    masked = any(layer.get("masks") is not None for layer in boxed.values())
    first = int(masked)
    labels = {int(label) for layer in boxed.values() for label in layer["labels"]}
    names = {label + first: _name(label, overlay.classes) for label in sorted(labels | set(_known(overlay.classes)))}
    names = {0: "background"} | names if masked else names
    boxes, masks = {}, {}
    for kind, layer in boxed.items():
        boxes[kind] = {"box_data": _boxes(overlay, layer, first), "class_labels": names}
        if layer.get("masks") is not None:
            masks[kind] = {"mask_data": _mask(overlay, layer), "class_labels": names}
    for kind, layer in maps.items():
        masks[kind] = _label_map(layer["label_map"], layer.get("classes", overlay.classes))
    return wandb.Image(
        overlay.image, caption=overlay.caption, boxes=boxes or None, masks=masks or None, file_type="jpg"
    )


def _label_map(labels, classes):
    """A label map as W&B's mask, with the names of its classes."""
    held = {int(label) for label in np.unique(labels) if label >= 0} | set(_known(classes))
    names = {label + 1: _name(label, classes) for label in sorted(held) if label < LARGEST_MASK_CLASS}
    return {
        "mask_data": np.clip(labels + 1, 0, LARGEST_MASK_CLASS).astype("uint8"),
        "class_labels": {0: "no class"} | names,
    }


def _known(classes):
    return range(len(classes or ()))


def _name(label, classes):
    return str(classes[label]) if label in _known(classes) else str(label)


def _boxes(overlay, layer, first):
    """W&B's boxes, as fractions of the image's width and height."""
    height, width = overlay.image.shape[:2]
    rows = []
    for index, (box, label) in enumerate(zip(layer["boxes"], layer["labels"], strict=True)):
        left, top, right, bottom = (float(number) for number in np.divide(box, (width, height, width, height)))
        row = {
            "position": {"minX": left, "minY": top, "maxX": right, "maxY": bottom},
            "class_id": int(label) + first,
            "box_caption": _name(int(label), overlay.classes),
        }
        if layer.get("scores") is not None:
            score = float(layer["scores"][index])
            row |= {"scores": {"score": score}, "box_caption": f"{row['box_caption']} {score:.2f}"}
        rows.append(row)
    return rows


def _mask(overlay, layer):
    """The classes of all masks in one image, the highest score on top."""
    classes = np.zeros(overlay.image.shape[:2], "uint8")
    scores = layer.get("scores")
    order = range(len(layer["labels"])) if scores is None else np.argsort(scores, kind="stable")
    for row in order:
        classes[layer["masks"][row]] = min(int(layer["labels"][row]) + 1, LARGEST_MASK_CLASS)
    return classes
