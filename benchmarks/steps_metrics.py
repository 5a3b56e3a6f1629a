"""Mean IoU of label maps: TOOL, 500 images of 512x512 pixels and 21 classes, in batches of 20 that are all alike.

Ours and Keras's are updated in a graph, as `evaluate` does it. torchmetrics checks the range of all labels unless it is
told not to; ours counts labels that are no class on its way.
"""

import harness
import numpy as np

IMAGES, BATCH, SIZE, CLASSES, IGNORED = 500, 20, 512, 21, 255


def maps():
    """Labels in blocks of 32x32, one in twenty ignored, and predictions of which four in five are right: int32."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, (BATCH, SIZE // 32, SIZE // 32)).repeat(32, 1).repeat(32, 2)
    predictions = np.where(rng.random(labels.shape) < 0.8, labels, rng.integers(0, CLASSES, labels.shape))
    labels = np.where(rng.random(labels.shape) < 0.05, IGNORED, labels)
    return labels.astype("int32"), predictions.astype("int32")


def in_graph(metric_of):
    def factory():
        tf = harness.tensorflow()
        metric = metric_of()
        labels, predictions = (tf.constant(each) for each in maps())
        update = tf.function(lambda one, two: metric.update_state(one, two), autograph=False)

        def step():
            metric.reset_state()
            for _ in range(IMAGES // BATCH):
                update(labels, predictions)
            return float(metric.result())

        return step, {"images": IMAGES}

    return factory


def ours():
    from kvision.metrics import MeanIoU

    return MeanIoU(CLASSES, ignore_class=IGNORED)


def kerass():
    import keras

    return keras.metrics.MeanIoU(CLASSES, ignore_class=IGNORED)


def by_torchmetrics(checked):
    def factory():
        torch = harness.torch()
        from torchmetrics.classification import MulticlassJaccardIndex

        metric = MulticlassJaccardIndex(CLASSES, ignore_index=IGNORED, validate_args=checked)
        labels, predictions = (torch.from_numpy(each.astype("int64")) for each in maps())

        def step():
            metric.reset()
            for _ in range(IMAGES // BATCH):
                metric.update(predictions, labels)
            return float(metric.compute())

        return step, {"images": IMAGES}

    return factory


CASES = {
    "kvision": in_graph(ours),
    "keras": in_graph(kerass),
    "torchmetrics": by_torchmetrics(True),
    "torchmetrics-unchecked": by_torchmetrics(False),
}

if __name__ == "__main__":
    harness.serve(CASES)
