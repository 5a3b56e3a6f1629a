"""A detector on another library's backbone: cut a functional Keras model into named levels and pass it on.

    python examples/any_backbone.py                     # ConvNeXt-Tiny of keras.applications
    python examples/any_backbone.py --backbone resnet   # ResNet-50 of KerasHub (pip install keras-hub)

Prints the levels, and the losses of a few steps on images of shapes: half a minute on two CPU cores. It shows how the
parts fit together; three epochs on 32 images reach no metric worth reporting. `--quick` runs two steps.
"""

import argparse
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras

from kvision import applications, data

SHAPE = (128, 128, 3)


def convnext():
    """ConvNeXt-Tiny brings its own preprocessing. Its stages end in the layers before each downsampling."""
    whole = keras.applications.ConvNeXtTiny(include_top=False, weights=None, input_shape=SHAPE)
    stages = {"C3": "convnext_tiny_stage_1", "C4": "convnext_tiny_stage_2", "C5": "convnext_tiny_stage_3"}
    names = [layer.name for layer in whole.layers]
    last = {level: [name for name in names if name.startswith(stage)][-1] for level, stage in stages.items()}
    return applications.cut(whole, last), {"preprocess": None}


def resnet():
    """KerasHub's backbones name their levels: P2 to P5 are what detectors call C2 to C5."""
    import keras_hub

    whole = keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 128, 256, 512],
        stackwise_num_blocks=[3, 4, 6, 3],
        stackwise_num_strides=[1, 2, 2, 2],
        block_type="bottleneck_block",
        image_shape=SHAPE,
    )
    backbone = keras.Model(whole.input, {f"C{level}": whole.pyramid_outputs[f"P{level}"] for level in (3, 4, 5)})
    return backbone, {"preprocess": applications.resnet.preprocess_input}


BACKBONES = {"convnext": convnext, "resnet": resnet}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", choices=BACKBONES, default="convnext")
    parser.add_argument("--quick", action="store_true", help="two steps only")
    options = parser.parse_args()
    backbone, preprocessing = BACKBONES[options.backbone]()
    for level, output in backbone.output.items():
        print(f"{level}: {tuple(output.shape[1:])}")
    detector = applications.RetinaNet(input_shape=SHAPE, classes=3, backbone=backbone, channels=64, **preprocessing)
    detector.compile(keras.optimizers.Adam(1e-4))
    images, targets = data.shapes(8 if options.quick else 32, image_size=SHAPE[:2])
    losses = detector.fit(images, targets, batch_size=4, epochs=1 if options.quick else 3, verbose=0).history
    print(f"{detector.count_params():,} parameters; " + ", ".join(f"{k} {v[-1]:.3f}" for k, v in losses.items()))


if __name__ == "__main__":
    main()
