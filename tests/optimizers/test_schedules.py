import json
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest

from kvision.optimizers import EveryEpochs, ExponentialCyclical, MultiStep, OneCycle, Triangular, Triangular2
from tests.support import assert_close

ROOT = pathlib.Path(__file__).parent.parent.parent
GOLDEN = ROOT / "tests" / "golden"
ONE_CYCLE = json.loads((GOLDEN / "one_cycle.json").read_text())["cases"]
ADDONS = json.loads((GOLDEN / "addons.json").read_text())["schedules"]
RELATIVE = (1e-5, 0.0)  # the smallest rates count as much as the largest


def rates(schedule, steps):
    return np.array([keras.ops.convert_to_numpy(schedule(step)) for step in steps])


# Slow twins: one step, plain floats, written from the papers.


def one_cycle_twin(step, max_lr, total_steps, pct_start=0.3, div_factor=25.0, final_div_factor=1e4):
    top, low = pct_start * total_steps - 1, max_lr / div_factor
    if step <= top:
        return low + (max_lr - low) * (1 - np.cos(np.pi * step / top)) / 2
    last = low / final_div_factor
    done = min((step - top) / (total_steps - 1 - top), 1)
    return last + (max_lr - last) * (1 + np.cos(np.pi * done)) / 2


def triangular_twin(step, low, high, step_size, height=lambda step, cycle: 1.0):
    cycle, index = divmod(step, 2 * step_size)
    climbed = index / step_size if index <= step_size else 2 - index / step_size
    return low + (high - low) * climbed * height(step, cycle)


def multi_step_twin(step, rate, boundaries, warmup_steps, warmup_factor):
    rate *= 0.1 ** sum(step >= boundary for boundary in boundaries)
    return rate * min(1, warmup_factor + (1 - warmup_factor) * step / warmup_steps)


# name: (schedule, twin, steps at its corners and far out)
ROWS = {
    "one cycle": (
        OneCycle(0.5, 100_000),
        lambda step: one_cycle_twin(step, 0.5, 100_000),
        [0, 1, 15_000, 29_998, 29_999, 30_000, 70_000, 99_998, 99_999, 150_000],
    ),
    "triangular": (
        Triangular(1e-3, 6e-3, 2_000),
        lambda step: triangular_twin(step, 1e-3, 6e-3, 2_000),
        [0, 1, 1_999, 2_000, 2_001, 3_999, 4_000, 4_001, 8_000_000, 8_001_500],
    ),
    "triangular2": (
        Triangular2(1e-3, 6e-3, 7),
        lambda step: triangular_twin(step, 1e-3, 6e-3, 7, lambda step, cycle: 0.5**cycle),
        [0, 1, 6, 7, 8, 13, 14, 15, 20, 21, 22, 27, 28, 35, 70],
    ),
    "exponential cyclical": (
        ExponentialCyclical(1e-3, 6e-3, 2_000),
        lambda step: triangular_twin(step, 1e-3, 6e-3, 2_000, lambda step, cycle: 0.99994**step),
        [0, 1, 2_000, 4_000, 6_000, 98_000, 98_001],
    ),
    "multi-step": (
        MultiStep.times(1),
        lambda step: multi_step_twin(step, 0.02, [60_000, 80_000], 500, 1 / 3),
        [0, 1, 499, 500, 501, 59_999, 60_000, 60_001, 79_999, 80_000, 90_000],
    ),
    "every epochs": (
        EveryEpochs(0.01, steps_per_epoch=123),  # XLA multiplies by 1 / 984, which in float32 is too little
        lambda step: 0.01 * 0.96 ** (step // 984),
        [0, 1, 983, 984, 985, 1_967, 1_968, 5 * 984, 41 * 984 - 1, 41 * 984, 100_000],
    ),
}
each_schedule = pytest.mark.parametrize(("schedule", "twin", "steps"), ROWS.values(), ids=ROWS)


@pytest.mark.parametrize("case", ONE_CYCLE, ids=lambda case: str(case["options"]))
def test_one_cycle_equals_torch(case):
    schedule = OneCycle(**case["options"])
    assert_close(rates(schedule, range(len(case["rates"]))), case["rates"], tolerance=RELATIVE)
    assert_close(schedule(10 * len(case["rates"])), case["rates"][-1], tolerance=RELATIVE)


@pytest.mark.parity
def test_one_cycle_equals_installed_torch():
    generator = np.random.default_rng(0)
    cases = [
        {
            "max_lr": float(10 ** generator.uniform(-4, 0)),
            "total_steps": int(generator.integers(10, 120)),
            "pct_start": float(generator.uniform(0.0, 0.5)),
            "div_factor": float(generator.uniform(1, 100)),
            "final_div_factor": float(10 ** generator.uniform(0, 5)),
            "anneal_strategy": strategy,
            "three_phase": three_phase,
        }
        for strategy in ("cos", "linear")
        for three_phase in (False, True)
        for _ in range(20)
    ]
    script = (
        "import json, sys; from tools.golden_one_cycle import torch_rates\n"
        "json.dump([torch_rates(case) for case in json.load(sys.stdin)], sys.stdout)"
    )  # in a process of its own: torch's optimizers load triton, which crashes beside TensorFlow
    ran = subprocess.run(
        [sys.executable, "-c", script], input=json.dumps(cases), cwd=ROOT, capture_output=True, text=True, check=True
    )
    for case, want in zip(cases, json.loads(ran.stdout), strict=True):
        assert_close(rates(OneCycle(**case), range(case["total_steps"])), want, tolerance=RELATIVE)


@pytest.mark.parametrize("schedule", [Triangular, Triangular2, ExponentialCyclical])
def test_cyclical_rates_equal_tensorflow_addons(schedule):
    case = ADDONS[schedule.__name__]
    assert_close(rates(schedule(**case["arguments"]), case["steps"]), case["rates"])


@each_schedule
def test_equals_its_closed_form(schedule, twin, steps):
    assert_close(rates(schedule, steps), [twin(step) for step in steps], tolerance=RELATIVE)
    assert_close(schedule(np.array(steps)), [twin(step) for step in steps], tolerance=RELATIVE)


@each_schedule
def test_step_may_be_a_number_an_array_or_a_variable(schedule, twin, steps):
    for step in (steps[1], float(steps[1]), np.int64(steps[1]), keras.Variable(steps[1], dtype="int")):
        assert_close(schedule(step), twin(steps[1]), tolerance=RELATIVE)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
@each_schedule
def test_rate_is_float32(schedule, twin, steps, policy):
    keras.mixed_precision.set_dtype_policy(policy)
    assert keras.backend.standardize_dtype(schedule(5).dtype) == "float32"


@each_schedule
def test_drives_an_optimizer_under_jit(schedule, twin, steps):
    """With a gradient of 1 the weight falls by the rate of each step."""
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")])
    model.compile(keras.optimizers.SGD(schedule), loss=lambda y_true, y_pred: y_pred, jit_compile=True)
    for step in steps:
        model.optimizer.iterations.assign(step)
        model.layers[0].kernel.assign([[0.0]])
        model.train_on_batch(np.ones((2, 1)), np.zeros((2, 1)))
        assert_close(model.layers[0].kernel + 0, [[-twin(step)]], tolerance=RELATIVE)


@each_schedule
def test_config_round_trip(schedule, twin, steps):
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(schedule)))
    again = keras.saving.deserialize_keras_object(config)
    assert type(again) is type(schedule)
    assert again.get_config() == schedule.get_config()
    optimizer = keras.optimizers.deserialize(keras.optimizers.serialize(keras.optimizers.SGD(schedule)))
    assert_close(optimizer.learning_rate, twin(0), tolerance=RELATIVE)


def test_every_argument_is_in_the_config():
    options = {"pct_start": 0.4, "anneal_strategy": "linear", "div_factor": 3.0, "final_div_factor": 7.0}
    for schedule in (
        OneCycle(0.1, 10, three_phase=True, **options),
        ExponentialCyclical(0.1, 0.2, 3, gamma=0.5),
        MultiStep(0.1, (3, 5), factor=0.3, warmup_steps=2, warmup_factor=0.7),
        EveryEpochs(0.1, 2, epochs=3, factor=0.5),
    ):
        again = type(schedule).from_config(schedule.get_config())
        assert_close(rates(again, range(12)), rates(schedule, range(12)))


@pytest.mark.parametrize(
    ("times", "boundaries"),
    [  # 1x … 3x: STEPS of Detectron's published configurations; the others: 90k a time, last 60k and 20k
        (1, [60_000, 80_000]),
        (2, [120_000, 160_000]),
        (3, [210_000, 250_000]),
        (6, [480_000, 520_000]),
        (9, [750_000, 790_000]),
    ],
)
def test_detection_schedules(times, boundaries):
    schedule = MultiStep.times(times)
    assert schedule.boundaries == boundaries
    assert (schedule.initial_learning_rate, schedule.warmup_steps, schedule.warmup_factor) == (0.02, 500, 1 / 3)


def test_a_stretched_schedule_has_the_same_shape():
    short, whole = MultiStep.times(2, stretch=0.01), MultiStep.times(2)
    steps = np.array([0, 2, 5, 600, 1_199, 1_200, 1_599, 1_600])
    assert_close(rates(short, steps), rates(whole, steps * 100))


def test_four_percent_every_eight_epochs_is_a_staircase_of_keras():
    ours = EveryEpochs(0.3, steps_per_epoch=5)
    keras_own = keras.optimizers.schedules.ExponentialDecay(0.3, 40, 0.96, staircase=True)
    steps = [0, 39, 40, 41, 79, 80, 400, 1_000]
    assert_close(rates(ours, steps), rates(keras_own, steps))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OneCycle(0.0, 10), "`max_lr` must be greater than 0; got 0.0"),
        (lambda: OneCycle(0.1, 1), "`total_steps` must be 2 or more; got 1"),
        (lambda: OneCycle(0.1, 10, pct_start=1.5), "got 1.5"),
        (lambda: OneCycle(0.1, 10, pct_start=0.6, three_phase=True), r"in \[0, 0.5\].*got 0.6"),
        (lambda: OneCycle(0.1, 10, anneal_strategy="cosine"), "anneal_strategy: got 'cosine'.*'cos', 'linear'"),
        (lambda: Triangular(0.2, 0.1, 10), "got 0.2 and 0.1"),
        (lambda: Triangular(0.1, 0.2, 0), "`step_size` must be greater than 0; got 0"),
        (lambda: ExponentialCyclical(0.1, 0.2, 5, gamma=1.1), r"\(0, 1\]; got 1.1"),
        (lambda: MultiStep(0.1, [5, 3]), r"must ascend; got \[5, 3\]"),
        (lambda: MultiStep(0.1, [5], warmup_steps=-1), "0 or more; got -1"),
        (lambda: MultiStep.times(1.5), "got 1.5. Scale with `stretch`"),
        (lambda: EveryEpochs(0.1, 0), "`steps_per_epoch` must be greater than 0; got 0"),
    ],
)
def test_wrong_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
