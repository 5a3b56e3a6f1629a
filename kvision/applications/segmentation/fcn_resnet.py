"""FCN on ResNet: torchvision's form of Long, Shelhamer, Darrell, "Fully Convolutional Networks …" (2015).

Equals torchvision's `fcn_resnet50` and `fcn_resnet101`, fed the same weights. The last two stages of the ResNet keep
the map's size and spread their windows instead (stride 8), a head of one 3x3 convolution scores the map, and the scores
are interpolated to the image's size; there are no skips. Deviation: the scores start at zero.

How torchvision trains it (references/segmentation): from a ResNet of ImageNet on crops of 480 pixels, SGD with momentum
0.9, weight decay 1e-4, 32 images a batch, rate 0.02 that falls to zero by (1 - step / steps)^0.9, 30 epochs, the loss
of the auxiliary head times 0.5. The loss is a mean over the pixels, as Keras's is.
"""

import keras

from kvision.applications.building import build_network, finish, image_input, variant_of, variant_row
from kvision.applications.classification import imagenet, resnet
from kvision.layers import BilinearSampling
from kvision.layers.conventions import conventions
from kvision.weights import Published

# The trunk: a row of `resnet.VARIANTS`.
VARIANTS = {"50": {"trunk": "50"}, "101": {"trunk": "101"}, "tiny": {"trunk": "tiny"}}

# Torchvision's COCO_WITH_VOC_LABELS_V1; mean IoU of the 21 classes of VOC on COCO's val2017, from its table of weights.
_FILES = {"50": ("fcn_resnet50_coco-1167a1af.pth", 60.5), "101": ("fcn_resnet101_coco-7ecb50ca.pth", 63.7)}
WEIGHTS = {
    variant: {
        "coco": Published(
            "https://download.pytorch.org/models",
            file,
            "torchvision",
            "BSD-3-Clause",
            mean_iou,
            "short side to 520 (bilinear)",
        )
    }
    for variant, (file, mean_iou) in _FILES.items()
}
RENAMES = {"torchvision": [(r"^(conv1|bn1|layer\d)\b", r"backbone.\1")]}
TOP = ("fc", "classifier", "aux_classifier")

VOC_CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)

PROOF = "torchvision fcn_resnet50 and fcn_resnet101, fed the same weights"

preprocess_input = imagenet.preprocess_input


def FCNResNet(
    variant,
    *,
    weights=None,
    input_shape=(512, 512, 3),
    classes=21,
    norm="batch",
    activation="relu",
    initializer="he",
    bias_initializer="zero",
    dropout_rate=0.1,
    auxiliary=False,
    name=None,
):
    """Build a fully convolutional network on a dilated ResNet.

    Args:
        variant: A row of `VARIANTS`: `"50"`, `"101"`.
        weights: None; `"coco"`, torchvision's, trained on the images of COCO that show VOC's 20 classes (see `WEIGHTS`;
            with 21 `classes` the network carries their names); `"imagenet"` or `"imagenet_v2"`, of the ResNet alone;
            or the path of a weight file of either. What a file does not have starts fresh, and says so.
        input_shape: (height, width, channels), at least 32 pixels.
        classes: Number of classes, the background among them.
        norm: `"batch"`, `"sync_batch"`, `"group"` (for a few images a batch), `"frozen_batch"` or None.
        activation, initializer, bias_initializer: Names, see `kvision.layers.conventions.conventions`.
        dropout_rate: Before the scores of each head, in [0, 1).
        auxiliary: Give `{"logits": …, "auxiliary_logits": …}`, the second by a head on C4 that only training needs.
        name: Of the model.

    Returns:
        A `keras.Model`: images [b, h, w, c], prepared by `preprocess_input`, → logits [b, h, w, classes] float32, or
        the dict of both.

    Raises:
        ValueError: on an unknown variant or name, a wrong shape, or fewer than one class.

    With the auxiliary head Keras takes the labels and a loss for each output; afterwards the logits go alone:

    ```python
    model = kvision.applications.FCNResNet50(classes=3, auxiliary=True)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=255)
    weights = {"logits": 1.0, "auxiliary_logits": 0.5}
    model.compile("sgd", loss=dict.fromkeys(weights, loss), loss_weights=weights)
    model.fit(images, dict.fromkeys(weights, labels))
    trained = keras.Model(model.input, model.output["logits"])
    ```
    """
    row = variant_row("FCNResNet", VARIANTS, variant)
    images = image_input("FCNResNet", input_shape, stride=32, classes=classes)
    bound = conventions(norm, activation, initializer, bias_initializer)
    trunk = resnet.ResNet(
        row["trunk"],
        include_top=False,
        input_shape=input_shape,
        norm=norm,
        activation=activation,
        initializer=initializer,
        bias_initializer=bias_initializer,
        dilated=("C4", "C5"),
    )
    levels = {level: trunk.get_layer(info["layer"]).output for level, info in trunk.feature_info.items()}

    def head(x, name):
        x = bound.conv(x.shape[-1] // 4, 3, name=f"{name}.0")(x)
        x = bound.activation(name=f"{name}.2")(bound.norm(name=f"{name}.1")(x))
        x = keras.layers.Dropout(dropout_rate, name=f"{name}.3")(x)
        zero = {"kernel_initializer": "zeros", "bias_initializer": "zeros"}
        x = bound.conv(classes, 1, use_bias=True, dtype="float32", name=f"{name}.4", **zero)(x)
        return BilinearSampling(images.shape[1:3], dtype="float32", name=f"{name}.resize")(x)

    outputs = head(levels["C5"], "classifier")
    if auxiliary:
        outputs = {"logits": outputs, "auxiliary_logits": head(levels["C4"], "aux_classifier")}
    model = build_network(
        trunk.inputs[0],
        outputs,
        levels,
        include_top=True,
        features=None,
        name=name or f"fcn_resnet_{variant}",
        preprocessing=preprocess_input,
    )
    model.feature_info = trunk.feature_info
    published = resnet.WEIGHTS.get(row["trunk"], {}) | WEIGHTS.get(variant, {})
    finish(model, weights, published, RENAMES, top=TOP)
    if isinstance(weights, str) and weights in WEIGHTS.get(variant, {}) and classes == len(VOC_CLASSES):
        model.class_names = VOC_CLASSES
    return model


FCNResNet50 = variant_of(
    FCNResNet, "50", "FCNResNet50", "FCN on ResNet-50: 32,957,013 parameters, 35,322,218 with the auxiliary head."
)
FCNResNet101 = variant_of(
    FCNResNet, "101", "FCNResNet101", "FCN on ResNet-101: 51,949,141 parameters, 54,314,346 with the auxiliary head."
)
