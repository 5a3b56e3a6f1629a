"""Train a classifier on a folder of your own images: check them, augment, train, look at the run, name a new photo.

    python examples/train_folder.py flowers/                       one sub-folder per class; from scratch
    python examples/train_folder.py flowers/ --weights imagenet    from published weights: the last layer, then all
    python examples/train_folder.py --predict runs/flowers/model.keras photo.jpg another.png

What is wrong with the images is told and drawn (`check.html` in the folder of the run) before the training begins.
`--quick` only checks that everything runs, within 60 s. How well it does depends on your images: with published weights
some dozens a class often do, from scratch it takes hundreds.
"""

import argparse
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf

import kvision
from kvision import applications, callbacks, data, training


def main():
    options = arguments()
    if options.predict:
        return predict(options.predict, options.paths)
    keras.utils.set_random_seed(0)
    run = pathlib.Path(options.run or f"runs/{options.paths[0].resolve().name}")
    train, validation = folder(options)
    if not data.check(train, validation, page=run / "check.html") and not options.anyway:
        raise SystemExit(f"Look at {run / 'check.html'}. Mend the images, or train all the same with --anyway.")

    model = network(options, train.classes)
    model.class_names = train.class_names
    examples = prepared(data.augment(train, augmentation(options.size)), model)
    report = callbacks.Report(run)
    fit = {"validation_data": prepared(validation, model), "shuffle": False}  # the data set shuffles itself
    if options.weights:  # the last layer first: its first gradients are large, and would undo what was learned
        training.freeze(model, up_to=model.feature_info["C5"]["layer"])
        compile_model(model, keras.optimizers.Adam(1e-3))
        model.fit(examples, epochs=options.head_epochs, callbacks=[callbacks.Progress(), report], **fit)
        model.trainable = True
    compile_model(model, keras.optimizers.Adam())
    epochs = options.epochs + (options.head_epochs if options.weights else 0)  # a run counts on in its second part
    rate = kvision.optimizers.OneCycle(options.rate, total_steps=len(train) * epochs)
    watched = [callbacks.LearningRate(rate), callbacks.Vitals(every=20), callbacks.Progress(), report]
    history = model.fit(examples, epochs=options.epochs, callbacks=watched, **fit)

    model.save(run / "model.keras")
    print(f"\nvalidation accuracy  {history.history['val_accuracy'][-1]:.1%}")
    print(f"model                {run / 'model.keras'}: python {__file__} --predict {run / 'model.keras'} photo.jpg")
    return None


def folder(options):
    """Training and validation data of the folder, by a fifth of its files' hashes."""
    path, size = options.paths[0], (options.size, options.size)
    shared = {"image_size": size, "batch_size": options.batch_size}
    try:
        train = data.image_folder(path, split=(0, 0.8), shuffle=True, **shared)
        return train, data.image_folder(path, split=(0.8, 1), classes=train.class_names, **shared)
    except ValueError as error:
        raise SystemExit(str(error)) from None


def network(options, classes):
    """A ResNet-18: a narrow one with group norm from scratch, or the published one."""
    shape = (options.size, options.size, 3)
    if options.weights:
        return applications.ResNet18(input_shape=shape, classes=classes, weights=options.weights)
    return applications.ResNet("18", width=32, input_shape=shape, classes=classes, norm="group")


def augmentation(size):
    return [
        data.RandomResizedCrop((size, size), area=(0.4, 1.0)),
        data.HorizontalFlip(),
        data.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2),
    ]


def prepared(batches, model):
    """Images of 0…255 as the network takes them."""
    return batches.map(lambda images, labels: (model.preprocessing(images), labels), tf.data.AUTOTUNE).prefetch(2)


def compile_model(model, optimizer):
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])


def predict(path, photos):
    """Print the three likeliest classes of each photo."""
    model = keras.saving.load_model(path)
    height, width, _ = model.input_shape[1:]
    for photo in photos:
        image = tf.image.resize_with_pad(data.read_image(photo), height, width, antialias=True)
        scores = model.predict(model.preprocessing(image[None]), verbose=0)[0]
        best = np.argsort(-scores)[:3]
        print(f"{photo}: " + ", ".join(f"{model.class_names[label]} {scores[label]:.0%}" for label in best))


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", type=pathlib.Path, help="the folder, or photos with --predict")
    parser.add_argument("--predict", metavar="MODEL", help="name photos by a model that was saved here")
    parser.add_argument("--weights", help="'imagenet' (224 pixels suit it), or a file; without it from scratch")
    parser.add_argument("--size", type=int, help="height and width in pixels; 64 from scratch, 224 with weights")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--head-epochs", type=int, default=3, help="of the last layer alone, with weights")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rate", type=float, help="highest of the one-cycle schedule; 2e-3 from scratch, else 1e-4")
    parser.add_argument("--run", help="folder of the run; runs/<name of the folder> by default")
    parser.add_argument("--anyway", action="store_true", help="train even if the check found an error")
    parser.add_argument("--quick", action="store_true", help="two epochs at 32 pixels, to check that everything runs")
    options = parser.parse_args()
    options.size = options.size or (32 if options.quick else 224 if options.weights else 64)
    options.rate = options.rate or (1e-4 if options.weights else 2e-3)
    if options.quick:
        options.epochs, options.head_epochs = 2, 1
    return options


if __name__ == "__main__":
    main()
