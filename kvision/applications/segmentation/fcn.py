"""FCN: Long, Shelhamer, Darrell, "Fully Convolutional Networks for Semantic Segmentation" (2015).

VGG-16 whose dense layers are convolutions (figure 2), a score of each class in every cell, and upsampling by transposed
convolutions that initially are bilinear (section 3.3); the scores of pool4 and pool3 join on the way (section 4.2,
figure 3). "8s-at-once" is the authors' later form, whose skips are scaled so that one training does. Equals the nets of
the authors (`padding=100`), written out in torch in the tests. The paper fixes the last upsampling and learns the
others; the released nets fix all (their FAQ: no significant difference); here all are learned, or all are fixed.

How it trains (section 4.3): SGD with momentum 0.99, one image a batch, from VGG-16 of ImageNet: 32s (and at-once), then
16s from the weights of 32s, 8s from those of 16s; the docstring of `FCN` has the rates. The lower ones of 16s and 8s
suit the large activations of Caffe's VGG, which is fed -128…128 and not unit deviation. From scratch, from scores of
zero, it trains by `SGD(0.01, momentum=0.9, global_clipnorm=1.0)` on the mean loss.
"""

import numbers

import keras

from kvision.applications.building import build_network, finish, image_input, variant_of, variant_row
from kvision.applications.classification import imagenet, vgg
from kvision.errors import choose
from kvision.layers import BilinearUpsampling
from kvision.layers.conventions import conventions
from kvision.network import Preprocessing

# Figure 3: which pooled maps are scored as well; and what they are multiplied with first.
_VGG16 = {"depths": (2, 2, 3, 3, 3), "widths": (64, 128, 256, 512, 512), "units": 4096}
VARIANTS = {
    "32s": {"skips": {}, **_VGG16},
    "16s": {"skips": {"pool4": 1.0}, **_VGG16},
    "8s": {"skips": {"pool4": 1.0, "pool3": 1.0}, **_VGG16},
    "8s-at-once": {"skips": {"pool4": 0.01, "pool3": 0.0001}, **_VGG16},
    "tiny": {
        "skips": {"pool4": 1.0, "pool3": 1.0},
        "depths": (1, 1, 1, 1, 1),
        "widths": (8, 8, 16, 16, 16),
        "units": 32,
    },
}

# The layers of VGG-16's classifier, as torchvision and timm call them; and those of its stages, as the authors and the
# package torchfcn do, where their indices are known.
RENAMES = {
    "torchvision": [(r"^fc6\.", "classifier.0."), (r"^fc7\.", "classifier.3."), (r"^score_fr\.", "classifier.6.")],
    "timm": [(r"^fc6\.", "pre_logits.fc1."), (r"^fc7\.", "pre_logits.fc2."), (r"^score_fr\.", "head.fc.")],
}
STAGES = ("pool1", "pool2", "pool3", "pool4", "pool5")
UPSAMPLINGS = ("upscore", "upscore2", "upscore_pool4", "upscore16", "upscore8")
TOP = ("score_fr", "score_pool4", "score_pool3", *UPSAMPLINGS)

PROOF = "the authors' nets written out in torch, fed the same weights; VGG-16 at 224 pixels"

_MINUS_MEAN = Preprocessing(value_range=(0.0, 255.0), mean=(104.00698793, 116.66876762, 122.67891434))

SMALLEST_BORDER = 81  # pixels; with fewer, a window of fc6 has no room above the first pixel

preprocess_input = imagenet.preprocess_input


@keras.saving.register_keras_serializable("kvision")
def caffe_input(images):
    """RGB images of 0…255 as the authors' nets see them: BGR minus the mean of ImageNet, not scaled."""
    return _MINUS_MEAN(images[..., ::-1])


def FCN(
    variant,
    *,
    weights=None,
    input_shape=(512, 512, 3),
    classes=21,
    norm=None,
    activation="relu",
    initializer="he",
    bias_initializer="zero",
    dropout_rate=0.5,
    upsampling="learned",
    padding="same",
    depths=None,
    widths=None,
    units=None,
    name=None,
):
    """Build a fully convolutional network on VGG.

    **The paper's rates are for a loss summed over the pixels, and Keras's losses are means** over those of the batch
    that are not ignored: multiply by their number. For one image of 500x500 pixels, 1e-10 (32s and at-once) becomes
    2.5e-5, 1e-12 (16s) 2.5e-7, 1e-14 (8s) 2.5e-9; with momentum 0.99 they move as a hundred times as much does without.
    Its weight decay, 5e-4 beside the gradient of the sum, is divided by that number: 2e-9, as good as none.

    Args:
        variant: A row of `VARIANTS`: `"32s"`, `"16s"`, `"8s"`, `"8s-at-once"`.
        weights: None; `"imagenet"`, VGG-16's (with batch norm, those of that form): its dense layers become fc6 and
            fc7, the scores start fresh, unless `classes` is 1000; or the path of a weight file: of a VGG-16, ours or in
            torch's layout; of a network of this file, also of another variant, such as 32s to start 16s from; or of
            the package torchfcn, as which the authors' nets are spread. The latter were trained with `padding=100`,
            and on images in Caffe's form: set `model.preprocessing = fcn.caffe_input`.
        input_shape: (height, width, channels), at least 32 pixels, of any parity.
        classes: Number of classes, the background among them: labels are 0 to `classes - 1`.
        norm: None, `"batch"`, `"sync_batch"`, `"group"` or `"frozen_batch"`, after the convolutions of
            the five stages.
        activation, initializer, bias_initializer: Names, see `kvision.layers.conventions.conventions`. The scores
            start at zero, the upsampling is bilinear.
        dropout_rate: Behind fc6 and fc7, in [0, 1).
        upsampling: `"learned"` or `"fixed"`: whether the transposed convolutions are trained.
        padding: `"same"`: fc6 keeps its map's size, and what lies beyond the image is cropped. A whole number of at
            least 81, the paper's is 100: a border of so many zero pixels around the image, behind which fc6 needs no
            padding, and crops where the reference has them; 1.9 times the pixels of an image of 500x500.
        depths, widths, units: Convolutions and channels of each of the five stages, channels of fc6 and fc7; None takes
            the row's.
        name: Of the model.

    Returns:
        A `keras.Model`: images [b, h, w, c], prepared by `preprocess_input`, → logits [b, h, w, classes] float32.

    Raises:
        ValueError: on an unknown variant or name, a wrong shape or border, or fewer than one class.

    ```python
    model = kvision.applications.FCN8s(input_shape=(256, 256, 3), classes=3)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=255)
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9, global_clipnorm=1.0), loss)
    model.fit(model.preprocessing(images), labels)  # [b, 256, 256] of 0, 1, 2, and 255 where nothing is known
    ```
    """
    row = variant_row("FCN", VARIANTS, variant, depths=depths, widths=widths, units=units)
    skips, stride = row["skips"], 2 ** len(STAGES)
    if not len(row["depths"]) == len(row["widths"]) == len(STAGES):
        raise ValueError(
            f"FCN: VGG has {len(STAGES)} stages, got depths={row['depths']} and widths={row['widths']}: give a number "
            "for each."
        )
    images = image_input("FCN", input_shape, stride=stride, classes=classes)
    border = _border(padding)
    learned = choose("upsampling", {"learned": True, "fixed": False}, upsampling)
    bound = conventions(norm, activation, initializer, bias_initializer)

    def score(x, name):
        zero = {"kernel_initializer": "zeros", "bias_initializer": "zeros"}
        return bound.conv(classes, 1, use_bias=True, dtype="float32", name=name, **zero)(x)

    def upsample(x, factor, name):
        layer = BilinearUpsampling(
            factor, learned=learned, padding="valid" if border else "same", dtype="float32", name=name
        )
        return layer(x)

    x = keras.layers.ZeroPadding2D(border - 1, name="border")(images) if border else images
    stages = vgg.convolutional_stages(x, row["depths"], row["widths"], bound, norm, pool_padding="same")
    pools = {stage: pooled for stage, (_, pooled) in zip(STAGES, stages, strict=True)}
    x = pools["pool5"]
    for number, kernel_size in ((6, 7), (7, 1)):
        around = "valid" if border else "same"
        x = bound.conv(row["units"], kernel_size, use_bias=True, padding=around, name=f"fc{number}")(x)
        x = keras.layers.Dropout(dropout_rate, name=f"drop{number}")(bound.activation(name=f"relu{number}")(x))
    x = score(x, "score_fr")

    first = 3  # the cell of the map of this stride at which the scores begin: half the window of fc6
    upscore = "upscore2"
    for skip, scale in skips.items():
        x = upsample(x, 2, upscore)
        y = pools[skip]
        if scale != 1.0:
            y = keras.layers.Rescaling(scale, dtype="float32", name=f"scale_{skip}")(y)
        y = score(y, f"score_{skip}")
        stride, first = stride // 2, 2 * first - 1
        if border:
            y = _crop(y, first, x.shape, f"score_{skip}.crop")
        else:
            x = _crop(x, 0, y.shape, f"{upscore}.crop")
        x = keras.layers.Add(dtype="float32", name=f"fuse_{skip}")([x, y])
        upscore = f"upscore_{skip}"
    x = upsample(x, stride, f"upscore{stride}" if skips else "upscore")
    begin = border - 1 - stride * first + stride // 2 if border else 0
    x = _crop(x, begin, images.shape, "logits")

    levels = {f"C{stage}": last for stage, (last, _) in enumerate(stages)} | {"C5": pools["pool5"]}
    model = build_network(
        images,
        x,
        levels,
        include_top=True,
        features=None,
        name=name or f"fcn_{variant}".replace("-", "_"),
        preprocessing=preprocess_input,
    )
    is_vgg16 = (tuple(row["depths"]), tuple(row["widths"]), row["units"]) == tuple(_VGG16.values())
    form = {None: "16", "group": None}.get(norm, "16 with batch norm") if is_vgg16 else None
    renames = RENAMES if norm is not None else RENAMES | {"torchfcn": _stage_names(row["depths"])}
    return finish(model, weights, vgg.WEIGHTS.get(form), renames, top=TOP)


def _stage_names(depths):
    """Rules from the indices of VGG's layers to numbers by stage: conv1_1, conv1_2, conv2_1 and so on."""
    rules, index = [], 0
    for stage, depth in enumerate(depths, start=1):
        for number in range(1, depth + 1):
            rules.append((rf"^features\.{index}\.", f"conv{stage}_{number}."))
            index += 2  # a convolution and its activation
        index += 1
    return rules


def _border(padding):
    """Zero pixels on each side of the image; 0 for `"same"`."""
    if padding == "same":
        return 0
    if not isinstance(padding, numbers.Integral) or padding < SMALLEST_BORDER:
        raise ValueError(
            f'FCN: padding must be "same", or a border of at least {SMALLEST_BORDER} pixels (the paper\'s is 100), got '
            f"{padding!r}."
        )
    return int(padding)


def _crop(x, begin, shape, name):
    """The rows and columns of `x` from `begin` on, as many as in `shape`."""
    ends = [(begin, size - begin - wanted) for size, wanted in zip(x.shape[1:3], shape[1:3], strict=True)]
    return x if ends == [(0, 0), (0, 0)] else keras.layers.Cropping2D(ends, dtype="float32", name=name)(x)


FCN32s = variant_of(FCN, "32s", "FCN32s", 'FCN-32s: 136,152,917 parameters; with `upsampling="fixed"` 134,346,581.')
FCN16s = variant_of(FCN, "16s", "FCN16s", 'FCN-16s: 134,815,994 parameters; with `upsampling="fixed"` 134,357,354.')
FCN8s = variant_of(FCN, "8s", "FCN8s", 'FCN-8s: 134,489,759 parameters; with `upsampling="fixed"` 134,362,751.')
