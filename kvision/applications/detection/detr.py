"""DETR: Carion, Massa, Synnaeve, Usunier, Kirillov, Zagoruyko, "End-to-End Object Detection with Transformers" (2020).

Equals the authors' code, fed the same weights, in outputs, auxiliary outputs and losses. Biases begin at 0, where torch
draws small numbers.

How it trains (section 4 and appendix A.4): AdamW, rate 1e-4, a tenth of it for the backbone, weight decay 1e-4,
gradients clipped to a norm of 0.1, dropout 0.1, 64 images a batch, 300 epochs, the rates divided by 10 after 200; the
backbone begins from ImageNet with frozen batch norm. On small data sets it needs pre-training: begin from
`weights="coco"` and keep the 100 queries.
"""

import keras
from keras import ops

from kvision.applications.building import image_input, variant_of, variant_row
from kvision.applications.classification import imagenet
from kvision.applications.classification.resnet import ResNet
from kvision.applications.detection import coco
from kvision.detection.backbone import backbone_maps, backbone_preprocessing, choose_norms
from kvision.detection.detector import Detector
from kvision.detection.set_head import SetHead
from kvision.layers import Conv2D, LayerNormalization, TransformerDecoderBlock, TransformerEncoderBlock
from kvision.layers.transformer import TORCH_RENAMES
from kvision.ops.positions import sinusoidal_map_encoding
from kvision.part import Part
from kvision.weights import Published

# Section 4 and table 1; "dc5": the last stage of the backbone is dilated, its map twice as fine.
_PAPER = {
    "num_queries": 100,
    "channels": 256,
    "num_heads": 8,
    "hidden_units": 2048,
    "num_encoder_layers": 6,
    "num_decoder_layers": 6,
}
VARIANTS = {
    "resnet50": {"depth": "50", "dilated": (), **_PAPER},
    "resnet50_dc5": {"depth": "50", "dilated": ("C5",), **_PAPER},
    "resnet101": {"depth": "101", "dilated": (), **_PAPER},
    "resnet101_dc5": {"depth": "101", "dilated": ("C5",), **_PAPER},
    "tiny": {"depth": "tiny", "dilated": (), **dict(zip(_PAPER, (5, 16, 2, 32, 1, 2), strict=True))},
}

# In the authors' files: the names of torchvision's backbone, of torch's transformer blocks and of two layers of ours.
RENAMES = {
    "detr": [
        (r"^(conv1|bn1|layer\d)\b", r"backbone.0.body.\1"),
        *TORCH_RENAMES,
        (r"^query_embed\.embeddings$", "query_embed.weight"),
    ]
}

# What depends on the number of classes.
TOP = ("class_embed",)

# Weights whose path is searched for this are the backbone's, whichever it is: those of another learning rate.
BACKBONE = r"^(?!(input_proj|query_embed|class_embed|bbox_embed|transformer)\b)"


def _published(file, box_ap):
    """A row of the table in the authors' README; 500 epochs."""
    return Published(
        "https://dl.fbaipublicfiles.com/detr",
        file,
        "detr",
        "Apache-2.0",
        box_ap,
        "short side to 800, long side at most 1333 (bilinear); 0…255, the detector prepares them",
        adapt=coco.CategoryRows({"class_embed": 1}, background=False, no_object=True),
    )


WEIGHTS = {
    "resnet50": {"coco": _published("detr-r50-e632da11.pth", 42.0)},
    "resnet50_dc5": {"coco": _published("detr-r50-dc5-f0fb7ef5.pth", 43.3)},
    "resnet101": {"coco": _published("detr-r101-2c7b67e5.pth", 43.5)},
    "resnet101_dc5": {"coco": _published("detr-r101-dc5-a2e86def.pth", 44.9)},
}

PROOF = "the authors' code (package detr), fed the same weights"


def DETR(
    variant,
    *,
    input_shape=(512, 512, 3),
    classes=None,
    backbone=None,
    level="C5",
    weights=None,
    backbone_norm="auto",
    num_queries=None,
    channels=None,
    num_heads=None,
    hidden_units=None,
    num_encoder_layers=None,
    num_decoder_layers=None,
    dropout_rate=0.1,
    auxiliary_losses=True,
    no_object_weight=0.1,
    score_threshold=0.0,
    attention_maps=False,
    preprocess="auto",
    name=None,
):
    """Build a DETR.

    Args:
        variant: A row of `VARIANTS`: `"resnet50"`, `"resnet50_dc5"`, `"resnet101"`, `"resnet101_dc5"`, …
        input_shape: (height, width, channels), at least 32 pixels a side.
        classes: Number of classes, without "no object". None is COCO's 80.
        backbone: A `keras.Model` from images of `input_shape` to a dict with the map `level`. None is a ResNet of the
            row's depth and of `backbone_norm`.
        level: The map whose cells the transformer reads, of any stride: attention grows with the square of its cells.
        weights: None; or `"coco"` (see `WEIGHTS`), for the arguments of the network as they are by default: 80 labels,
            those of `coco.class_names()`, which the detector then carries; with another number of `classes` the last
            layer starts fresh, and says so. Or the path of weights of the whole detector, a file of Keras or of the
            authors' code, which counts 91 `classes`.
        backbone_norm: Of the backbone built here: `"frozen_batch"`, `"group"`, `"batch"`, `"sync_batch"` or None.
            `"auto"`: what the file of `weights` was trained with, batch norm frozen; else group norm, which trains from
            scratch. Frozen without weights is for loading some afterwards: `fit` refuses it before.
        num_queries: Objects that can be found in an image, at most; None takes the row's, as do the next five.
        channels: Of the transformer, a multiple of 4.
        num_heads: Of each attention; divides the channels.
        hidden_units: Of the dense layers inside the blocks.
        num_encoder_layers, num_decoder_layers: Blocks; at least one of the decoder.
        dropout_rate: In the blocks, in [0, 1).
        auxiliary_losses: Whether every layer of the decoder is trained towards the targets (section 3.2).
        no_object_weight: Of queries without an object in the classification loss, at least 0 (section 3.1).
        score_threshold: Detections with a score of at most this are left out; 0 keeps one for each query.
        attention_maps: Whether detections come with `"attention_maps"` [b, queries, rows, columns]: how much each looks
            at each cell of the map (figure 6). `head.attention_maps` may be set later.
        preprocess: A function applied to the images, RGB 0…255, before the backbone, or None. `"auto"`: what the
            backbone carries as `preprocessing`; ImageNet's for the one built here.
        name: Of the model.

    Returns:
        A `kvision.detection.Detector`. Its losses are `classification_loss`, `box_loss` and `giou_loss`, weighed 1, 5
        and 2, of the last layer of the decoder, and `auxiliary_loss`, the sum of those of the others. What a target's
        or an input's `"image_size"` says is padding is not looked at. Costs and weights are options of `head`.

    Raises:
        ValueError: on an unknown variant or norm, a wrong shape, a backbone without the level, heads that do not divide
            the channels, a decoder without blocks.

    ```python
    detector = kvision.applications.DETRResNet50(classes=3, weights="coco")
    rates = {kvision.applications.detr.BACKBONE: 0.1}
    detector.compile(kvision.optimizers.AdamW(1e-4, weight_decay=1e-4, global_clipnorm=0.1, rate_factors=rates))
    ```
    """
    row = variant_row(
        "DETR",
        VARIANTS,
        variant,
        num_queries=num_queries,
        channels=channels,
        num_heads=num_heads,
        hidden_units=hidden_units,
        num_encoder_layers=num_encoder_layers,
        num_decoder_layers=num_decoder_layers,
    )
    name = name or f"detr_{variant}"
    published = WEIGHTS.get(variant, {})
    classes = coco.num_classes("DETR", classes, weights, published)
    images = image_input("DETR", input_shape, stride=32, classes=classes)
    norms = choose_norms(
        "DETR", backbone=backbone, weights=weights, backbone_norm=backbone_norm, norm="auto", initializer="auto"
    )
    changed = coco.changed(
        backbone=(backbone, (None,)),
        level=(level, ("C5",)),
        backbone_norm=(backbone_norm, ("auto", "frozen_batch")),
        **{key: (row[key], (_PAPER[key],)) for key in _PAPER},
    )
    preprocess = backbone_preprocessing("DETR", backbone, preprocess, imagenet.preprocess_input)
    if backbone is None:
        backbone = ResNet(
            row["depth"],
            include_top=False,
            input_shape=input_shape,
            norm=norms.backbone,
            features=(level,),
            dilated=row["dilated"],
        )
    maps = backbone_maps("DETR", backbone, (level,), images, preprocess, any_stride=True)
    projected = Conv2D(row["channels"], 1, kernel_initializer=_torch_uniform(), name="input_proj")(maps[level])
    sizes = {key: row[key] for key in _PAPER}
    network = DETRTransformer(classes, projected.shape[1:3], dropout_rate=dropout_rate, name="transformer", **sizes)
    head = SetHead(
        network,
        classes,
        input_shape[:2],
        auxiliary_losses=auxiliary_losses,
        no_object_weight=no_object_weight,
        score_threshold=score_threshold,
        attention_maps=attention_maps,
        name=f"{name}_head",
    )
    trunk = keras.Model(images, {"map": projected}, name=f"{name}_trunk")
    return coco.finish(Detector(trunk, head, name=name), weights, published, changed, RENAMES, {}, TOP)


@keras.saving.register_keras_serializable("kvision")
class DETRTransformer(Part):
    """From a map to what every query predicts after every layer of the decoder (figure 2, right; appendix A.3).

    The blocks normalise after each residual sum; encodings of the cells and of the queries are added to queries and
    keys of every attention and not to its values; queries begin at zero. One normalisation and one pair of prediction
    heads serve all layers of the decoder.

    Args:
        classes: Number of classes, without "no object".
        map_size: (rows, columns) of the map.
        num_queries, channels, num_heads, hidden_units, num_encoder_layers, num_decoder_layers, dropout_rate: As those
            of `DETR`.

    Features: `"map"` [b, rows, columns, channels].
    """

    def __init__(
        self,
        classes,
        map_size,
        num_queries=100,
        channels=256,
        num_heads=8,
        hidden_units=2048,
        num_encoder_layers=6,
        num_decoder_layers=6,
        dropout_rate=0.1,
        **options,
    ):
        super().__init__(**options)
        if num_queries < 1 or num_decoder_layers < 1 or num_encoder_layers < 0:
            raise ValueError(
                f"DETR needs at least one query and one layer of the decoder: got num_queries={num_queries}, "
                f"num_decoder_layers={num_decoder_layers}, num_encoder_layers={num_encoder_layers}."
            )
        self.classes = classes
        self.map_size = tuple(map_size)
        self.num_queries = num_queries
        self.channels = channels
        self.num_heads = num_heads
        self.hidden_units = hidden_units
        self.num_encoder_layers = num_encoder_layers
        self.num_decoder_layers = num_decoder_layers
        self.dropout_rate = dropout_rate
        self._positions = ops.convert_to_numpy(sinusoidal_map_encoding(self.map_size, channels))

        tokens = (None, None, channels)
        self._encoder = [
            self._block(TransformerEncoderBlock, f"transformer.encoder.layers.{index}")
            for index in range(num_encoder_layers)
        ]
        self._decoder = [
            self._block(TransformerDecoderBlock, f"transformer.decoder.layers.{index}")
            for index in range(num_decoder_layers)
        ]
        self._norm = LayerNormalization(epsilon=1e-5, name="transformer.decoder.norm")
        normal = keras.initializers.RandomNormal(stddev=1.0)
        self._queries = keras.layers.Embedding(num_queries, channels, normal, name="query_embed")
        self._class = self._dense(classes + 1, "class_embed", dtype="float32")
        self._box = [
            self._dense(channels, "bbox_embed.layers.0", activation="relu"),
            self._dense(channels, "bbox_embed.layers.1", activation="relu"),
            self._dense(4, "bbox_embed.layers.2", activation="sigmoid", dtype="float32"),
        ]
        for layer in (*self._encoder, *self._decoder, self._norm, self._class, *self._box):
            layer.build(tokens)
        self._queries.build((None,))
        self.complete()

    def _block(self, kind, name):
        return kind(
            self.num_heads,
            self.hidden_units,
            pre_norm=False,
            activation="relu",
            dropout_rate=self.dropout_rate,
            attention_dropout_rate=self.dropout_rate,
            epsilon=1e-5,
            name=name,
        )

    def _dense(self, units, name, **options):
        return keras.layers.Dense(units, kernel_initializer=_torch_uniform(), name=name, **options)

    def predict(self, features, valid_size=None, training=False, return_weights=False):
        """`{"class_logits": [layers, b, queries, classes + 1], "boxes_cxcywh": [layers, b, queries, 4]}`, float32.

        Args:
            features: With `"map"`.
            valid_size: [b, 2], rows and columns of the map that are no padding; None: all.
            training: Whether dropout is on.
            return_weights: Whether `"attention"` [b, queries, rows, columns] comes along: that of the last layer to the
                cells of the map, the mean of its heads.
        """
        rows, columns = self.map_size
        x = ops.reshape(features["map"], (-1, rows * columns, self.channels))
        positions, mask = self._positions, None
        if valid_size is not None:
            positions = sinusoidal_map_encoding(self.map_size, self.channels, valid_size)
            valid_rows, valid_columns = (
                ops.arange(side) < valid_size[:, axis, None] for axis, side in ((0, rows), (1, columns))
            )
            mask = ops.reshape(valid_rows[:, :, None] & valid_columns[:, None], (-1, 1, rows * columns))
        for block in self._encoder:
            x = block(x, positions=positions, attention_mask=mask, training=training)

        embeddings = ops.convert_to_tensor(self._queries.embeddings)[None]
        queries = ops.zeros((ops.shape(x)[0], self.num_queries, self.channels), x.dtype)
        outputs = []
        for block in self._decoder:
            queries, weights = block(
                queries,
                x,
                positions=embeddings,
                memory_positions=positions,
                memory_mask=mask,
                return_weights=True,
                training=training,
            )
            outputs.append(queries)
        outputs = self._norm(ops.stack(outputs))
        boxes = outputs
        for layer in self._box:
            boxes = layer(boxes)
        found = {"class_logits": self._class(outputs), "boxes_cxcywh": boxes}
        if return_weights:
            mean = ops.mean(ops.cast(weights, "float32"), axis=1)
            found["attention"] = ops.reshape(mean, (-1, self.num_queries, rows, columns))
        return found


def _torch_uniform():
    """What torch's layers begin with: uniform within one over the root of the inputs."""
    return keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform")


DETRResNet50 = variant_of(
    DETR, "resnet50", "DETRResNet50", "DETR on ResNet-50: 41,524,768 parameters with 91 classes and frozen batch norm."
)
DETRResNet50DC5 = variant_of(DETR, "resnet50_dc5", "DETRResNet50DC5", "DETR on ResNet-50 with a dilated last stage.")
DETRResNet101 = variant_of(DETR, "resnet101", "DETRResNet101", "DETR on ResNet-101.")
DETRResNet101DC5 = variant_of(
    DETR, "resnet101_dc5", "DETRResNet101DC5", "DETR on ResNet-101 with a dilated last stage."
)
