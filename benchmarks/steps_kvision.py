"""What kvision is timed at: training steps MODEL:POLICY, predictions, and `fit` with and without vitals."""

import tempfile
import threading

import harness

tf = harness.tensorflow()

import keras
import numpy as np
from steps_keras import prediction, training_step

import kvision
from kvision import applications

ENDLESS = 10**9  # batches

MODELS = {
    "resnet50": (lambda: applications.ResNet50(), 16),
    "resnet50-group": (lambda: applications.ResNet50(norm="group"), 16),
    "vgg16": (lambda: applications.VGG16(), 8),
    "efficientnet-b0": (lambda: applications.EfficientNetB0(), 16),
    "googlenet": (lambda: applications.GoogLeNet(norm="batch"), 16),
    "vit-tiny": (lambda: applications.ViTTi16(), 8),
    "swin-tiny": (lambda: applications.SwinT(), 8),
}


def with_cost(build, batch, policy):
    """A training step that also tells its floating-point operations: two a multiply-add, three passes."""

    def factory():
        step, facts = training_step(build, batch, policy)()
        keras.mixed_precision.set_dtype_policy("float32")
        return step, facts | cost_of(build, 3 * batch, dtype_of(policy))

    return factory


def prediction_with_cost(build, batch):
    def factory():
        step, facts = prediction(build, batch)()
        return step, facts | cost_of(build, batch, "float32")

    return factory


def cost_of(build, passes, dtype):
    """The facts of a case of so many passes over one image."""
    with keras.StatelessScope(initialize_variables=False):
        cost = kvision.training.describe(build())
    return {"flop": 2 * passes * cost.multiply_adds, "peak_case": f"matrix-product:{dtype}"}


def dtype_of(policy):
    return policy.removeprefix("mixed_")


def matrix_product(dtype, size=4096):
    """The fastest thing the machine does: what a training step is measured against."""

    def factory():
        a = tf.cast(tf.random.normal((size, size)), dtype)
        return lambda: tf.matmul(a, a).numpy(), {"flop": 2 * size**3}

    return factory


def small_images():
    """A compiled ResNet-18, and a batch of small images that repeats."""
    model = applications.ResNet18(input_shape=(64, 64, 3), classes=10)
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "sparse_categorical_crossentropy")
    rng = np.random.default_rng(0)
    images, labels = rng.random((32, 64, 64, 3), dtype="float32"), rng.integers(0, 10, 32).astype("int32")
    return model, tf.data.Dataset.from_tensors((images, labels)).repeat()


def fit_in_pieces(callbacks, batches=100, parts=small_images):
    """One iteration is `batches` batches of one long `fit` that waits in between: nothing is traced anew.

    Args:
        callbacks: A function that gives the callbacks.
        parts: A function that gives the compiled model and the endless data.
    """

    def factory():
        keras.utils.set_random_seed(0)
        model, data = parts()
        go, done = threading.Semaphore(0), threading.Semaphore(0)

        class Gate(keras.callbacks.Callback):
            def on_train_begin(self, logs=None):
                go.acquire()

            def on_train_batch_end(self, batch, logs=None):
                if (batch + 1) % batches == 0:
                    done.release()
                    go.acquire()

        fit = threading.Thread(
            target=model.fit,
            args=(data,),
            kwargs={"steps_per_epoch": ENDLESS, "verbose": 0, "callbacks": [*callbacks(), Gate()]},
            daemon=True,
        )
        fit.start()

        def step():
            go.release()
            done.acquire()

        return step, {"images": 32 * batches}

    return factory


def all_vitals():
    """Every vital at its defaults."""
    names = ("Vitals", "GradientToWeight", "PrecisionHealth", "Throughput")
    return [getattr(kvision.callbacks, name)() for name in names]


class Endless:
    """Stands for a data set of known order, as long as the `fit` of `fit_in_pieces`."""

    def __init__(self):
        order = kvision.data.source.Order(32 * ENDLESS, batch_size=32)
        self.source = kvision.data.source.Source(None, order)

    def __len__(self):
        return ENDLESS


def resume():
    return [kvision.callbacks.Resume(tempfile.mkdtemp(), every=100, data=Endless())]


CASES = {
    f"{name}:{policy}": with_cost(build, batch, policy)
    for name, (build, batch) in MODELS.items()
    for policy in ("float32", "mixed_bfloat16", "mixed_float16")
}
CASES |= {f"resnet50-inference:{batch}": prediction_with_cost(MODELS["resnet50"][0], batch) for batch in (1, 32)}
CASES |= {f"matrix-product:{dtype}": matrix_product(dtype) for dtype in ("float32", "bfloat16", "float16")}
CASES |= {
    "resnet18-fit:plain": fit_in_pieces(list),
    "resnet18-fit:vitals": fit_in_pieces(lambda: [kvision.callbacks.Vitals()]),
    "resnet18-fit:all-vitals": fit_in_pieces(all_vitals),
    "resnet18-fit:rollback": fit_in_pieces(lambda: [kvision.callbacks.Rollback()]),
    "resnet18-fit:vitals-every-step": fit_in_pieces(lambda: [kvision.callbacks.Vitals(every=1)]),
    "resnet18-fit:resume": fit_in_pieces(resume),
}

if __name__ == "__main__":
    harness.serve(CASES)
