"""GoogLeNet: Szegedy, Liu, Jia, Sermanet, Reed, Anguelov, Erhan, Vanhoucke, Rabinovich, "Going Deeper with
Convolutions" (2014).

"2014" is table 1 and figure 3: no normalisation but two local response normalisations (whose constants the paper does
not give: Krizhevsky's), a 5x5 branch, 3x3 poolings whose last window may reach over the edge. "torchvision" equals
torchvision's `googlenet`, which `GoogLeNet(norm="batch")` builds: batch normalisation (epsilon 1e-3) after every
convolution instead of the response normalisations, 3x3 where the paper has 5x5, a 2x2 pooling before 5a, less dropout.
Deviation: He initialization.

Two auxiliary heads (section 5) help the lower layers to learn. They belong to training only: `auxiliary=True` builds an
`AuxiliaryClassifier`, which fits like any model and whose `inference_model()` is the network without them.

How it trains (section 6): SGD with momentum 0.9, rate falling by 4 % every 8 epochs, the mean of the weights over the
run for inference, crops of 8 to 100 % of the image.
"""

import keras

from kvision._keras import compiled_loss
from kvision.applications.building import build_network, finish, image_input, variant_row
from kvision.applications.classification import imagenet
from kvision.layers import AdaptiveAveragePooling2D, LocalResponseNormalization, MaxPooling2D
from kvision.layers.conventions import conventions
from kvision.network import Network, Preprocessing

AUXILIARY_WEIGHT = 0.3  # section 5

# Table 1: channels of 1x1 | 1x1 before 3x3, 3x3 | 1x1 before 5x5, 5x5 | 1x1 after the pooling.
_TABLE = {
    "stem": (64, 64, 192),
    "blocks": {
        "3a": (64, 96, 128, 16, 32, 32),
        "3b": (128, 128, 192, 32, 96, 64),
        "4a": (192, 96, 208, 16, 48, 64),
        "4b": (160, 112, 224, 24, 64, 64),
        "4c": (128, 128, 256, 24, 64, 64),
        "4d": (112, 144, 288, 32, 64, 64),
        "4e": (256, 160, 320, 32, 128, 128),
        "5a": (256, 160, 320, 32, 128, 128),
        "5b": (384, 192, 384, 48, 128, 128),
    },
    "heads": ("4a", "4d"),
    "head_widths": (128, 1024),
}
_PAPER = {"wide_kernel": 5, "last_pool": 3, "head_pool": (5, 3), "dropout_rate": 0.4, "auxiliary_dropout_rate": 0.7}
VARIANTS = {
    "2014": {**_TABLE, **_PAPER},
    "torchvision": {**_TABLE, **_PAPER, "wide_kernel": 3, "last_pool": 2, "head_pool": None, "dropout_rate": 0.2},
    "tiny": {
        **_PAPER,
        "stem": (8, 8, 8),
        "blocks": dict.fromkeys(("3a", "4a", "4b", "5a"), (4, 4, 4, 4, 4, 4)),
        "heads": ("4a", "4b"),
        "head_widths": (4, 8),
    },
}

# These were trained on images in −1…1, a step that torchvision keeps inside its network.
WEIGHTS = {
    "torchvision": {
        "imagenet": imagenet.torchvision_weights(
            "googlenet-1378be20.pth", 69.778, preprocessing=Preprocessing(value_range=(-1.0, 1.0))
        )
    }
}

PROOF = "torchvision googlenet, fed the same weights; a NumPy twin of the paper's form"

preprocess_input = imagenet.preprocess_input
decode_predictions = imagenet.decode_predictions


def GoogLeNet(
    variant=None,
    *,
    include_top=True,
    weights=None,
    input_shape=(224, 224, 3),
    classes=1000,
    classifier_activation="softmax",
    norm=None,
    activation="relu",
    initializer="he",
    bias_initializer="zero",
    auxiliary=False,
    dropout_rate=None,
    auxiliary_dropout_rate=None,
    features=None,
    name=None,
):
    """Build GoogLeNet: 6,998,552 parameters, 13,378,280 with its auxiliary heads; `norm="batch"` 6,624,904, 13,004,888.

    Args:
        variant: A row of `VARIANTS`: `"2014"` or `"torchvision"`; None is the first without, the second with a `norm`.
        include_top: End with the classifier; otherwise the last map is returned.
        weights: None, `"imagenet"` (of "torchvision" with batch norm, see `WEIGHTS`; the file needs torch, images are
            prepared by the model's own `preprocessing`), or the path of a weight file.
        input_shape: (height, width, channels), at least 32 pixels.
        classes: Number of classes.
        classifier_activation: Of the last layer and of both heads; None gives logits.
        norm: None, the paper's two local response normalisations, or `"batch"`, `"sync_batch"`, `"group"`,
            `"frozen_batch"` after every convolution.
        activation, initializer, bias_initializer: Names, see `kvision.layers.conventions.conventions`.
        auxiliary: Build the two heads on 4a and 4d, for training: the model is an `AuxiliaryClassifier`.
        dropout_rate, auxiliary_dropout_rate: Before the classifier, inside the heads, in [0, 1); None takes the row's.
        features: Names of the maps to return instead, `"C1"` to `"C5"`: conv1, the stem's last convolution before its
            response normalisation, 3b, 4e, 5b.
        name: Of the model.

    Returns:
        A `keras.Model`: images [b, h, w, c], prepared by `preprocess_input`, → [b, classes] float32.

    Raises:
        ValueError: on an unknown variant or name, a wrong shape, fewer than one class, or heads without `include_top`.

    ```python
    model = GoogLeNet(classes=10, auxiliary=True)
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(images, labels)
    model.inference_model().save("googlenet.keras")
    ```
    """
    variant = variant or ("2014" if norm is None else "torchvision")
    rates = {"dropout_rate": dropout_rate, "auxiliary_dropout_rate": auxiliary_dropout_rate}
    row = variant_row("GoogLeNet", VARIANTS, variant, **rates)
    name = name or f"googlenet_{variant}"
    if auxiliary and not include_top:
        raise ValueError(f"{name}: auxiliary heads train the classifier with it. Pass include_top=True as well.")
    images = image_input("GoogLeNet", input_shape, stride=32, classes=classes)
    bound = conventions(norm, activation, initializer, bias_initializer, epsilon=1e-3)

    def convolve(x, filters, kernel_size, name, strides=1):
        x = bound.conv(filters, kernel_size, strides=strides, name=f"{name}.conv")(x)
        return bound.activation(name=f"{name}.relu")(bound.norm(name=f"{name}.bn")(x))

    def normalize_response(x, name):
        return LocalResponseNormalization(name=name)(x) if norm is None else x

    def head(x, name):
        pooled = _head_pooling(row["head_pool"], x.shape[1:3], name)(x)
        x = keras.layers.Flatten(name=f"{name}.flatten")(convolve(pooled, row["head_widths"][0], 1, f"{name}.conv"))
        x = bound.activation(name=f"{name}.relu")(bound.dense(row["head_widths"][1], name=f"{name}.fc1")(x))
        x = keras.layers.Dropout(row["auxiliary_dropout_rate"], name=f"{name}.dropout")(x)
        return bound.dense(classes, activation=classifier_activation, dtype="float32", name=f"{name}.fc2")(x)

    levels, heads = {}, {}
    widths = row["stem"]
    x = levels["C1"] = convolve(images, widths[0], 7, "conv1", strides=2)
    x = normalize_response(_pool(3, "maxpool1")(x), "norm1")
    x = levels["C2"] = convolve(convolve(x, widths[1], 1, "conv2"), widths[2], 3, "conv3")
    x = normalize_response(x, "norm2")
    for label, widths in row["blocks"].items():
        stage = int(label[0])
        if label.endswith("a"):
            x = _pool(row["last_pool"] if stage == 5 else 3, f"maxpool{stage - 1}")(x)
        x = levels[f"C{stage}"] = _inception(x, widths, row["wide_kernel"], convolve, name=f"inception{label}")
        if auxiliary and label in row["heads"]:
            heads[f"aux{len(heads) + 1}"] = head(x, f"aux{len(heads) + 1}")

    if include_top:
        x = keras.layers.GlobalAveragePooling2D(name="avgpool")(x)
        x = keras.layers.Dropout(row["dropout_rate"], name="dropout")(x)
        x = bound.dense(classes, activation=classifier_activation, dtype="float32", name="fc")(x)
    model = build_network(
        images,
        {"scores": x, **heads} if auxiliary else x,
        levels,
        include_top=include_top,
        features=features,
        name=name,
        preprocessing=preprocess_input,
        model_class=AuxiliaryClassifier if auxiliary else Network,
    )
    return finish(
        model, weights, WEIGHTS.get(variant) if norm not in (None, "group") else None, top=("fc", "aux1", "aux2")
    )


def _inception(x, widths, wide_kernel, convolve, name):
    """Figure 2b: four branches on the same map, joined by channels."""
    one, before_three, three, before_five, five, after_pool = widths
    pooled = MaxPooling2D(3, strides=1, padding=1, name=f"{name}.branch4.0")(x)
    branches = [
        convolve(x, one, 1, f"{name}.branch1"),
        convolve(convolve(x, before_three, 1, f"{name}.branch2.0"), three, 3, f"{name}.branch2.1"),
        convolve(convolve(x, before_five, 1, f"{name}.branch3.0"), five, wide_kernel, f"{name}.branch3.1"),
        convolve(pooled, after_pool, 1, f"{name}.branch4.1"),
    ]
    return keras.layers.Concatenate(name=name)(branches)


def _pool(size, name):
    return MaxPooling2D(size, strides=2, padding="ceil", name=name)


def _head_pooling(window, size, name):
    """The paper averages 5x5 at stride 3, 14x14 to 4x4; other maps are averaged to 4x4 as well."""
    if window is None or size != (14, 14):
        return AdaptiveAveragePooling2D((4, 4), name=f"{name}.pool")
    return keras.layers.AveragePooling2D(window[0], strides=window[1], name=f"{name}.pool")


@keras.saving.register_keras_serializable("kvision")
class AuxiliaryClassifier(Network):
    """A classifier with auxiliary heads that only training sees (section 5).

    Its outputs are a dict: `"scores"`, and one entry per head. In training all are returned, and the loss of `compile`
    is taken of each: that of the scores whole, those of the heads times 0.3. Everywhere else, in `predict`, `evaluate`
    and the metrics too, there are the scores alone.
    """

    def call(self, inputs, training=None, mask=None):
        outputs = super().call(inputs, training=training, mask=mask)
        return outputs if training else outputs["scores"]

    def compute_output_spec(self, inputs, training=None, mask=None):
        outputs = super().compute_output_spec(inputs, training=training, mask=mask)
        return outputs if training else outputs["scores"]

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        if not isinstance(y_pred, dict):
            return super().compute_loss(x, y, y_pred, sample_weight, training)
        heads = dict(y_pred)
        loss = super().compute_loss(x, y, heads.pop("scores"), sample_weight, training)
        return loss + AUXILIARY_WEIGHT * sum(compiled_loss(self, y, head, sample_weight) for head in heads.values())

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        y_pred = y_pred["scores"] if isinstance(y_pred, dict) else y_pred
        return super().compute_metrics(x, y, y_pred, sample_weight)

    def inference_model(self):
        """The network without its heads, sharing layers and weights, to be saved and exported."""
        network = Network(self.inputs[0], self.output["scores"], name=self.name)
        network.preprocessing, network.feature_info = self.preprocessing, self.feature_info
        network.weight_sources, network.class_names = self.weight_sources, self.class_names
        return network
