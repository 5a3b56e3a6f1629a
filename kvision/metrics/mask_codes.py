"""Masks of a batch as COCO's run-length codes, encoded a few at a time: at full size a data set's would fill memory."""

import math

import numpy as np

from kvision.contract import MASK_THRESHOLD, paste_mask_scores, paste_masks

CHUNK_SIZE = 16  # masks that are held at full size at once


def library():
    """faster-coco-eval, on first use."""
    try:
        import faster_coco_eval
    except ImportError as error:
        raise ImportError(
            "COCO's average precision is computed by faster-coco-eval, which is not installed. "
            "Run: pip install 'kvision[coco]'"
        ) from error
    return faster_coco_eval


def codes_of(targets, detections):
    """Run-length codes of a batch's targets and detections, without the padding, in pixels of the padded image."""
    sides = {"targets": targets, "detections": detections}
    for name, side in sides.items():
        if "masks" not in side and "box_masks" not in side:
            raise ValueError(
                f"masks=True needs masks on both sides: got none in the {name}. "
                'Give "masks" [b, n, h, w] or "box_masks" [b, n, s, s], or measure boxes only.'
            )
    size = _size(targets, detections)
    for side in sides.values():
        if "masks" in side and (side["masks"].ndim != 4 or side["masks"].shape[2:] != size):
            shapes = " and ".join(f"{name} {each['masks'].shape}" for name, each in sides.items() if "masks" in each)
            raise ValueError(
                f"Masks of one image differ in size: got {shapes}, expected [b, n, h, w] and [b, k, h, w] of the "
                "padded image."
            )
    return _codes(targets, paste_masks, size), _codes(detections, paste_mask_scores, size)


def _size(targets, detections):
    """Height and width that hold all masks of the batch."""
    for side in (detections, targets):
        if "masks" in side:
            return side["masks"].shape[2:]
    if "image_size" in targets and len(targets["image_size"]):
        return tuple(int(side) for side in targets["image_size"].max(axis=0))
    ends = [side["boxes"][side["labels"] >= 0][:, [3, 2]] for side in (targets, detections)]
    return tuple(max(1, math.ceil(end)) for end in np.concatenate([*ends, np.zeros((1, 2))]).max(axis=0))


def _codes(side, paste, size):
    codes = []
    for image, labels in enumerate(side["labels"]):
        rows = np.flatnonzero(labels >= 0)
        for chunk in np.array_split(rows, max(1, -(-len(rows) // CHUNK_SIZE))):
            if "masks" in side:
                codes += encode(side["masks"][image, chunk])
            else:
                codes += encode(paste(side["box_masks"][image, chunk], side["boxes"][image, chunk], size))
    return np.array(codes, "object")


def encode(masks):
    """Run-length codes of masks [n, h, w], along the rows: COCO's run down the columns, which would take a copy."""
    binary = masks >= MASK_THRESHOLD if masks.dtype.kind == "f" else masks != 0
    return library().mask.encode(binary.view("uint8").T) if len(masks) else []


def areas_of(codes):
    """Pixels of each mask."""
    return np.asarray(library().mask.area(codes.tolist()) if len(codes) else [], "float64")


def overlaps_of(codes, others):
    """IoU of all pairs of masks, [n, m]; 0 where both are empty."""
    if not len(codes) or not len(others):
        return np.zeros((len(codes), len(others)))
    overlaps = library().mask.iou(codes.tolist(), others.tolist(), [0] * len(others))
    return np.nan_to_num(np.asarray(overlaps, "float64"), nan=0.0)
