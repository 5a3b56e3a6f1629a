"""Recurrent CNN: Pinheiro & Collobert, "Recurrent Convolutional Neural Networks for Scene Labeling" (2014).

One small network sees the image and its own last map, and corrects it, in each pass over a context four times as wide
(section 3.2): pass p takes [logits of pass p − 1, image at the resolution of these logits], the first one zeros instead
of logits. All passes share their weights. Each is trained: the paper maximizes the sum of their likelihoods.

Alignment. A window of 8 has no central pixel; here its longer half lies before, and 2x2 pooling reaches behind: the
shifts cancel, and the logits of cell j belong to pixel 4j exactly, in pass p to pixel 4^p · j. The smaller image is
read at these pixels, not at the centres of blocks. With `dense=True` every pixel has its cell, by spacing the taps of
the windows instead of striding: what the paper computes at test time from shifted images and interleaves (section 3.3).

Deviations: maps are zero-padded, where the paper cuts patches out of a padded image; the smaller image is a mean under
a triangle, as antialiased resizing is.

How it trains (section 4): one random patch after another, so pixels, SGD with a constant rate, no regularization.
"""

import keras
from keras import ops

from kvision.applications.building import build_network, finish, image_input, variant_row
from kvision.layers import BilinearSampling, Conv2D, DilatedPooling2D
from kvision.layers.conventions import conventions
from kvision.network import Preprocessing

# Section 4.2, rCNN on Stanford Background: 8x8 convolutions with 25 and 50 outputs, each with 2x2 pooling and tanh,
# then a 1x1 convolution; one pass sees 25 pixels.
VARIANTS = {
    "2014": {"filters": (25, 50), "kernel_size": 8},
    "tiny": {"filters": (16, 16), "kernel_size": 4},
}

PROOF = "the layer table of the paper, a NumPy twin of a pass, and strided passes against spaced ones"

TOP = ("conv3",)

preprocess_input = Preprocessing(value_range=(-1.0, 1.0))


def RecurrentCNN(
    variant="2014",
    *,
    weights=None,
    input_shape=(240, 320, 3),
    classes=8,
    norm=None,
    activation="tanh",
    initializer="xavier",
    bias_initializer="zero",
    passes=3,
    all_passes=False,
    dense=True,
    filters=None,
    name=None,
):
    """Build the recurrent convolutional network: 98,083 parameters, whatever the number of passes.

    Args:
        variant: A row of `VARIANTS`: `"2014"`.
        weights: None, or the path of a weight file, of any number of passes.
        input_shape: (height, width, channels); without `dense` at least 4^passes pixels.
        classes: Number of classes, the background among them; the paper's Stanford Background has 8.
        norm: None as in the paper, `"batch"`, `"sync_batch"`, `"group"` or `"frozen_batch"`, after the convolutions but
            the last.
        activation, initializer, bias_initializer: Names, see `kvision.layers.conventions.conventions`.
        passes: How often the network sees its own map, the first time included, ≥ 1.
        all_passes: Return the logits of all passes, to train each.
        dense: Logits at every pixel; otherwise at one of 4^p in pass p, enlarged bilinearly: a fraction of the work.
        filters: Of the two convolutions; None takes the row's.
        name: Of the model.

    Returns:
        A `keras.Model`: images [b, h, w, c], prepared by `preprocess_input`, → logits [b, h, w, classes] float32 of the
        last pass or, with `all_passes`, a dict `{"pass1": logits, "pass2": logits, …}`.

    Raises:
        ValueError: on an unknown variant or name, a wrong shape, fewer than one class or pass.

    >>> model = RecurrentCNN("tiny", input_shape=(16, 24, 3), all_passes=True)
    >>> losses = {name: keras.losses.SparseCategoricalCrossentropy(True, ignore_class=255) for name in model.output}
    >>> model.compile("sgd", losses, loss_weights={"pass1": 0.5, "pass2": 0.5, "pass3": 1.0})
    >>> images, labels = np.zeros((1, 16, 24, 3)), np.zeros((1, 16, 24), "uint8")
    >>> history = model.fit(images, dict.fromkeys(losses, labels), verbose=0)
    """
    row = variant_row("RecurrentCNN", VARIANTS, variant, filters=filters)
    if passes < 1 or not row["filters"]:
        raise ValueError(
            "RecurrentCNN: needs at least 1 pass and 1 convolution before the last: got "
            f"passes={passes}, filters={row['filters']}."
        )
    stride = 2 ** len(row["filters"])
    images = image_input("RecurrentCNN", input_shape, stride=1 if dense else stride**passes, classes=classes)
    bound = conventions(norm, activation, initializer, bias_initializer)
    one_pass = _network(bound, row, classes, dense)

    size = images.shape[1:3]
    logits, outputs = None, {}
    for index in range(1, passes + 1):
        spacing = stride ** (index - 1)
        if logits is None:
            x = NoLogits(classes, name="no_logits")(images)
        else:
            step, points = (1, size) if dense else (spacing, logits.shape[1:3])
            seen = BilinearSampling(points, step, 0, width=spacing, name=f"image{index}")(images)
            x = keras.layers.Concatenate(name=f"inputs{index}")([seen, logits])
        logits = one_pass(x, spacing if dense else 1, index)
        outputs[f"pass{index}"] = logits
    if not dense:
        outputs = {
            key: BilinearSampling(size, stride**-index, 0, dtype="float32", name=f"{key}.logits")(logits)
            for index, (key, logits) in enumerate(outputs.items(), start=1)
        }
    model = build_network(
        images,
        outputs if all_passes else outputs[f"pass{passes}"],
        {},
        include_top=True,
        features=None,
        name=name or f"recurrent_cnn_{variant}",
        preprocessing=preprocess_input,
    )
    return finish(model, weights, top=TOP)


def _network(bound, row, classes, dense):
    """A function from [image, last logits] to logits, with one set of weights."""
    stages = range(1, len(row["filters"]) + 1)
    convs = [
        _spaced(bound.conv(row["filters"][stage - 1], row["kernel_size"], name=f"conv{stage}")) for stage in stages
    ]
    norms = [bound.norm(name=f"norm{stage}") for stage in stages]
    last = bound.conv(classes, 1, use_bias=True, dtype="float32", name=f"conv{len(stages) + 1}")

    def one_pass(x, spacing, index):
        for stage, conv, norm in zip(stages, convs, norms, strict=True):
            x = norm(conv(x, spacing=spacing))
            if dense:
                x = DilatedPooling2D(2, spacing, "max", padding="end", name=f"pool{stage}_{index}")(x)
                spacing = 2 * spacing
            else:
                x = keras.layers.MaxPooling2D(2, padding="same", name=f"pool{stage}_{index}")(x)
            x = bound.activation(name=f"act{stage}_{index}")(x)
        return last(x)

    return one_pass


def _spaced(conv):
    """A convolution as made by the conventions, as one whose taps may be spaced."""
    return SpacedConv2D.from_config(conv.get_config() | {"padding": "valid"})


@keras.saving.register_keras_serializable("kvision")
class SpacedConv2D(Conv2D):
    """A convolution of an even window whose taps are so far apart as each call says, over a zero-padded map.

    Call: `layer(maps, spacing=1)`; [b, h, w, c] → [b, h, w, filters]. Half of the window lies before a cell.

    >>> tuple(SpacedConv2D(4, 8)(keras.ops.ones((1, 9, 9, 3)), spacing=2).shape)
    (1, 9, 9, 4)
    """

    def call(self, inputs, spacing=1):
        width = [(spacing * (size // 2), spacing * ((size - 1) // 2)) for size in self.kernel_size]
        outputs = ops.conv(
            ops.pad(inputs, ((0, 0), *width, (0, 0))),
            self.kernel,
            padding="valid",
            dilation_rate=spacing,
            data_format="channels_last",
        )
        return outputs + self.bias if self.use_bias else outputs

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.filters)


@keras.saving.register_keras_serializable("kvision")
class NoLogits(keras.layers.Layer):
    """Images with zeros behind their channels, where later passes have logits.

    Args:
        classes: Number of zeros.

    Shapes: [b, h, w, c] → [b, h, w, c + classes].

    >>> tuple(NoLogits(8)(keras.ops.ones((1, 4, 4, 3))).shape)
    (1, 4, 4, 11)
    """

    def __init__(self, classes, **options):
        super().__init__(**options)
        self.classes = int(classes)

    def call(self, inputs):
        return ops.pad(inputs, ((0, 0), (0, 0), (0, 0), (0, self.classes)))

    def get_config(self):
        return super().get_config() | {"classes": self.classes}
