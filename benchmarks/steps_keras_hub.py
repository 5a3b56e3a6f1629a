"""Training steps of KerasHub's networks, in an environment of their own: MODEL:POLICY."""

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


MODELS = {"vit-tiny": (vit_tiny, 8), "swin-tiny": (swin_tiny, 8)}

CASES = {
    f"{name}:{policy}": training_step(build, batch, policy)
    for name, (build, batch) in MODELS.items()
    for policy in ("float32", "mixed_bfloat16")
}

if __name__ == "__main__":
    harness.serve(CASES)
