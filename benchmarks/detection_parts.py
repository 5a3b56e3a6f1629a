"""Where the time of a two-stage training step goes: its parts, each forward and backward on what the others give it."""

import harness

tf = harness.tensorflow()

import keras

from kvision.applications.detection.fast_rcnn import read_regions


def parts_of(detector, images, targets):
    """`{name: step}` of a Faster or Mask R-CNN on a pyramid; a step runs one part of the training step alone.

    The parts don't add up to the step: what lies between them is missing, and what the step does at once they do in
    turn.
    """
    head, trunk = detector.head, detector.trunk
    images, targets = tf.constant(images), {name: tf.constant(values) for name, values in targets.items()}
    levels = head.box_branch.levels
    body, dense = (
        keras.Model(trunk.inputs, {level: trunk.output[level] for level in levels}),
        trunk.get_layer("rpn.head"),
    )
    read = body(images)
    searched = [*read.values(), read[levels[-1]][:, ::2, ::2]]
    features = trunk(images)
    proposals = head.proposals.propose(features, training=True)
    sample = head.box_branch.sample(proposals, targets)
    bins = read_regions(head.box_branch.pooling, features, levels, sample.boxes)
    gradients = [tf.random.normal(weight.shape) for weight in detector.trainable_weights]

    def pyramid(maps):
        return dict(zip(levels, maps, strict=True))

    def classify(bins):
        outputs = head.box_branch.box_head(bins, training=True)
        return tf.add_n([tf.reduce_sum(output) for output in outputs.values()])

    parts = {
        "trunk": _both(lambda: body(images, training=True), body.trainable_weights),
        "RPN": _both(lambda *maps: [dense(level) for level in maps], dense.trainable_weights, *searched),
        "anchors' targets and losses": tf.function(lambda: head.proposals.losses(features, targets)),
        "proposals": tf.function(lambda: head.proposals.propose(features, training=True)),
        "sampling": tf.function(lambda: head.box_branch.sample(proposals, targets)),
        "RoIAlign": _both(
            lambda *maps: read_regions(head.box_branch.pooling, pyramid(maps), levels, sample.boxes),
            [],
            *read.values(),
        ),
        "box head": _both(classify, head.box_branch.box_head.trainable_weights, bins),
        "update": tf.function(lambda: detector.optimizer.apply(gradients, detector.trainable_weights)),
    }
    if hasattr(head, "mask_branch"):
        branch = head.mask_branch
        parts["mask RoIAlign and head"] = _both(
            lambda *maps: branch.loss(pyramid(maps), sample, targets, training=True),
            branch.trainable_weights,
            *read.values(),
        )
    return parts


def _both(function, weights, *tensors):
    """One call of `function(*tensors)` that returns outputs and gradients (alone, the forward would be dropped)."""

    @tf.function
    def both():
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            outputs = function(*tensors)
        sources = [weight.value for weight in weights]
        return outputs, tape.gradient(outputs, [sources, list(tensors)])

    return both
