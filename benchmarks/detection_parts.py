"""Where the time of a two-stage training step goes: its parts, each forward and backward on what the others give it."""

import harness

tf = harness.tensorflow()

import keras

from kvision.detection.box_branch import read_regions


def parts_of(detector, images, targets):
    """`{name: step}` of a Faster or Mask R-CNN on a pyramid; a step runs one part of the training step alone.

    The parts don't add up to the step: what lies between them is missing, and what the step does at once they do in
    turn.
    """
    head, trunk = detector.head, detector.trunk
    images, targets = tf.constant(images), {name: tf.constant(values) for name, values in targets.items()}
    stage = head.box_stages[0]
    levels = stage.levels
    body = keras.Model(trunk.inputs, {level: trunk.output[level] for level in levels})
    conv, relu, logits, deltas = (
        trunk.get_layer(f"rpn.head.{name}") for name in ("conv.0.0", "conv.0.relu", "cls_logits", "bbox_pred")
    )
    read = body(images)
    searched = [*read.values(), read[levels[-1]][:, ::2, ::2]]
    features = trunk(images)
    proposals = head.proposals.propose(features, training=True)
    sample = stage.assigner.draw_with_targets(proposals, targets)
    bins = read_regions(stage.pooling, features, levels, sample.boxes)
    gradients = [tf.random.normal(weight.shape) for weight in detector.trainable_weights]

    def pyramid(maps):
        return dict(zip(levels, maps, strict=True))

    def dense(level):
        shared = relu(conv(level))
        return [logits(shared), deltas(shared)]

    def classify(bins):
        outputs = stage.box_head(bins, training=True)
        return tf.add_n([tf.reduce_sum(output) for output in outputs.values()])

    rpn_weights = [weight for layer in (conv, logits, deltas) for weight in layer.trainable_weights]
    parts = {
        "trunk": _both(lambda: body(images, training=True), body.trainable_weights),
        "RPN": _both(lambda *maps: [dense(level) for level in maps], rpn_weights, *searched),
        "anchors' targets and losses": tf.function(lambda: head.proposals.losses(features, targets)),
        "proposals": tf.function(lambda: head.proposals.propose(features, training=True)),
        "sampling": tf.function(lambda: stage.assigner.draw_with_targets(proposals, targets)),
        "RoIAlign": _both(
            lambda *maps: read_regions(stage.pooling, pyramid(maps), levels, sample.boxes),
            [],
            *read.values(),
        ),
        "box head": _both(classify, stage.box_head.trainable_weights, bins),
        "update": tf.function(lambda: detector.optimizer.apply(gradients, detector.trainable_weights)),
    }
    if head.mask_stages:
        branch = head.mask_stages[0]
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
