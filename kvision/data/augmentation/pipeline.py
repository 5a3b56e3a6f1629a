"""Transforms over a data set: each sample gets a seed that depends on seed, epoch and sample alone."""

import inspect
import threading

import keras
import tensorflow as tf

from kvision.data.augmentation.unit_range import needs_bytes, watched
from kvision.data.elements import is_batched
from kvision.data.pending import Pending, finished
from kvision.data.source import SEEDS_A_SAMPLE


def augment(dataset, transforms, *, seed=0):
    """A data set whose samples are changed at random, anew in each epoch, on the CPU while the model trains.

    Of a data set by kvision's readers, samples are changed before they are batched, MixUp and its like draw partners
    from the whole data set, and what a sample becomes depends on seeds, epoch and sample alone. Any other
    `tf.data.Dataset`, of samples or of batches, will do: there the position in the epoch stands for the sample, and
    partners come from the batch.

    Args:
        dataset: A `tf.data.Dataset` of `image`, `(image, label)`, `(image, label map)` or `(image, targets)` of the
            data contract, or of batches of these. Images are in 0…255; a warning tells of others, which changes of
            colour ruin.
        transforms: Transforms such as `HorizontalFlip()`, in the order in which they are applied. Any function
            `(sample, seed) -> sample` of TensorFlow will do.
        seed: Of all draws.

    Returns:
        A `tf.data.Dataset` of the same form; images are float32. It keeps the attributes of a reader's data set.

    Raises:
        ValueError: If something is no transform, or a sample is of another form.

    >>> data = tf.data.Dataset.from_tensor_slices((np.zeros((6, 32, 32, 3), "float32"), [0, 1, 0, 1, 0, 1])).batch(3)
    >>> data = augment(data, [kvision.data.HorizontalFlip(), kvision.data.Crop((24, 24))], seed=1)
    >>> [tuple(images.shape) for images, labels in data]
    [(3, 24, 24, 3), (3, 24, 24, 3)]
    """
    transforms = list(transforms) if isinstance(transforms, tuple | list) else [transforms]
    for transform in transforms:
        _check_transform(transform)
    batched = is_batched("augment", dataset)
    names = getattr(dataset, "class_names", None) or ()
    for transform in transforms:
        classes = getattr(transform, "classes", None)
        if classes is not None and len(names) > classes:
            raise ValueError(
                f"augment: {type(transform).__name__}(classes={classes}) is for fewer classes than the {len(names)} of "
                f"the data set: pass classes={len(names)}."
            )
    source = getattr(dataset, "source", None)
    if source is None:
        return _over_any(dataset, transforms, seed, batched)
    first = _first_of_bytes(transforms)
    for position, transform in enumerate(transforms):
        source = source.transformed(_of_source(source, transform, seed, watch=position == first))
    made = source.dataset()
    indices = tf.data.Dataset.from_tensor_slices(source.order.indices(0))
    made.before_and_after = lambda: indices.map(lambda index: (dataset.source.sample(index), source.sample(index)))
    return made


def _check_transform(transform):
    """Raises unless something can be called as a transform is."""
    if isinstance(transform, keras.layers.Layer):
        raise ValueError(
            f"augment: the layer {transform.name!r} ({type(transform).__name__}) takes images, not (sample, seed): "
            "take the transform of kvision.data that does the same, or make the layer a part of the model."
        )
    fits = callable(transform) and not isinstance(transform, type)
    if fits:
        try:
            inspect.signature(transform).bind(None, None)
        except TypeError:
            fits = False
        except ValueError:  # of what has no signature that Python could tell
            pass
    if not fits:
        raise ValueError(
            f"augment: expected transforms such as HorizontalFlip(), or functions (sample, seed) -> sample: got "
            f"{transform!r}."
        )


def needs_partners(transform):
    """Whether a transform mixes samples."""
    return getattr(transform, "num_partners", 0) > 0


def _first_of_bytes(transforms):
    """The position of the first transform that needs images in 0…255, or None."""
    return next((position for position, transform in enumerate(transforms) if needs_bytes(transform)), None)


def _watched(sample, here, transform, batched=False):
    """A sample or a batch, whose images are looked at where `here` holds."""
    images, *rest = tf.nest.flatten(sample)
    images = watched(images, here, transform) if batched else watched(images[None], here, transform)[0]
    return tf.nest.pack_sequence_as(sample, [images, *rest])


def _of_source(source, transform, seed, watch):
    """The function of `Source`, with partners drawn from all samples as they are before this transform."""

    def function(sample, sample_seed):
        if watch:  # at the sample that this shard begins with in files' order
            sample = _watched(finished(sample), sample_seed[1] // SEEDS_A_SAMPLE == source.order.shard[0], transform)
        own = tf.random.fold_in(sample_seed, seed)
        if not needs_partners(transform):
            return _applied(transform, sample, own)

        def partners():
            first, second = tf.unstack(tf.random.split(tf.random.fold_in(own, 1)))
            number = [transform.num_partners]
            indices = tf.random.stateless_uniform(number, first, 0, source.order.length, tf.int64)
            epochs = tf.random.stateless_uniform(number, second, 0, 2**40, tf.int64)  # draws of the partner's own
            return [
                taken(source.unfinished(*pair)) for pair in zip(tf.unstack(indices), tf.unstack(epochs), strict=True)
            ]

        taken = (lambda pending: pending) if getattr(transform, "takes_pending", False) else finished
        return transform(taken(sample), own, partners)

    function.takes_pending = True
    return function


def _applied(transform, sample, seed):
    """A sample under a transform; its pixels are read only where the transform, or what follows, needs them."""
    on_pending = getattr(transform, "on_pending", None)
    if isinstance(sample, Pending) and on_pending is not None:
        made = on_pending(sample, seed)
        if made is not None:
            return made
    return transform(finished(sample), seed)


class _Epochs:
    """Counts the iterators over a data set."""

    def __init__(self):
        self.count = -1
        self.lock = threading.Lock()

    def next(self):
        with self.lock:
            self.count += 1
            return tf.constant(self.count, tf.int64).numpy()


def _over_any(dataset, transforms, seed, batched):
    if not batched and any(map(needs_partners, transforms)):
        raise ValueError(
            "augment: transforms that mix samples need batches here, since partners come from the batch: call "
            "`dataset.batch(...)` first."
        )
    epochs = _Epochs()
    begin = tf.data.Dataset.range(1).map(lambda _: tf.ensure_shape(tf.numpy_function(epochs.next, [], tf.int64), ()))
    seeds = begin.flat_map(
        lambda epoch: tf.data.Dataset.counter().map(lambda index: tf.stack([epoch * 1_000_003 + seed, index]))
    )

    first = _first_of_bytes(transforms)

    def one(sample, own):
        for position, transform in enumerate(transforms):
            if position == first:
                sample = _watched(sample, own[1] == 0, transform)
            sample = transform(sample, tf.random.fold_in(own, position))
        return sample

    @tf.autograph.experimental.do_not_convert
    def change(sample, own):
        return _batch(sample, own, transforms) if batched else one(sample, own)

    seeded = tf.data.Dataset.zip(dataset, seeds)
    made = seeded.map(change, tf.data.AUTOTUNE)
    length = dataset.cardinality()
    if length >= 0:
        made = made.apply(tf.data.experimental.assert_cardinality(length))
    made = made.prefetch(tf.data.AUTOTUNE)
    for name in ("class_names", "files", "counts", "problems"):
        if hasattr(dataset, name):
            setattr(made, name, getattr(dataset, name))
    made.before_and_after = lambda: seeded.map(lambda sample, own: (sample, change(sample, own)))
    return made


def _batch(batch, own, transforms):
    """A batch, sample by sample; partners of a sample are those that follow it by a drawn distance."""
    size = tf.shape(tf.nest.flatten(batch)[0])[0]
    first = _first_of_bytes(transforms)
    for position, transform in enumerate(transforms):
        if position == first:
            batch = _watched(batch, own[1] == 0, transform, batched=True)
        seed = tf.random.fold_in(own, position)
        seeds = tf.map_fn(lambda index, seed=seed: tf.random.fold_in(seed, index), tf.range(size, dtype=tf.int64))
        extra = ()
        if needs_partners(transform):
            most = tf.maximum(size - 1, 1)
            steps = 1 + tf.random.stateless_uniform([transform.num_partners], seed, 0, 2**30, tf.int32) % most
            extra = tuple(
                tf.nest.map_structure(lambda x, step=step: tf.roll(x, -step, 0), batch) for step in tf.unstack(steps)
            )

        def change(elements, transform=transform):
            sample, sample_seed, partners = elements
            return (
                transform(sample, sample_seed, lambda: list(partners)) if partners else transform(sample, sample_seed)
            )

        elements = (batch, seeds, extra)
        function = tf.function(change, autograph=False)  # traced once, for its signature and for the loop
        single = tf.nest.map_structure(lambda tensor: tf.TensorSpec(tensor.shape[1:], tensor.dtype), elements)
        made = function.get_concrete_function(single).structured_outputs
        signature = tf.nest.map_structure(lambda tensor: tf.TensorSpec(tensor.shape, tensor.dtype), made)
        batch = tf.map_fn(function, elements, fn_output_signature=signature)
    return batch
