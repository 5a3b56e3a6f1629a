"""Train tiny networks in 16 bits, three steps each: `python tiny_networks.py mixed_float16 lenet5 retinanet …`.

A reply in JSON a line: {"network", "policy", "loss", "seconds"} or {"network", "policy", "error"}.
"""

import json
import math
import os
import pathlib
import sys
import time
import traceback

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
STEPS = 3


def rows():
    """`{name: (kind, row)}` of every tiny network that the tests know."""
    from tests.applications.classification import rows as classification
    from tests.applications.detection import rows as detection
    from tests.applications.segmentation import rows as segmentation

    found = {row.module: (classifier, row) for row in classification.ROWS}
    found |= {row.name: (segmenter, row) for row in segmentation.ROWS}
    return found | {row.name: (detector, row) for row in detection.ROWS}


def classifier(row, rng):
    model = row.tiny(input_shape=row.shape, **row.head, **row.short)
    model.compile("sgd", "sparse_categorical_crossentropy")
    return model, rng.normal(size=(4, *row.shape)).astype("float32"), rng.integers(0, 3, 4)


def segmenter(row, rng):
    import keras

    model = row.tiny(input_shape=row.shape, classes=3)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.01), dict.fromkeys(row.outputs, loss) if row.outputs else loss)
    labels = rng.integers(0, 3, (2, *row.shape[:2])).astype("int32")
    images = rng.normal(size=(2, *row.shape)).astype("float32")
    return model, images, dict.fromkeys(row.outputs, labels) if row.outputs else labels


def detector(row, rng):
    import keras
    import numpy as np

    model = row.tiny()
    model.compile(keras.optimizers.SGD(1e-3))
    shape = model.input_shape["images"] if isinstance(model.input_shape, dict) else model.input_shape
    images = rng.uniform(0, 255, (2, *shape[1:])).astype("float32")
    boxes = np.array([[[4, 6, 30, 34], [20, 20, 60, 50]], [[10, 8, 42, 60], [0, 0, 0, 0]]], "float32")
    targets = {"boxes": boxes, "labels": np.array([[0, 2], [1, -1]], "int32")}
    if row.masks:
        y, x = np.mgrid[: shape[1], : shape[2]] + 0.5
        left, top, right, bottom = (boxes[..., side, None, None] for side in range(4))
        targets["masks"] = ((x > left) & (x < right) & (y > top) & (y < bottom)).astype("uint8")
    if row.proposals:
        around = np.concatenate([boxes, boxes + np.array([-3, 2, 4, 1], "float32")], axis=1)
        return model, {"images": images, "proposals": np.clip(around, 0, shape[1])}, targets
    return model, images, targets


def main():
    import keras
    import numpy as np

    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not mix with the replies
    policy, *names = sys.argv[1:]
    known = rows()
    for name in names:
        begin, reply = time.perf_counter(), {"network": name, "policy": policy}
        try:
            keras.utils.clear_session(free_memory=False)
            keras.utils.set_random_seed(0)
            keras.config.set_dtype_policy(policy)
            kind, row = known[name]
            model, x, y = kind(row, np.random.default_rng(0))
            for _ in range(STEPS):
                loss = model.train_on_batch(x, y, return_dict=True)["loss"]
            loss = float(loss)
            reply |= {"loss": loss} if math.isfinite(loss) else {"error": f"the loss is {loss}"}
        except Exception as error:  # a network that fails is a row of the table, not the end of the run
            traceback.print_exc()
            reply["error"] = f"{type(error).__name__}: {str(error)[:200]}"
        replies.write(json.dumps(reply | {"seconds": round(time.perf_counter() - begin, 1)}) + "\n")


if __name__ == "__main__":
    main()
