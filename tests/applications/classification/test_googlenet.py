"""GoogLeNet: the paper's layer table, a NumPy twin, and heads that only training sees."""

import keras
import numpy as np
import pytest

from kvision.applications import GoogLeNet
from tests.applications.classification import twins
from tests.support import PARITY, assert_close

# Table 1: input channels, #1x1, #3x3 reduce, #3x3, #5x5 reduce, #5x5, pool proj.
INCEPTION = {
    "3a": (192, 64, 96, 128, 16, 32, 32),
    "3b": (256, 128, 128, 192, 32, 96, 64),
    "4a": (480, 192, 96, 208, 16, 48, 64),
    "4b": (512, 160, 112, 224, 24, 64, 64),
    "4c": (512, 128, 128, 256, 24, 64, 64),
    "4d": (512, 112, 144, 288, 32, 64, 64),
    "4e": (528, 256, 160, 320, 32, 128, 128),
    "5a": (832, 256, 160, 320, 32, 128, 128),
    "5b": (832, 384, 192, 384, 48, 128, 128),
}


def inception_table(channels, one, before_three, three, before_five, five, after_pool):
    """Rows of (window, channels in, channels out)."""
    return [
        (1, channels, one),
        (1, channels, before_three),
        (3, before_three, three),
        (1, channels, before_five),
        (5, before_five, five),
        (1, channels, after_pool),
    ]


def test_layer_table():
    stem = [(7, 3, 64), (1, 64, 64), (3, 64, 192)]
    blocks = {label: inception_table(*row) for label, row in INCEPTION.items()}
    heads = [[(1, channels, 128), (1, 4 * 4 * 128, 1024), (1, 1024, 1000)] for channels in (512, 528)]
    trunk = twins.count(stem) + sum(map(twins.count, blocks.values())) + twins.count([(1, 1024, 1000)])
    assert trunk == 6_998_552
    assert trunk + sum(map(twins.count, heads)) == 13_378_280
    with keras.StatelessScope():
        model = GoogLeNet(auxiliary=True)
    for label, table in blocks.items():
        layers = [layer for layer in model.layers if layer.name.startswith(f"inception{label}.")]
        assert sum(layer.count_params() for layer in layers) == twins.count(table)
        assert model.get_layer(f"inception{label}").output.shape[-1] == sum(INCEPTION[label][i] for i in (1, 3, 5, 6))
    for head, table in zip(("aux1", "aux2"), heads, strict=True):
        layers = [layer for layer in model.layers if layer.name.startswith(f"{head}.")]
        assert sum(layer.count_params() for layer in layers) == twins.count(table)
    fed = [model.get_layer(f"{head}.pool").input._keras_history.operation.name for head in ("aux1", "aux2")]
    assert fed == ["inception4a", "inception4d"]  # the count is the same on 4b and 4c


def inception(x, w, name):
    pooled = np.pad(x, ((1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    return np.concatenate(
        [
            twins.convolve(x, w, f"{name}.branch1.conv"),
            twins.convolve(twins.convolve(x, w, f"{name}.branch2.0.conv"), w, f"{name}.branch2.1.conv", padding=1),
            twins.convolve(twins.convolve(x, w, f"{name}.branch3.0.conv"), w, f"{name}.branch3.1.conv", padding=2),
            twins.convolve(twins.pool(pooled, 3, 1), w, f"{name}.branch4.1.conv"),
        ],
        axis=-1,
    )


def head(x, w, name, pool):
    x = twins.dense(twins.convolve(pool(x), w, f"{name}.conv.conv"), w, f"{name}.fc1")
    return twins.dense(x, w, f"{name}.fc2", relu=False)


@pytest.mark.parametrize("size", [(32, 32), (51, 38), (224, 224)], ids=str)
def test_equals_the_twin(size):
    options = {"classes": 3, "classifier_activation": None, "dropout_rate": 0.0, "auxiliary_dropout_rate": 0.0}
    model = GoogLeNet("tiny", input_shape=(*size, 3), auxiliary=True, **options)
    w = twins.randomised(model)
    image = np.random.default_rng(1).normal(0, 20, size=(*size, 3))
    x = twins.convolve(image, w, "conv1.conv", stride=2, padding=3)
    x = twins.normalize_response(twins.pool(x, reach_over=True))
    x = twins.normalize_response(twins.convolve(twins.convolve(x, w, "conv2.conv"), w, "conv3.conv", padding=1))
    x = inception(twins.pool(x, reach_over=True), w, "inception3a")
    first = inception(twins.pool(x, reach_over=True), w, "inception4a")
    second = inception(first, w, "inception4b")
    x = inception(twins.pool(second, reach_over=True), w, "inception5a")
    scores = twins.dense(x.mean(axis=(0, 1)), w, "fc", relu=False)
    assert_close(twins.scores_of(model, image), scores, tolerance=(1e-4, 1e-4))

    def pool(x):
        return twins.pool(x, 5, 3, reduce=np.mean) if size == (224, 224) else twins.adapt(x, 4)

    outputs = model(image[None].astype("float32"), training=True)
    assert_close(outputs["scores"][0], scores, tolerance=(1e-4, 1e-4))
    assert_close(outputs["aux1"][0], head(first, w, "aux1", pool), tolerance=(1e-4, 1e-4))
    assert_close(outputs["aux2"][0], head(second, w, "aux2", pool), tolerance=(1e-4, 1e-4))


def with_heads(**options):
    return GoogLeNet("tiny", input_shape=(32, 32, 3), classes=3, auxiliary=True, **options)


IMAGES = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype("float32")
LABELS = np.array([0, 1, 2, 0])


@pytest.mark.parametrize(
    ("policy", "jit"), [("float32", False), pytest.param("mixed_float16", True, marks=pytest.mark.slow)]
)
def test_training_adds_three_tenths_of_the_heads(policy, jit):
    keras.mixed_precision.set_dtype_policy(policy)
    model = with_heads(dropout_rate=0.0, auxiliary_dropout_rate=0.0)
    outputs = {name: keras.ops.convert_to_numpy(p) for name, p in model(IMAGES, training=True).items()}
    losses = {name: -np.log(p[np.arange(4), LABELS]).mean() for name, p in outputs.items()}
    before = {weight.path: keras.ops.convert_to_numpy(weight) for weight in model.weights}
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"], jit_compile=jit)
    logs = model.fit(IMAGES, LABELS, batch_size=4, verbose=0).history
    want = losses["scores"] + 0.3 * (losses["aux1"] + losses["aux2"])
    assert_close(logs["loss"][0], want, tolerance=(1e-4, 0) if policy == "float32" else (1e-2, 0))
    assert set(logs) == {"loss", "accuracy"}
    assert_close(logs["accuracy"][0], (outputs["scores"].argmax(axis=-1) == LABELS).mean())
    if policy == "float32":  # loss scaling may skip the first step
        changed = {w.path for w in model.weights if not np.array_equal(before[w.path], keras.ops.convert_to_numpy(w))}
        assert {"aux1.fc2/kernel", "aux2.fc2/kernel", "fc/kernel"} <= changed


def test_sample_weights_and_regularisers_count_once():
    model = with_heads(dropout_rate=0.0, auxiliary_dropout_rate=0.0)
    model.get_layer("conv1.conv").kernel.regularizer = keras.regularizers.L2(1.0)
    penalty = keras.ops.convert_to_numpy(keras.ops.sum(keras.ops.square(model.get_layer("conv1.conv").kernel)))
    outputs = model(IMAGES, training=True)
    sample_weight = np.array([2.0, 0.0, 1.0, 0.0], "float32")
    losses = [(-np.log(np.asarray(p)[np.arange(4), LABELS]) * sample_weight).mean() for p in outputs.values()]
    model.compile("sgd", "sparse_categorical_crossentropy")
    got = model.compute_loss(IMAGES, LABELS, outputs, sample_weight)
    assert_close(got, losses[0] + 0.3 * (losses[1] + losses[2]) + penalty, tolerance=(1e-4, 0))


@pytest.mark.slow
def test_evaluation_and_prediction_know_no_heads():
    model = with_heads()
    plain = model.inference_model()
    for each in (model, plain):
        each.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    assert_close(model.predict(IMAGES, verbose=0), plain.predict(IMAGES, verbose=0))
    assert_close(model.evaluate(IMAGES, LABELS, verbose=0), plain.evaluate(IMAGES, LABELS, verbose=0))
    history = model.fit(IMAGES, LABELS, validation_data=(IMAGES, LABELS), verbose=0).history
    assert set(history) == {"loss", "accuracy", "val_loss", "val_accuracy"}
    assert model(keras.Input((32, 32, 3))).shape == (None, 3)


@pytest.mark.slow
def test_saved_with_its_heads_it_goes_on_training(tmp_path):
    model = with_heads()
    model.compile("sgd", "sparse_categorical_crossentropy")
    model.save(tmp_path / "training.keras")
    copy = keras.saving.load_model(tmp_path / "training.keras")
    assert_close(copy(IMAGES), model(IMAGES))
    assert set(copy(IMAGES, training=True)) == {"scores", "aux1", "aux2"}
    assert np.isfinite(copy.fit(IMAGES, LABELS, verbose=0).history["loss"][0])


def test_saved_inference_model_has_no_heads(tmp_path):
    model = with_heads()
    model.class_names = ("cat", "dog", "bird")
    plain = model.inference_model()
    assert type(plain).__name__ == "Network"
    plain.save(tmp_path / "inference.keras")
    copy = keras.saving.load_model(tmp_path / "inference.keras")
    assert not [weight.path for weight in copy.weights if weight.path.startswith("aux")]
    assert [w.path for w in copy.weights] == [w.path for w in GoogLeNet("tiny", input_shape=(32, 32, 3)).weights]
    assert_close(copy(IMAGES), model(IMAGES))
    for carried in ("class_names", "preprocessing", "feature_info"):
        assert getattr(copy, carried) == getattr(model, carried)


def test_heads_without_the_classifier_are_refused():
    with pytest.raises(ValueError, match="Pass include_top=True"):
        GoogLeNet("tiny", auxiliary=True, include_top=False)


def test_norm_chooses_the_form():
    with keras.StatelessScope():
        paper, batch = GoogLeNet(), GoogLeNet(norm="batch")
    assert paper.get_layer("inception3a.branch3.1.conv").kernel_size == (5, 5)
    assert batch.get_layer("inception3a.branch3.1.conv").kernel_size == (3, 3)
    assert [layer.name for layer in paper.layers if layer.name.startswith("norm")] == ["norm1", "norm2"]
    assert not [layer.name for layer in batch.layers if layer.name.startswith("norm")]


@pytest.mark.parity
def test_heads_equal_torchvision():
    import torch
    import torchvision

    from kvision import weights
    from tests.applications.classification.test_parity import randomise

    torch.manual_seed(0)
    theirs = torchvision.models.googlenet(init_weights=False, aux_logits=True, dropout=0.0, dropout_aux=0.0)
    randomise(theirs)
    rates = {"dropout_rate": 0.0, "auxiliary_dropout_rate": 0.0}
    for size in ((224, 224), (96, 64)):
        ours = GoogLeNet(norm="batch", auxiliary=True, input_shape=(*size, 3), classifier_activation=None, **rates)
        weights.load_torch(ours, theirs.state_dict())
        images = np.random.default_rng(0).normal(size=(2, *size, 3)).astype("float32")
        with torch.no_grad():
            want = theirs.train()(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
        got = ours(images, training=True)
        for mine, name in (("scores", "logits"), ("aux1", "aux_logits1"), ("aux2", "aux_logits2")):
            scale = getattr(want, name).abs().max().item()
            assert_close(got[mine] / scale, getattr(want, name).numpy() / scale, tolerance=PARITY)
