"""Input pipelines of kvision and of Keras's layers: a step is a few epochs of the photos of `photos.py`."""

import tempfile

import harness

tf = harness.tensorflow()

import dataclasses

import photos

from kvision import applications, data

BATCH, SIZE, BOXES = 32, 224, 320


def classified(**options):
    return data.image_folder(photos.folder(), batch_size=BATCH, drop_remainder=True, check="header", **options)


def augmented(dataset):
    jitter = data.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4)
    return data.augment(dataset, [data.RandomResizedCrop((SIZE, SIZE)), data.HorizontalFlip(), jitter])


def detection():
    """Decoded, scaled and cropped at random, mirrored, four images as one; boxes and masks."""
    home = photos.folder()
    sizes = {"image_size": (BOXES, BOXES), "max_boxes": 40, "masks": True, "mask_size": None}
    found = data.coco(home / "annotations.json", home, batch_size=8, check="header", **sizes)
    return data.augment(
        found, [data.ScaleJitter((BOXES, BOXES), scale=(0.5, 1.5)), data.HorizontalFlip(), data.Mosaic()]
    )


def unguarded():
    """The same without the accounts of images that fail."""
    return dataclasses.replace(augmented(classified(image_size=None)).source, lost=None).dataset()


def records():
    directory = tempfile.mkdtemp()
    data.write_records(classified(image_size=(SIZE, SIZE)), directory, verbose=0)
    return data.records(directory, batch_size=BATCH, drop_remainder=True)


def keras_layers():
    """`tf.data` with Keras's layers; it has no random resized crop, so images are scaled to one size and cropped."""
    from keras import layers

    change = [
        layers.RandomCrop(SIZE, SIZE),
        layers.RandomFlip("horizontal"),
        layers.RandomBrightness(0.4, (0, 255)),
        layers.RandomContrast(0.4, (0, 255)),
        layers.RandomSaturation(0.4, (0, 255)),
    ]

    def decode(path):
        return tf.image.resize(tf.io.decode_jpeg(tf.io.read_file(path), 3), (256, 256), antialias=True)

    def changed(images):
        for layer in change:
            images = layer(images, training=True)
        return images

    found = tf.data.Dataset.from_tensor_slices(photos.files()).map(decode, tf.data.AUTOTUNE)
    return found.batch(BATCH, drop_remainder=True).map(changed, tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def passes(build, images=photos.COUNT):
    """Several epochs by one iterator, to its end: what it would read ahead meanwhile must not count for the next."""

    def factory():
        dataset = build()

        def step():
            for _ in dataset.repeat(photos.EPOCHS):
                pass

        return step, {"images": images * photos.EPOCHS}

    return factory


def training(from_memory):
    """`fit` of a ResNet-18 on the pipeline, or on one of its batches."""

    def parts():
        import keras

        model = applications.ResNet18(input_shape=(SIZE, SIZE, 3), classes=2)
        model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "sparse_categorical_crossentropy")
        batches = augmented(classified(image_size=None))
        if from_memory:
            batches = tf.data.Dataset.from_tensors(next(iter(batches)))
        return model, batches.repeat()

    from steps_kvision import fit_in_pieces

    return fit_in_pieces(list, batches=4, parts=parts)


CASES = {
    "classification": passes(lambda: augmented(classified(image_size=None))),
    "classification-unguarded": passes(unguarded),
    "keras-layers": passes(keras_layers),
    "detection": passes(detection, photos.LABELLED),
    "folder": passes(lambda: classified(image_size=(SIZE, SIZE))),
    "records": passes(records),
    "fit": lambda: training(False)(),
    "fit-from-memory": lambda: training(True)(),
}

if __name__ == "__main__":
    harness.serve(CASES)
