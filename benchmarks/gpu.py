"""What a card of yours does with kvision: `make gpu`.

Runs the numeric tests with the card visible, trains every tiny network a few steps under `mixed_float16`, times the
training steps of the benchmark, and prints one table. The machine kvision is made on has no card: this file is tested
on the CPU (`--cpu`), its numbers on a card are yours to see. Please report what you find.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

NUMERIC_TESTS = ("tests/ops", "tests/layers", "tests/losses", "tests/applications")
STEPS = ("resnet50:float32", "resnet50:mixed_float16", "resnet50-group:mixed_float16", "vgg16:mixed_float16")


def main():
    options = arguments()
    if not options.cpu:
        os.environ |= {"BENCH_GPU": "1", "KVISION_TEST_GPU": "1"}
    import harness

    tf = harness.tensorflow()
    cards = tf.config.list_physical_devices("GPU")
    if not cards and not options.cpu:
        raise SystemExit(
            "No GPU is visible to TensorFlow. Install the extra: pip install 'kvision[gpu]', and see that nvidia-smi "
            "lists your card; or look at what would run: python benchmarks/gpu.py --cpu"
        )
    names = [tf.config.experimental.get_device_details(card).get("device_name", card.name) for card in cards] or ["CPU"]
    rows = [("device", ", ".join(names)), ("TensorFlow", tf.__version__)]
    rows += [*mixed_float16_training(options.networks), *timings(options.cases)]
    if options.tests:
        rows.append(("numeric tests", numeric_tests(options.tests)))
    width = max(len(name) for name, _ in rows)
    print("\n" + "\n".join(f"{name.ljust(width)}  {value}" for name, value in rows))


def mixed_float16_training(networks):
    """Three steps of every tiny network, or of those named: the loss must stay finite."""
    import keras
    import numpy as np

    from tests.applications.classification.rows import ROWS

    keras.mixed_precision.set_dtype_policy("mixed_float16")
    rng = np.random.default_rng(0)
    for row in (row for row in ROWS if networks is None or row.module in networks):
        model = row.tiny(input_shape=row.shape, **row.head)
        model.compile("sgd", "sparse_categorical_crossentropy")
        images = rng.normal(size=(6, *row.shape)).astype("float32")
        losses = model.fit(images, np.arange(6) % 3, batch_size=2, verbose=0).history["loss"]
        yield f"{row.module}, mixed_float16", f"loss {losses[-1]:.3f}" if np.isfinite(losses).all() else "NOT FINITE"
    keras.mixed_precision.set_dtype_policy("float32")


def timings(cases):
    """Median of ten training steps of each case."""
    if not cases:
        return
    from steps_kvision import CASES

    for case in cases:
        step, facts = CASES[case]()
        step()
        times = []
        for _ in range(10):
            start = time.perf_counter()
            step()
            times.append(time.perf_counter() - start)
        median = statistics.median(times)
        speed = f"{facts['images'] / median:.0f} images/s, {facts['flop'] / median / 1e12:.2f} TFLOP/s"
        yield case, f"{1e3 * median:.1f} ms, {speed}"


def numeric_tests(folders):
    """The last line of pytest over the rooms of numbers, with the card visible."""
    marks = "not (parity or jax or real or browser or keras_cv)"
    command = [sys.executable, "-m", "pytest", "-m", marks, *folders]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip().splitlines()[-1]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", action="store_true", help="run the same on the CPU")
    parser.add_argument("--networks", nargs="*", help="files of kvision.applications to train; all of them without")
    parser.add_argument("--cases", nargs="*", default=STEPS, help="training steps to time; none with no names")
    parser.add_argument("--tests", nargs="*", default=NUMERIC_TESTS, help="test folders; none with no names")
    return parser.parse_args()


if __name__ == "__main__":
    main()
