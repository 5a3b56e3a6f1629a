"""Golden numbers of tensorflow-addons 0.23, whose pieces cannot be imported beside Keras 3.

    python3.11 tools/golden_addons.py [--environment DIRECTORY] [--output tests/golden/addons.json]

Makes a virtual environment (Python 3.11, 1.3 GB, under a minute), runs every case in it, and writes inputs and outputs
as JSON, so that tests compare with them and need no such environment. Without `--environment` it is temporary. A new
case is one function below, with its name in `CASES`.
"""

import argparse
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile

REQUIREMENTS = ["tensorflow-cpu==2.15.*", "tensorflow-addons==0.23.0"]
OUTPUT = pathlib.Path(__file__).parent.parent / "tests" / "golden" / "addons.json"


def schedules(np, tf, tfa):
    """Cyclical rates at steps around every corner of the first cycles."""
    steps = [0, 1, 3, 4, 5, 7, 8, 9, 12, 13, 16, 20, 24, 31, 32, 33, 40, 400, 4_003]
    bounds = {"initial_learning_rate": 1e-4, "maximal_learning_rate": 1e-2, "step_size": 4}
    cases = {
        "Triangular": (tfa.optimizers.TriangularCyclicalLearningRate, bounds),
        "Triangular2": (tfa.optimizers.Triangular2CyclicalLearningRate, bounds),
        "ExponentialCyclical": (tfa.optimizers.ExponentialCyclicalLearningRate, {**bounds, "gamma": 0.994}),
    }
    return {
        name: {
            "arguments": arguments,
            "steps": steps,
            "rates": [float(schedule(**arguments)(tf.constant(step, "float32"))) for step in steps],
        }
        for name, (schedule, arguments) in cases.items()
    }


def giou_loss(np, tf, tfa):
    """GIoU of pairs of boxes (y_min, x_min, y_max, x_max): equal, inside, overlapping, touching, disjoint, empty."""
    target = [
        [4, 3, 7, 5],
        [5, 6, 10, 7],
        [0, 0, 8, 8],
        [0, 0, 4, 4],
        [0, 0, 4, 4],
        [1, 1, 2, 9],
        [2, 2, 6, 6],
        [3] * 4,
    ]
    output = [
        [3, 4, 6, 8],
        [14, 14, 15, 15],
        [0, 0, 8, 8],
        [1, 1, 3, 3],
        [0, 4, 4, 8],
        [5, 1.5, 9, 2],
        [2, 2, 6, 2],
        [3] * 4,
    ]
    target, output = np.array(target, "float32"), np.array(output, "float32")
    return {
        "box_format": "yxyx",
        "target": target,
        "output": output,
        "giou_loss": tfa.losses.giou_loss(target, output),
        "iou_loss": tfa.losses.giou_loss(target, output, mode="iou"),
    }


def spatial_pyramid_pooling(np, tf, tfa):
    """Sides that every bin divides; tensorflow-addons crops what overflows, the paper does not."""
    inputs = np.random.default_rng(0).normal(size=(2, 8, 12, 3)).astype("float32")
    bins = [1, 2, 4]
    return {"bins": bins, "inputs": inputs, "outputs": tfa.layers.SpatialPyramidPooling2D(bins)(inputs)}


def weight_normalization(np, tf, tfa):
    """Weights before the first call, and weights and outputs after it, with and without data-dependent start."""
    generator = np.random.default_rng(1)
    cases = {}
    for name, make, kernel_shape, input_shape in [
        ("Dense", lambda: tf.keras.layers.Dense(4), (5, 4), (6, 5)),
        ("Conv2D", lambda: tf.keras.layers.Conv2D(3, 2, strides=2, padding="same"), (2, 2, 2, 3), (2, 5, 5, 2)),
    ]:
        kernel = generator.normal(size=kernel_shape).astype("float32")
        inputs = generator.normal(size=input_shape).astype("float32")
        for data_init in (False, True):
            inner = make()
            inner.build(input_shape)
            inner.set_weights([kernel, np.zeros(kernel_shape[-1], "float32")])
            layer = tfa.layers.WeightNormalization(inner, data_init=data_init)
            outputs = layer(inputs)
            cases[f"{name}, data_init={data_init}"] = {
                "kernel": kernel,
                "inputs": inputs,
                "outputs": outputs,
                "g": layer.g,
                "bias": inner.bias,
            }
    return cases


def filter_response_normalization(np, tf, tfa):
    """The normalization alone, and followed by the thresholded linear unit, `TLU`, with one threshold a channel."""
    generator = np.random.default_rng(2)
    inputs = generator.normal(size=(2, 4, 5, 3)).astype("float32") * np.array([1, 1e-3, 10], "float32")
    gamma, beta, tau = (generator.normal(size=3).astype("float32") for _ in range(3))
    result = {"inputs": inputs, "gamma": gamma, "beta": beta, "tau": tau, "epsilon": 1e-6}
    layer = tfa.layers.FilterResponseNormalization()
    layer.build(inputs.shape)
    layer.set_weights([weight.reshape(1, 1, 1, 3) for weight in (gamma, beta)])
    result["outputs"] = layer(inputs)
    unit = tfa.layers.TLU()
    unit.build(inputs.shape)
    unit.set_weights([np.broadcast_to(tau, unit.tau.shape)])
    result["outputs_thresholded"] = unit(result["outputs"])
    return result


def maxout(np, tf, tfa):
    """Of n features, unit j is the largest of features j, j + units, j + 2·units, …"""
    inputs = np.random.default_rng(3).normal(size=(2, 3, 6)).astype("float32")
    return {"inputs": inputs, **{f"units={units}": tfa.layers.Maxout(units)(inputs) for units in (1, 2, 3)}}


CASES = [schedules, giou_loss, spatial_pyramid_pooling, weight_normalization, filter_response_normalization, maxout]


def plain(value):
    """Arrays and tensors as nested lists of numbers that read back to the same float32."""
    import numpy as np

    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    if isinstance(value, (str, list, int, float)):
        return value
    value = np.asarray(value)
    return [plain(each) for each in value] if value.ndim else float(str(value))


def run_cases(output):
    """Run inside the environment of its own."""
    import numpy as np
    import tensorflow as tf
    import tensorflow_addons as tfa

    names = ("tensorflow-addons", "tensorflow-cpu", "keras", "numpy")
    versions = {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}
    golden = {"made_by": "tools/golden_addons.py", "versions": versions}
    golden.update({case.__name__: plain(case(np, tf, tfa)) for case in CASES})
    rows = ",\n".join(f'  "{name}": {json.dumps(value)}' for name, value in golden.items())
    output.write_text("{\n" + rows + "\n}\n")
    print(f"{output}: {output.stat().st_size} bytes")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environment", type=pathlib.Path, help="where the virtual environment is kept, or found")
    parser.add_argument("--output", type=pathlib.Path, default=OUTPUT)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        return run_cases(arguments.output)
    with tempfile.TemporaryDirectory() as temporary:
        environment = arguments.environment or pathlib.Path(temporary)
        python = environment / "bin" / "python"
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", environment], check=True)
            subprocess.run([python, "-m", "pip", "install", "--quiet", *REQUIREMENTS], check=True)
        quiet = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
        command = [python, __file__, "--inside", "--output", arguments.output.resolve()]
        subprocess.run(command, check=True, env=quiet)
    return None


if __name__ == "__main__":
    main()
