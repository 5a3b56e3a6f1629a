"""What every network must do, over every row of `rows.py`."""

import functools
import importlib
import json
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest

import kvision.applications
from kvision.applications import cut
from kvision.layers.conventions import activation_layer
from tests.applications.classification.rows import ROWS
from tests.applications.detection import rows as detector_rows
from tests.applications.segmentation import rows as segmentation_rows
from tests.support import assert_close
from tests.weights.states import values


def rows(condition=lambda row: True):
    """One test case for each row that meets the condition."""
    return pytest.mark.parametrize("row", [row for row in ROWS if condition(row)], ids=lambda row: row.module)


by_module = rows()
convolutional = rows(lambda row: row.convolutional)

CLASSIFICATION = "kvision.applications.classification"
SHARED = {"__init__", "coco", "imagenet"}


def table(field):
    """One test case for each entry of a row's dict."""
    cases = [(label, *entry) for row in ROWS for label, entry in getattr(row, field).items()]
    return pytest.mark.parametrize(("label", "builder", "expected"), cases, ids=[case[0] for case in cases])


@functools.cache
def tiny(module):
    """The tiny network of a row, built once; no test changes it."""
    (row,) = [row for row in ROWS if row.module == module]
    return row.tiny(input_shape=row.shape, **row.head)


@pytest.fixture(scope="module", autouse=True)
def _let_go():
    yield
    tiny.cache_clear()


def images_of(shape, count=4):
    return np.random.default_rng(0).normal(size=(count, *shape)).astype("float32")


# They take more than images, which the general tests cannot give; files of tests of their own stand in for a row.
WITHOUT_ROW = {"hypercolumns", "sds"}


def test_every_architecture_has_a_row_with_its_proof():
    folder, tests = pathlib.Path(kvision.applications.__file__).parent, pathlib.Path(__file__).parent.parent
    rows = [*ROWS, *detector_rows.ROWS, *segmentation_rows.ROWS]
    modules = {path.stem for path in folder.glob("*/*.py") if not path.stem.startswith("sds_")}  # parts of `sds`
    assert modules - SHARED == {row.module for row in rows} | WITHOUT_ROW
    assert all(row.proof for row in rows)
    for module in WITHOUT_ROW:
        assert importlib.import_module(f"kvision.applications.segmentation.{module}").PROOF
        assert (tests / "segmentation" / f"test_{module}.py").exists()


@by_module
def test_module_has_preprocessing_and_is_cited(row):
    module = importlib.import_module(f"{CLASSIFICATION}.{row.module}")
    assert callable(module.preprocess_input)
    assert any(year in module.__doc__ for year in ["(Stanford)", *(f"({year})" for year in range(1998, 2024))])


def test_images_are_prepared_as_torchvision_documents_it():
    red = np.zeros((1, 2, 2, 3), "float32")
    red[..., 0] = 255  # in RGB
    want = [(1 - 0.485) / 0.229, -0.456 / 0.224, -0.406 / 0.225]
    assert_close(kvision.applications.imagenet.preprocess_input(red)[0, 0, 0], want)


@table("counts")
def test_published_parameter_count(label, builder, expected):
    with keras.StatelessScope(initialize_variables=False):  # shapes without memory
        model = builder()
    assert sum(np.prod(w.shape, dtype="int64") for w in model.trainable_weights) == expected


def stride_to(layer):
    """The product of the strides of all layers between the images and a layer, along one path."""
    stride = 1
    while not isinstance(layer, keras.layers.InputLayer):
        strides = getattr(layer, "strides", {"Subsampling": 2, "PatchMerging": 2}.get(type(layer).__name__, 1))
        stride *= strides if isinstance(strides, int) else strides[0]
        layer = (layer.input[0] if isinstance(layer.input, list) else layer.input)._keras_history.operation
    return stride


@table("levels")
def test_levels(label, builder, expected):
    with keras.StatelessScope(initialize_variables=False):
        model = builder(include_top=False, features=tuple(expected))
    assert {level: tuple(tensor.shape[1:]) for level, tensor in model.output.items()} == {
        level: shape for level, (_, shape, _) in expected.items()
    }
    assert model.feature_info == {
        level: {"stride": stride, "channels": shape[-1], "layer": name}
        for level, (stride, shape, name) in expected.items()
    }
    for level, (stride, _, name) in expected.items():
        assert model.get_layer(name).output is model.output[level]
        assert stride_to(model.get_layer(name)) == stride


@table("levels")
def test_a_network_with_its_classifier_knows_its_levels(label, builder, expected):
    with keras.StatelessScope(initialize_variables=False):
        model = builder()
        backbone = cut(model, tuple(expected))
    if label != "SwinT":  # which normalises the maps it returns
        assert model.feature_info == {
            level: {"stride": stride, "channels": shape[-1], "layer": name}
            for level, (stride, shape, name) in expected.items()
        }
    assert backbone.feature_info == model.feature_info
    assert backbone.preprocessing is model.preprocessing is not None
    assert {level: tuple(tensor.shape[1:]) for level, tensor in backbone.output.items()} == {
        level: shape for level, (_, shape, _) in expected.items()
    }


def dropouts(model):
    return [layer for layer in model.layers if isinstance(layer, keras.layers.Dropout)]


@table("dropouts")
def test_dropout_stands_where_it_was_published(label, builder, expected):
    with keras.StatelessScope(initialize_variables=False):
        model = builder()
    assert {layer.input._keras_history.operation.name: layer.rate for layer in dropouts(model)} == expected


@rows(lambda row: row.dropouts)
def test_a_given_rate_is_that_of_every_dropout(row):
    with keras.StatelessScope(initialize_variables=False):
        model = row.tiny(input_shape=row.shape, dropout_rate=0.375, **row.head)
    assert {layer.rate for layer in dropouts(model)} == {0.375}


@by_module
def test_weight_paths_are_unique(row):
    paths = [weight.path for weight in tiny(row.module).weights]
    assert len(set(paths)) == len(paths) > 0


@by_module
def test_scores_are_float32_probabilities(row):
    scores = keras.ops.convert_to_numpy(tiny(row.module)(images_of(row.shape)))
    assert scores.shape == (4, row.head["classes"])
    assert scores.dtype == "float32"
    assert_close(scores.sum(axis=-1), np.ones(4))


@rows(lambda row: row.odd_shape)
def test_odd_input_sizes(row):
    model = row.tiny(input_shape=row.odd_shape, **row.head)
    assert np.isfinite(keras.ops.convert_to_numpy(model(images_of(row.odd_shape)))).all()


def slow_unless(quick):
    return [] if quick else pytest.mark.slow


# Two norms are batch normalisation with a flag: one network shows in `make test` that it is passed on.
@pytest.mark.parametrize(
    ("row", "norm"),
    [
        pytest.param(
            row,
            norm,
            id=f"{row.module}-{norm}",
            marks=slow_unless(norm in ("batch", "group", None) or row.module == "resnet"),
        )
        for row in ROWS
        for norm in row.norms
    ],
)
def test_norms(row, norm):
    model = row.tiny(input_shape=row.shape, norm=norm, **row.head)
    assert np.isfinite(keras.ops.convert_to_numpy(model(images_of(row.shape), training=True))).all()


@pytest.mark.parametrize(
    "activation",
    [
        pytest.param(name, marks=slow_unless(name in ("tanh", "maxout")))
        for name in ("sigmoid", "tanh", "relu", "leaky", "prelu", "elu", "maxout")
    ],
)
@convolutional
def test_activations_by_name(row, activation):
    with keras.StatelessScope(initialize_variables=False):
        model = row.tiny(input_shape=row.shape, activation=activation, **row.head)
    assert model.output_shape == (None, 3)
    classes = {type(layer) for layer in model.layers}
    names = {layer.activation.__name__ for layer in model.layers if isinstance(layer, keras.layers.Activation)}
    assert type(activation_layer(activation)) in classes
    assert activation in names or type(activation_layer(activation)) is not keras.layers.Activation
    assert activation == "relu" or keras.layers.ReLU not in classes


@pytest.mark.parametrize(
    ("initializer", "deviation"),
    [
        pytest.param("zero", 0.0, marks=pytest.mark.slow),
        ("normal_0.01", 0.01),
        pytest.param("normal_1", 1.0, marks=pytest.mark.slow),
    ],
)
@convolutional
def test_initializers_by_name(row, initializer, deviation):
    model = row.tiny(input_shape=row.shape, initializer=initializer, **row.head)
    kernels = [keras.ops.convert_to_numpy(w).ravel() for w in model.weights if w.name == "kernel"]
    assert_close(np.concatenate(kernels).std(), deviation, tolerance=(0.1, 0.0))


def same_description(a, b):
    return (a.preprocessing, a.feature_info, a.weight_sources) == (b.preprocessing, b.feature_info, b.weight_sources)


@by_module
def test_save_and_load(row, tmp_path):
    model = tiny(row.module)
    model.save(tmp_path / "model.keras")
    copy = keras.saving.load_model(tmp_path / "model.keras")
    assert [w.path for w in copy.weights] == [w.path for w in model.weights]
    assert_close(copy(images_of(row.shape)), model(images_of(row.shape)))
    assert same_description(copy, model)
    assert copy.preprocessing == importlib.import_module(f"{CLASSIFICATION}.{row.module}").preprocess_input


@by_module
def test_a_clone_carries_what_its_network_does(row):
    model = tiny(row.module)
    with keras.StatelessScope(initialize_variables=False):
        assert same_description(keras.models.clone_model(model), model)


@by_module
def test_weights_from_a_path(row, tmp_path, capsys):
    model = tiny(row.module)
    model.save_weights(tmp_path / "tiny.weights.h5")
    copy = row.tiny(input_shape=row.shape, weights=str(tmp_path / "tiny.weights.h5"), **row.head)
    assert_close(copy(images_of(row.shape)), model(images_of(row.shape)))
    path, theirs = tmp_path / "tiny.weights.h5", values(model)
    capsys.readouterr()
    for options, is_told in (({"classes": 5}, True), ({"include_top": False}, False)):
        other = row.tiny(input_shape=row.shape, weights=path, **(row.head | options))
        ours = values(other)
        fresh = {path for path, array in ours.items() if array.shape != theirs[path].shape}
        assert all(np.array_equal(theirs[path], array) for path, array in ours.items() if path not in fresh)
        assert bool(fresh) == is_told
        assert (" starts fresh: the file has another number of classes (" in capsys.readouterr().out) == is_told


def test_load_in_a_fresh_process_whose_only_import_is_kvision(tmp_path):
    """Keras finds a saved model's classes only if their modules were imported."""
    tiny("resnet").save(tmp_path / "resnet.keras")
    paths = [tmp_path / "resnet.keras", *(tmp_path / f"{row.module}.json" for row in ROWS)]
    for row, path in zip(ROWS, paths[1:], strict=True):
        path.write_text(tiny(row.module).to_json())
    done = subprocess.run([sys.executable, "-c", LOAD, *paths], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    want = [str(tiny(module).feature_info) for module in ("resnet", *(row.module for row in ROWS))]
    assert done.stdout.splitlines() == want


LOAD = """
import pathlib, sys, kvision
keras = sys.modules["keras"]
print(keras.saving.load_model(sys.argv[1]).feature_info)
with keras.StatelessScope(initialize_variables=False):  # the others' classes, without their memory
    for path in sys.argv[2:]:
        print(keras.models.model_from_json(pathlib.Path(path).read_text()).feature_info)
"""


# In `make test` one network is compiled by XLA, one trained in each of the 16-bit dtypes; the others are `slow`. Keras
# compiles every step on JAX, so there is nothing to see without.
QUICK = {
    ("float32", False): {row.module for row in ROWS},
    ("float32", True): {"alexnet"},
    ("mixed_bfloat16", False): {"resnet"},
    ("mixed_float16", False): {"vit"},
}
STEPS = {
    "tensorflow": [
        pytest.param(
            row, policy, jit, id=f"{row.module}-{policy}{'-jit' * jit}", marks=slow_unless(row.module in quick)
        )
        for (policy, jit), quick in QUICK.items()
        for row in ROWS
    ],
    "jax": [
        pytest.param(row, policy, True, id=f"{row.module}-{policy}-jit")
        for policy in ("float32", "mixed_bfloat16")
        for row in ROWS
        if row.module in QUICK[policy, False]
    ],
}


@pytest.mark.parametrize(("row", "policy", "jit"), STEPS[keras.backend.backend()])
def test_one_step_of_fit(row, policy, jit):
    keras.mixed_precision.set_dtype_policy(policy)
    model = row.tiny(input_shape=row.shape, **row.head, **row.short)
    before = [keras.ops.convert_to_numpy(w) for w in model.trainable_weights]
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"], jit_compile=jit)
    history = model.fit(images_of(row.shape), np.array([0, 1, 2, 0]), batch_size=4, epochs=1, verbose=0)
    after = [keras.ops.convert_to_numpy(w) for w in model.trainable_weights]
    assert np.isfinite(history.history["loss"]).all()
    assert all(np.isfinite(w).all() for w in after)
    if policy == "float32":  # loss scaling may skip the first step
        assert sum(not np.array_equal(a, b) for a, b in zip(before, after, strict=True)) > len(before) / 2


@rows(lambda row: row.levels)
def test_features_need_no_classifier(row):
    with pytest.raises(ValueError, match="include_top=False"):
        row.tiny(input_shape=row.shape, features=("C2",), **row.head)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "bach"}, "Unknown norm: got 'bach'.*'batch'"),
        ({"activation": "rellu"}, "Unknown activation: got 'rellu'.*'relu'"),
        ({"initializer": "hee"}, "Unknown initializer: got 'hee'.*'he'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
@convolutional
def test_unknown_names_list_the_nearest(row, options, message):
    with pytest.raises(ValueError, match=message):
        row.tiny(input_shape=row.shape, **options, **row.head)


@rows(lambda row: row.levels)
def test_unknown_levels_list_the_nearest(row):
    with pytest.raises(ValueError, match=r"Unknown level of .*: got 'C9'"):
        row.tiny(input_shape=row.shape, include_top=False, features=("C9",), **row.head)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "imagnet"}, "weights='imagnet' is neither a file nor published"),
        ({"weights": True}, "weights=True is neither a file nor published"),
        ({"classes": 0}, "classes must be a whole number of at least 1, got 0"),
        ({"classes": 3.0}, "classes must be a whole number of at least 1, got 3.0"),
        ({"input_shape": (32, 32)}, "input_shape must be"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
@by_module
def test_errors_say_what_to_do(row, options, message):
    with pytest.raises(ValueError, match=message):
        row.tiny(**({"input_shape": row.shape} | row.head | options))


@rows(lambda row: row.stride)
def test_input_smaller_than_the_stride_is_refused(row):
    with pytest.raises(ValueError, match=f"its last map has stride {row.stride}"):
        row.tiny(input_shape=(row.stride - 1, row.stride, 3), **row.head)


@by_module
def test_numpy_integers_are_integers(row):
    with keras.StatelessScope(initialize_variables=False):
        model = row.tiny(input_shape=tuple(np.int64(size) for size in row.shape), classes=np.int32(3))
    assert json.loads(model.to_json())["config"]["name"] == model.name
    assert model.output_shape == (None, 3)


@by_module
def test_a_channels_first_configuration_is_refused(row):
    keras.config.set_image_data_format("channels_first")
    try:
        with pytest.raises(ValueError, match="kvision's images and maps are .b, h, w, c.: got .*channels_first"):
            row.tiny(input_shape=row.shape, **row.head)
    finally:
        keras.config.set_image_data_format("channels_last")
