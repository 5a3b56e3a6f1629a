"""DETR beyond what every detector does: padding, attention maps, dilated trunks, its numbers, what is refused."""

import keras
import numpy as np
import pytest

import kvision
from kvision import applications as A
from kvision.applications.detection.detr import DETRTransformer
from kvision.layers import BatchNormalization, GroupNormalization
from kvision.ops.positions import sinusoidal_map_encoding
from tests.applications.detection.test_defaults import batch
from tests.support import assert_close

CLASSES = 3


def patches(shape, norm=None):
    """A backbone whose cells see their own 16x16 pixels alone."""
    images = keras.Input(shape)
    layer = keras.layers.Conv2D(8, 16, strides=16, kernel_initializer=keras.initializers.RandomNormal(seed=1))
    return keras.Model(images, {"C4": layer(images)})


def tiny(shape=(64, 96, 3), **options):
    options = {"backbone": patches(shape), "level": "C4", "preprocess": None} | options
    return A.DETR("tiny", input_shape=shape, classes=CLASSES, **options)


def randomised(model):
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(0.5 if w.path.endswith("gamma") else 0, 0.4, w.shape) for w in model.weights])
    return model


def images(height, width, count=2):
    return np.random.default_rng(0).uniform(0, 1, (count, height, width, 3)).astype("float32")


def test_a_padded_batch_equals_images_one_by_one():
    whole, sizes = randomised(tiny()), np.array([(64, 96), (48, 80)], "int32")
    batch = images(64, 96)
    found = whole.head.predict(whole.features(batch, training=False), sizes)
    for row, (height, width) in enumerate(sizes):
        alone = tiny((int(height), int(width), 3))
        alone.set_weights(whole.get_weights())
        one = alone.head.predict(alone.features(batch[row : row + 1, :height, :width], training=False))
        for name, value in one.items():
            assert_close(found[name][:, row], value[:, 0])
    unaware = whole.head.predict(whole.features(batch, training=False))
    assert np.abs(keras.ops.convert_to_numpy(unaware["boxes_cxcywh"] - found["boxes_cxcywh"])[:, 1]).max() > 1e-3


def test_what_lies_in_the_padding_does_not_matter():
    model, sizes = randomised(tiny()), np.array([(64, 96), (48, 80)], "int32")
    batch = images(64, 96)
    other = batch.copy()
    other[1, 48:], other[1, :, 80:] = 7.0, -3.0
    targets = {
        "boxes": np.array([[[4, 4, 30, 40.0]], [[8, 2, 70, 40.0]]], "float32"),
        "labels": np.array([[0], [2]], "int32"),
        "image_size": sizes,
    }
    losses = [model.head.losses(model.features(x, training=False), targets) for x in (batch, other)]
    for name, value in losses[0].items():
        assert_close(value, losses[1][name])


def test_attention_maps_are_distributions_over_the_valid_cells():
    model, sizes = randomised(tiny(num_queries=4)), np.array([(64, 96), (48, 80)], "int32")
    inputs = {"images": images(64, 96), "image_size": sizes}
    features = model.features(inputs, training=False)
    assert "attention_maps" not in model.head.decode(features)
    model.head.attention_maps = True
    maps = keras.ops.convert_to_numpy(model.head.decode(features)["attention_maps"])
    assert maps.shape == (2, 4, 4, 6)
    assert_close(maps.sum((2, 3)), np.ones((2, 4)))
    assert (maps[1, :, 3:] == 0).all() and (maps[1, :, :, 5:] == 0).all()
    assert maps[0].min() > 0


def test_map_encodings_equal_the_authors_rule():
    """Cumulative sums of the valid cells, over their last; rows before columns, sines and cosines in turn."""
    size, channels, valid = (4, 5), 8, np.array([(4, 5), (3, 2)])
    mask = (np.arange(4)[:, None] < valid[:, 0, None, None]) & (np.arange(5) < valid[:, 1, None, None])
    y, x = np.cumsum(mask, 1), np.cumsum(mask, 2)
    y, x = y / (y[:, -1:] + 1e-6) * 2 * np.pi, x / (x[:, :, -1:] + 1e-6) * 2 * np.pi
    scale = 10_000 ** (2 * (np.arange(channels // 2) // 2) / (channels // 2))
    halves = []
    for place in (y, x):
        angle = place[..., None] / scale
        halves.append(np.stack([np.sin(angle[..., 0::2]), np.cos(angle[..., 1::2])], -1).reshape(*mask.shape, -1))
    want = np.concatenate(halves, -1)
    got = keras.ops.reshape(sinusoidal_map_encoding(size, channels, valid), (2, *size, channels))
    assert_close(keras.ops.convert_to_numpy(got)[mask], want[mask])
    assert_close(sinusoidal_map_encoding(size, channels)[0], keras.ops.reshape(got[0], (20, channels)))
    with pytest.raises(ValueError, match="multiple of 4, got 6"):
        sinusoidal_map_encoding(size, 6)


def test_a_dilated_stage_keeps_the_size_and_the_weights_of_the_plain_one():
    options = {"include_top": False, "input_shape": (64, 64, 3), "depths": (1, 1, 1, 2), "features": ("C4", "C5")}
    plain, dilated = (A.ResNet("tiny", **options, dilated=levels) for levels in ((), ("C5",)))
    assert [model.feature_info["C5"]["stride"] for model in (plain, dilated)] == [32, 16]
    assert [model.feature_info["C4"]["stride"] for model in (plain, dilated)] == [16, 16]
    assert dilated.output["C5"].shape[1:3] == (4, 4)
    dilated.set_weights(plain.get_weights())
    rates = [dilated.get_layer(f"layer4.{block}.conv2").dilation_rate for block in range(2)]
    assert rates == [(1, 1), (2, 2)]  # the first sees the map of the stage before
    with pytest.raises(ValueError, match="dilated level"):
        A.ResNet("tiny", dilated=("C2",))


def test_the_variants_are_those_of_the_paper():
    with keras.StatelessScope(initialize_variables=False):
        model = A.DETRResNet50DC5(input_shape=(64, 96, 3))
    network, head = model.head.network, model.head
    assert network.map_size == (4, 6)
    assert (network.num_queries, network.channels, network.num_heads, network.hidden_units) == (100, 256, 8, 2048)
    assert (network.num_encoder_layers, network.num_decoder_layers, network.dropout_rate) == (6, 6, 0.1)
    block = network._decoder[0]
    assert (block.pre_norm, block.norm1.epsilon, block.cross_attn.dropout_rate) == (False, 1e-5, 0.1)
    assert (head.no_object_weight, head.class_cost, head.box_cost, head.giou_cost) == (0.1, 1, 5, 2)
    assert (head.box_weight, head.giou_weight) == (5, 2)
    assert model.head.classes == 80


def test_dropout_is_on_in_training_alone():
    model, x = randomised(tiny()), images(64, 96)
    features = model.features(x, training=False)
    one, two, still, again = (
        keras.ops.convert_to_numpy(model.head.predict(features, training=training)["class_logits"])
        for training in (True, True, False, False)
    )
    assert np.abs(one - two).max() > 1e-3
    np.testing.assert_array_equal(still, again)


def test_the_backbones_weights_are_known_by_their_path():
    import re

    model = tiny(backbone=A.ResNet("tiny", include_top=False, input_shape=(64, 96, 3), features=("C4",)))
    mine = {w.path for w in model.trunk.layers[-2].weights} | {w.path for w in model.head.weights}
    backbone = {w.path for w in model.weights if re.search(A.detr.BACKBONE, w.path)}
    assert backbone == {w.path for w in model.trunk.get_layer("resnet_tiny").weights}
    assert not backbone & {w.path for w in model.head.weights}
    assert mine


@pytest.mark.slow
def test_the_bare_default_trains_by_the_papers_optimizer():
    """On a trunk of its own, which has group norm from scratch; the rate is ten times the paper's for so few steps."""
    model = A.DETR("tiny", input_shape=(96, 96, 3), classes=CLASSES)
    rates = {A.detr.BACKBONE: 0.1}
    model.compile(kvision.optimizers.AdamW(1e-3, weight_decay=1e-4, global_clipnorm=0.1, rate_factors=rates))
    x, targets = batch("DETR")
    losses = model.fit(x, targets, batch_size=2, epochs=40, verbose=0).history["loss"]
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.8 * losses[0]
    layers = list(model._flatten_layers())
    assert any(isinstance(layer, GroupNormalization) for layer in layers)
    assert not any(isinstance(layer, BatchNormalization) for layer in layers)


BAD = {
    "heads": ({"num_heads": 3}, "num_heads must divide the channels"),
    "channels": ({"channels": 10, "num_heads": 2}, "a multiple of 4, got 10"),
    "queries": ({"num_queries": 0}, "at least one query"),
    "decoder": ({"num_decoder_layers": 0}, "one layer of the decoder"),
    "level": ({"level": "C5"}, r"needs a backbone that returns C5: got \['C4'\]"),
    "variant": ({"variant": "resnet5"}, "Unknown DETR variant: got 'resnet5'.*'resnet50'"),
    "published": ({"variant": "resnet50", "weights": "coco"}, "published for the network as it is by default"),
}


@pytest.mark.parametrize(("options", "message"), BAD.values(), ids=list(BAD))
def test_refuses_what_cannot_be_built(options, message):
    options = {"variant": "tiny", "backbone": patches((64, 96, 3)), "level": "C4", "preprocess": None} | options
    with pytest.raises(ValueError, match=message):
        A.DETR(input_shape=(64, 96, 3), classes=CLASSES, **options)


def test_a_transformer_comes_back_from_its_config():
    network = DETRTransformer(CLASSES, (2, 3), 4, 8, 2, 16, 1, 2, name="transformer")
    again = DETRTransformer.from_config(network.get_config())
    assert [w.path for w in again.weights] == [w.path for w in network.weights]


def test_published_rows_are_the_80_categories_and_no_object():
    row = A.detr.WEIGHTS["resnet50"]["coco"]
    state = {"class_embed.weight": np.arange(92.0)[:, None], "bbox_embed.layers.2.weight": np.ones((4, 2))}
    adapted = row.adapt(state)
    assert adapted["class_embed.weight"][:, 0].tolist() == [*A.coco.CATEGORY_IDS, 91]
    assert adapted["bbox_embed.layers.2.weight"].shape == (4, 2)
    assert (row.licence, row.accuracy, row.source) == ("Apache-2.0", 42.0, "detr")
    again = type(row).from_config(row.get_config())
    assert again.adapt(state)["class_embed.weight"].shape == (81, 1)
