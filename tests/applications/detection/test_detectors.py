"""What every detector must do, over every row of `rows.py`."""

import contextlib
import functools
import os
import pathlib
import random
import subprocess
import sys

import keras
import numpy as np
import pytest

from kvision import _keras
from tests.applications.detection.rows import CLASSES, ROWS, SHAPE
from tests.support import SLOW, assert_close

# XLA and 16 bits take many seconds to compile: in CI, for detectors that have all parts of the others between them.
COMPILED = {
    "jit": ("retinanet", "efficientdet", "fast_rcnn", "mask_rcnn", "cascade_rcnn", "mnc", "yolo", "detr"),
    "mixed_float16": ("retinanet", "efficientdet", "mask_rcnn", "mnc of five stages", "yolo", "detr"),
    "mixed_bfloat16": ("mask_rcnn", "yolo", "detr"),
}
EXPORTED = ("retinanet", "fast_rcnn", "mask_rcnn", "yolo", "detr")  # a cascade adds nothing to them but minutes


def cases(*modes):
    """Each row in float32, some in other modes; those that share a compiled detector stay in one worker."""
    return [
        pytest.param(
            row,
            mode,
            marks=[pytest.mark.xdist_group(f"{row.name} {mode}")]
            + [pytest.mark.slow] * (row.slow or mode != "float32"),
            id=f"{row.name}-{mode}",
        )
        for row in ROWS
        for mode in modes
        if mode == "float32" or row.name in COMPILED[mode]
    ]


every_row = pytest.mark.parametrize(
    "row",
    [
        pytest.param(
            row,
            marks=[pytest.mark.xdist_group(f"{row.name} float32")] + [SLOW] * row.slow,
            id=row.name,
        )
        for row in ROWS
    ],
)


@pytest.fixture(autouse=True, scope="module")
def let_go_of_detectors(let_go):
    """Compiled models hold gigabytes."""
    yield
    compiled.cache_clear()


@pytest.fixture(autouse=True)
def fresh_session():
    """Nothing is reset: a new session, even a new seed, throws away what the shared detectors have compiled."""


ROOT = pathlib.Path(__file__).parent.parent.parent.parent

NUM_BOXES = 300  # one number for all cases: each other one would be compiled anew


def random_images(count=2, seed=0):
    return np.random.default_rng(seed).uniform(0, 255, size=(count, *SHAPE)).astype("float32")


def targets_of(*boxes_of_each, crowd=False):
    """Targets of a batch from `[(x1, y1, x2, y2, label), …]` of each image, padded."""
    boxes = np.zeros((len(boxes_of_each), NUM_BOXES, 4), "float32")
    labels = np.full((len(boxes_of_each), NUM_BOXES), -1, "int32")
    for image, rows in enumerate(boxes_of_each):
        for index, (*box, label) in enumerate(rows):
            boxes[image, index], labels[image, index] = box, label
    return {"boxes": boxes, "labels": labels, "crowd": (labels >= 0).astype("int32") * crowd}


FIRST, SECOND = [(4, 6, 30, 34, 0), (20, 20, 60, 50, 2)], [(10, 8, 42, 60, 1)]
CASES = {
    "two images": targets_of(FIRST, SECOND),
    "one image empty": targets_of(FIRST, []),
    "first empty": targets_of([], SECOND),
    "all empty": targets_of([], []),
    "one pixel": targets_of([(7, 9, 8, 10, 1)], SECOND),
    "crowd only": targets_of(FIRST, SECOND, crowd=True),
    "300 boxes": targets_of(
        [(x, y, x + 9, y + 9, (x + y) % CLASSES) for x in range(0, 40, 2) for y in range(0, 30, 2)], []
    ),
}


def batch_of(row, case="two images"):
    """Images and targets as this detector takes them."""
    targets = {name: array.copy() for name, array in CASES[case].items()}
    x = random_images(len(targets["labels"]))
    if row.max_boxes is not None:
        targets["labels"][:, row.max_boxes :] = -1
    if row.masks:
        rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]] + 0.5
        left, top, right, bottom = (targets["boxes"][..., side, None, None] for side in range(4))
        inside = (columns > left) & (columns < right) & (rows > top) & (rows < bottom)
        targets["masks"] = inside.astype("uint8")
    if row.proposals:
        shifts = np.array([[0, 0, 0, 0], [-3, 2, 4, 1], [6, -2, 9, -5], [10, 12, 30, 20]], "float32")
        around = np.concatenate([targets["boxes"][:, :2] + shift for shift in shifts], axis=1)
        x = {"images": x, "proposals": np.clip(around, 0, SHAPE[0])}
    return x, targets


def images_of(row):
    return batch_of(row)[0]


@functools.cache
def compiled(name, mode):
    """A tiny detector ready to train: in float32, in 16 bits, or by XLA; shared by the tests."""
    row = next(row for row in ROWS if row.name == name)
    random.seed(0)  # Keras's initializers draw their seeds here
    keras.config.set_dtype_policy(mode if mode.startswith("mixed") else "float32")
    try:
        model = row.tiny()
    finally:
        keras.config.set_dtype_policy("float32")
    model.compile(keras.optimizers.SGD(0.001), jit_compile=mode == "jit")
    model.first_weights = model.get_weights()
    return model


def train(model, x, targets):
    """The losses of one step of `fit`; always of the same shapes, as each other is traced anew."""
    if keras.backend.backend() == "jax":
        return model.train_on_batch(x, targets, return_dict=True)
    history = model.fit(one_batch(x, targets), shuffle=False, verbose=0).history
    return {name: values[0] for name, values in history.items()}


def evaluate(model, x, targets):
    """The losses of `evaluate`, likewise."""
    if keras.backend.backend() == "jax":
        return model.test_on_batch(x, targets, return_dict=True)
    return model.evaluate(one_batch(x, targets), verbose=0, return_dict=True)


def one_batch(*batch):
    import tensorflow as tf

    return tf.data.Dataset.from_tensors(batch)


@contextlib.contextmanager
def fast(model, rate):
    """For a while a rate that shows, and no trace of it afterwards."""
    weights, usual = model.get_weights(), float(model.optimizer.learning_rate)
    model.optimizer.learning_rate = rate
    yield
    model.optimizer.learning_rate = usual
    model.set_weights(weights)


@pytest.mark.parametrize(
    ("builder", "expected"),
    [entry for row in ROWS for entry in row.counts.values()],
    ids=[label for row in ROWS for label in row.counts],
)
def test_published_parameter_count(builder, expected):
    with _keras.shapes_only():
        model = builder()
    assert sum(np.prod(w.shape, dtype="int64") for w in model.trainable_weights) == expected


@every_row
def test_weight_paths_are_unique(row):
    paths = [weight.path for weight in compiled(row.name, "float32").weights]
    assert len(set(paths)) == len(paths) > 0


@every_row
def test_fit_and_evaluate_log_every_loss(row):
    model = compiled(row.name, "float32")
    x, targets = batch_of(row)
    both = [train(model, x, targets)]
    if not row.masks:  # whose evaluation alone compiles as long as all of another detector
        both.append(evaluate(model, x, targets))
    for logs in both:
        assert set(logs) == {"loss", *model.head.loss_names}
        parts = [float(logs[name]) for name in model.head.loss_names]
        assert np.isfinite(parts).all()
        assert min(parts) >= 0
        assert_close(sum(parts), logs["loss"])


@every_row
def test_one_step_of_fit_moves_every_kernel(row):
    """A part that the losses do not reach would stay where it is."""
    model = compiled(row.name, "float32")
    model.set_weights(model.first_weights)
    before = {weight.path: keras.ops.convert_to_numpy(weight) for weight in model.trainable_weights}
    with fast(model, 1e8):  # through the small weights of new heads little comes back
        train(model, *batch_of(row))
        still = [
            weight.path
            for weight in model.trainable_weights
            if len(weight.shape) > 1 and np.array_equal(before[weight.path], keras.ops.convert_to_numpy(weight))
        ]
    assert set(still) == set(row.unreachable)


@every_row
def test_predict_gives_detections_of_fixed_size(row):
    model = compiled(row.name, "float32")
    found = model.predict(images_of(row), verbose=0)
    count = found["scores"].shape[1]
    assert found["boxes"].shape == (2, count, 4)
    assert found["labels"].shape == (2, count)
    padding = found["labels"] == -1
    assert ((found["labels"] >= -1) & (found["labels"] < CLASSES)).all()
    assert (found["scores"][padding] == 0).all()
    assert (found["scores"][~padding] > 0).all()
    assert (np.diff(found["scores"], axis=1) <= 0).all()
    assert ((found["boxes"] >= 0) & (found["boxes"] <= SHAPE[0])).all()
    assert ("box_masks" in found) == row.masks
    assert "masks" not in found  # of full size only where they are asked for
    if row.masks:
        assert found["box_masks"].shape == (2, count, 28, 28)
        assert ((found["box_masks"] >= 0) & (found["box_masks"] <= 1)).all()


@pytest.mark.parametrize(("row", "mode"), cases("float32", "mixed_float16", "jit"))
def test_every_batch_gives_finite_losses_and_gradients(row, mode):
    """One test for all batches: alone, each would compile the detector that the others have compiled."""
    model = compiled(row.name, mode)
    for case in CASES:
        logs = train(model, *batch_of(row, case))
        assert all(np.isfinite(float(value)) for value in logs.values()), case
        assert all(np.isfinite(keras.ops.convert_to_numpy(weight)).all() for weight in model.weights), case


@pytest.mark.parametrize(("row", "mode"), cases("mixed_bfloat16"))
def test_bfloat16(row, mode):
    model = compiled(row.name, mode)
    logs = train(model, *batch_of(row))
    assert all(np.isfinite(float(value)) for value in logs.values())
    assert model.predict(images_of(row), verbose=0)["boxes"].dtype == "float32"


@pytest.mark.parametrize("case", ["all empty", "crowd only"])
@every_row
def test_without_boxes_the_box_losses_are_exactly_zero(row, case):
    logs = train(compiled(row.name, "float32"), *batch_of(row, case))
    assert [float(logs[name]) for name in row.box_losses] == [0.0] * len(row.box_losses)


@every_row
def test_without_boxes_the_classifier_still_learns(row):
    model = compiled(row.name, "float32")
    x, targets = batch_of(row, "all empty")
    with fast(model, row.rate):
        losses = [float(train(model, x, targets)["loss"]) for _ in range(4)]
        model.reset_metrics()
    assert losses[-1] < losses[0]


def outputs_of(model, row):
    """Features and detections, step by step: nothing is compiled."""
    features = model.features(images_of(row), training=False)
    return {name: keras.ops.convert_to_numpy(value) for name, value in (features | model.head.decode(features)).items()}


LOADING = """
import kvision, sys  # kvision alone
import numpy as np
keras = sys.modules["keras"]
x = dict(np.load("x.npz"))
for name in sys.argv[1:]:
    model = keras.saving.load_model(f"{name}.keras")
    features = model.features(x if name == "fast_rcnn" else x["images"], training=False)
    np.savez(f"{name}.npz", **features | model.head.decode(features))
"""


@pytest.mark.parametrize("slow", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_all_are_saved_and_loaded_in_a_fresh_process(slow, tmp_path):
    rows = [row for row in ROWS if (row.name != "retinanet") == slow]
    models = {row.name: row.tiny() for row in rows}
    for name, model in models.items():
        model.save(tmp_path / f"{name}.keras")
    np.savez(tmp_path / "x.npz", **images_of(next(row for row in ROWS if row.proposals)))
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", LOADING, *models],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path},  # this tree, not an installed one
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for row in rows:
        with np.load(tmp_path / f"{row.name}.npz") as got:
            for name, value in outputs_of(models[row.name], row).items():
                assert_close(got[name], value, tolerance=(1e-4, 1e-4))  # threads may sum in another order


def spread_scores(model):
    """Weights that give every box another score: another runtime sorts nearly equal ones in another order."""
    rng = np.random.default_rng(1)
    for weight in model.trainable_weights:
        if len(weight.shape) > 1:
            weight.assign(rng.normal(0, 0.5 * (2 / np.prod(weight.shape[:-1])) ** 0.5, weight.shape))


@pytest.mark.slow
@pytest.mark.tensorflow_only
@pytest.mark.parametrize("row", [row for row in ROWS if row.name in COMPILED["jit"]], ids=lambda row: row.name)
def test_it_is_exported_to_what_predict_gives(row, tmp_path):
    import tensorflow as tf

    model, x = row.tiny(), images_of(row)
    spread_scores(model)
    model.head.score_threshold = 0.0
    signature = keras.tree.map_structure(lambda values: keras.InputSpec(shape=(None, *values.shape[1:])), x)
    model.export(tmp_path / "saved", verbose=False, input_signature=signature if row.proposals else None)
    loaded = tf.saved_model.load(tmp_path / "saved")
    served, want = loaded.serve(keras.tree.map_structure(tf.constant, x)), model.predict(x, verbose=0)
    assert (want["labels"] >= 0).any()
    assert set(served) == set(want)
    for name in want:
        assert_close(served[name], want[name], tolerance=(1e-4, 1e-4))  # compiled otherwise


def run_litert(path, inputs):
    import tensorflow as tf

    runner = tf.lite.Interpreter(str(path)).get_signature_runner()
    return runner(**{name: inputs[name] for name in runner.get_input_details()})


def run_onnx(path, inputs):
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    outputs = session.run(None, {given.name: inputs[given.name] for given in session.get_inputs()})
    return dict(zip((given.name for given in session.get_outputs()), outputs, strict=True))


@pytest.mark.slow
@pytest.mark.tensorflow_only
@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated:UserWarning")
@pytest.mark.filterwarnings("ignore:In the future `np.object` will be defined:FutureWarning")
@pytest.mark.parametrize("format, run", [("litert", run_litert), ("onnx", run_onnx)], ids=["litert", "onnx"])
@pytest.mark.parametrize("row", [row for row in ROWS if row.name in EXPORTED], ids=lambda row: row.name)
def test_a_file_for_another_runtime_gives_what_predict_gives(row, format, run, tmp_path):
    model, x = row.tiny(), images_of(row)
    spread_scores(model)
    model.head.score_threshold = 0.0
    signature = keras.tree.map_structure(lambda values: keras.InputSpec(shape=(None, *values.shape[1:])), x)
    path = tmp_path / {"litert": "detector.tflite", "onnx": "detector.onnx"}[format]
    model.export(path, format=format, verbose=False, input_signature=signature if row.proposals else None)
    got = run(path, x if row.proposals else {"images": x})
    want = model.predict(x, verbose=0)
    assert (want["labels"] >= 0).any()
    assert set(got) == set(want)
    for key in want:
        assert_close(got[key], want[key], tolerance=(1e-4, 1e-2 if key == "boxes" else 1e-4))  # pixels
