"""KerasHub's networks, in an environment of their own: training steps MODEL:POLICY, and RetinaNet."""

import detection_inputs
import harness

tf = harness.tensorflow()

import keras
import keras_hub
from keras import layers
from steps_keras import training_step


class ClassToken(layers.Layer):
    """The first of the tokens."""

    def call(self, tokens):
        return tokens[:, 0]


def vit_tiny():
    backbone = keras_hub.models.ViTBackbone(
        image_shape=(224, 224, 3), patch_size=(16, 16), num_layers=12, num_heads=3, hidden_dim=192, mlp_dim=768
    )
    return classifier(backbone, ClassToken()(backbone.output))


def swin_tiny():
    backbone = keras_hub.models.SwinTransformerBackbone(
        image_shape=(224, 224, 3), embed_dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24), window_size=7
    )
    pool = layers.GlobalAveragePooling2D() if len(backbone.output.shape) == 4 else layers.GlobalAveragePooling1D()
    return classifier(backbone, pool(backbone.output))


def classifier(backbone, features):
    return keras.Model(backbone.input, layers.Dense(1000, activation="softmax", dtype="float32")(features))


def retinanet(inference=False):
    """RetinaNet on ResNet-50 with frozen batch norm, by the task's own losses, on the batch of the other peers."""
    keras.utils.set_random_seed(0)
    shape = (detection_inputs.SIZE, detection_inputs.SIZE, 3)
    encoder = keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 128, 256, 512],
        stackwise_num_blocks=[3, 4, 6, 3],
        stackwise_num_strides=[1, 2, 2, 2],
        block_type="bottleneck_block",
        image_shape=shape,
    )
    for layer in encoder._flatten_layers():
        if isinstance(layer, layers.BatchNormalization):
            layer.trainable = False
    backbone = keras_hub.models.RetinaNetBackbone(
        image_encoder=encoder, min_level=3, max_level=7, use_p5=False, image_shape=shape
    )
    model = keras_hub.models.RetinaNetObjectDetector(
        backbone=backbone, num_classes=detection_inputs.CLASSES, bounding_box_format="xyxy", preprocessor=None
    )
    model.compile(optimizer=keras.optimizers.SGD(1e-4, momentum=0.9), jit_compile=False)
    images, boxes, labels, _ = detection_inputs.batch()
    if inference:  # its predict_on_batch fails without a preprocessor
        predict = tf.function(lambda x: model.decode_predictions(model(x, training=False), x))
        return lambda: {name: values.numpy() for name, values in predict(tf.constant(images[:1])).items()}
    targets = {"boxes": boxes, "labels": labels.astype("float32")}
    data = tf.data.Dataset.from_tensors((images, targets))  # its train_on_batch takes no dict of targets
    return lambda: model.fit(data, shuffle=False, verbose=0), {"images": detection_inputs.BATCH}


MODELS = {"vit-tiny": (vit_tiny, 8), "swin-tiny": (swin_tiny, 8)}

CASES = {
    f"{name}:{policy}": training_step(build, batch, policy)
    for name, (build, batch) in MODELS.items()
    for policy in ("float32", "mixed_bfloat16")
}
CASES |= {"retinanet": retinanet, "retinanet-inference": lambda: retinanet(inference=True)}

if __name__ == "__main__":
    harness.serve(CASES)
