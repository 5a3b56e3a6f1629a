"""The seam to private Keras: what it stands on is still there, and nothing else in the package reaches past it."""

import ast
import pathlib
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from kvision import _keras

ROOT = pathlib.Path(__file__).parent.parent / "kvision"
SEAM = ROOT / "_keras.py"


def network():
    inputs = keras.Input((4,), name="inputs")
    inner = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="deep")], name="inner")
    outputs = inner(keras.layers.Dense(3, name="hidden")(inputs))
    return keras.Model(inputs, [outputs, inner(keras.layers.Dense(3)(inputs))])


def built(optimizer, variables):
    optimizer.build(variables)
    return optimizer


def prints_a_line(capsys):
    _keras.print_message("a line")
    return capsys.readouterr().out == "a line\n"


def lists_nested_layers(capsys):
    layers = [layer.name for layer in _keras.layers_of(network())]
    return {"hidden", "inner", "deep"} <= set(layers) and len(layers) == len(set(layers))


def lists_the_layer_itself(capsys):
    model = network()
    return model in _keras.layers_of(model, include_self=True) and model not in _keras.layers_of(model)


def lists_own_variables(capsys):
    layer = keras.layers.BatchNormalization()
    layer.build((None, 3))
    names = [variable.name for variable in _keras.own_variables(layer)]
    return names == ["gamma", "beta", "moving_mean", "moving_variance"] and not _keras.own_variables(network())


def opens_a_sequential_model(capsys):
    model = network()
    return [type(layer).__name__ for layer in _keras.graph_of(model.get_layer("inner")).operations] == [
        "InputLayer",
        "Dense",
    ] and _keras.graph_of(model) is model


def lists_the_children(capsys):
    model = network()
    names = [[child.name for child in _keras.children_of(owner)] for owner in (model, model.get_layer("inner"))]
    cell = keras.layers.RNN(keras.layers.SimpleRNNCell(2, name="cell"))
    return {"hidden", "inner"} <= set(names[0]) and "deep" in names[1] and _keras.children_of(cell)[0].name == "cell"


def walks_the_graph_back(capsys):
    model = network()
    (node,) = _keras.inbound_nodes(model.get_layer("hidden"))
    return [_keras.producer(tensor).name for tensor in node.input_tensors] == ["inputs"]


def gives_the_call_of_a_tensor(capsys):
    model = network()
    first, second = (_keras.call_of(tensor) for tensor in model.outputs)
    names = [[_keras.producer(tensor).name for tensor in given] for _, given in (first, second)]
    return first[0] is second[0] and names[0] == ["hidden"] != names[1]


def lists_the_calls(capsys):
    model = network()
    calls = list(_keras.calls_of(model))
    seen = {id(tensor) for tensor in model.inputs}
    for _, inputs, outputs in calls:
        if not {id(tensor) for tensor in inputs} <= seen:
            return False
        seen |= {id(tensor) for tensor in outputs}
    names = [operation.name for operation, _, _ in calls]
    return names.count("inner") == 2 and len(names) == 4 and {id(tensor) for tensor in model.outputs} <= seen


def gives_the_compiled_loss(capsys):
    model = network()
    model.compile("sgd", ["mse", "mae"])
    loss = _keras.compiled_loss(model, [np.zeros((1, 2))] * 2, [np.full((1, 2), 3.0)] * 2)
    return float(loss) == 12


def computes_the_loss_of_a_step(capsys):
    model = network()
    model.compile("sgd", ["mse", "mae"])
    x, y, outputs = np.zeros((1, 4)), [np.zeros((1, 2))] * 2, [np.full((1, 2), 3.0)] * 2
    return float(_keras.step_loss(model, x, y, outputs)) == 12


def gives_the_step_its_own_loss(capsys):
    """The mean that a step updates with the loss of its batch, whose attribute may be replaced meanwhile."""
    model, seen = network(), []
    model.compile("sgd", ["mse", "mse"], run_eagerly=keras.backend.backend() == "tensorflow")
    update = _keras.loss_mean(model).update_state

    def update_state(loss, *args, **kwargs):
        seen.append(loss)
        return update(loss, *args, **kwargs)

    with _keras.replaced([(_keras.loss_mean(model), "update_state", update_state)]):
        model.fit(np.zeros((4, 4)), [np.zeros((4, 2))] * 2, verbose=0)
    return len(seen) == 1 and "update_state" not in vars(_keras.loss_mean(model))


def finds_what_a_forward_pass_changes(capsys):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, trainable=False)])
    model.add(keras.layers.BatchNormalization())
    model.add(keras.layers.Dropout(0.5))
    names = [variable.name for variable in _keras.forward_variables(model)]
    return names[:2] == ["moving_mean", "moving_variance"] and len(names) == 3


def gives_the_loss_weights(capsys):
    model = network()
    model.compile("sgd", ["mse", "mae"], loss_weights=[2.0, 3.0])
    return list(_keras.loss_weights(model)) == [2.0, 3.0]


def counts_calls_not_steps(capsys):
    weight = keras.Variable([1.0])
    optimizer = built(keras.optimizers.SGD(gradient_accumulation_steps=2), [weight])
    for _ in range(3):
        optimizer.apply([keras.ops.ones(1)], [weight])
    return int(_keras.calls_variable(optimizer)) == 3 and int(optimizer.iterations) == 1


def knows_what_it_was_built_for(capsys):
    weights = [keras.Variable([1.0]), keras.Variable([2.0])]
    optimizer = built(keras.optimizers.SGD(momentum=0.9), weights)
    known = _keras.optimized_variables(optimizer)
    return [known[0] is weights[0], known[1] is weights[1], len(known)] == [True, True, 2]


def finds_the_slot_of_a_variable(capsys):
    weights = [keras.Variable([1.0]), keras.Variable([2.0, 2.0])]
    optimizer = built(keras.optimizers.SGD(momentum=0.9), weights)
    return optimizer.momentums[_keras.variable_index(optimizer, weights[1])].shape == (2,)


def holds_the_accumulated_gradient(capsys):
    weights = [keras.Variable([1.0]), keras.Variable([2.0])]
    optimizer = built(keras.optimizers.SGD(gradient_accumulation_steps=3), weights)
    optimizer.apply([keras.ops.ones(1), keras.ops.full((1,), 5.0)], weights)
    return float(_keras.accumulated_gradient(optimizer, weights[1])[0]) == 5


def gives_the_schedule(capsys):
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 1, 0.5)
    found = [_keras.learning_rate_schedule(keras.optimizers.SGD(rate)) for rate in (schedule, 0.1, lambda: 0.1)]
    return found == [schedule, None, None]


def finds_the_moments(capsys):
    weights = [keras.Variable([1.0]), keras.Variable([2.0])]
    optimizer = built(keras.optimizers.AdamW(beta_1=0.5, beta_2=0.75), weights)
    optimizer.apply([keras.ops.ones(1), keras.ops.full((1,), 4.0)], weights)
    return [float(moment[0]) for moment in _keras.adam_moments(optimizer, weights[1])] == [2.0, 4.0]


def scales_the_decay(capsys):
    class Scaled(_keras.ScaledDecay, keras.optimizers.SGD):
        def rate_factor(self, variable):
            return 0.5

    weight = keras.Variable([1.0])
    built(Scaled(1.0, weight_decay=0.5), [weight]).apply([keras.ops.zeros(1)], [weight])
    return float(weight[0]) == 0.75


def stops_before_the_averages(capsys):
    weight, seen = keras.Variable([1.0]), []
    optimizer = built(keras.optimizers.SGD(1.0, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=2), [weight])
    owner, name, value = _keras.before_averaging(optimizer, lambda: seen.append(float(weight[0])))
    setattr(owner, name, value)
    for _ in range(2):
        optimizer.apply([keras.ops.ones(1)], [weight])
    return seen == [0.0, -1.0] and float(weight[0]) == -0.5


def knows_what_is_traced(capsys):
    """Only TensorFlow fixes the weights; JAX takes them with each call."""
    model = network()
    model.compile("sgd", ["mse", "mse"])
    model.make_train_function()
    before = _keras.is_traced(model.train_function)
    model.fit(np.zeros((4, 4)), [np.zeros((4, 2))] * 2, verbose=0)
    return (before, _keras.is_traced(model.train_function)) == (False, keras.backend.backend() == "tensorflow")


def builds_the_compiled_metrics(capsys):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.compile("sgd", "mse", metrics=["accuracy"])
    for _ in range(2):
        _keras.build_compiled_metrics(model, np.zeros((2, 1), "int32"), keras.KerasTensor((None, 3)))
    return [type(metric).__name__ for metric in model._compile_metrics.metrics] == ["SparseCategoricalAccuracy"]


def clones_by_running_the_graph(capsys):
    """`kvision.network.Network` overrides it, so that a clone carries what its model did."""
    runs = []

    class Watched(keras.Model):
        def _run_through_graph(self, *args, **options):
            runs.append(self.name)
            return super()._run_through_graph(*args, **options)

    inputs = keras.Input((4,))
    model = Watched(inputs, keras.layers.Dense(2)(inputs), name="watched")
    return isinstance(keras.models.clone_model(model), Watched) and runs == ["watched"]


def remembers_where_downloads_lie(capsys):
    """Tests of published weights set it, since Keras reads its environment variable once."""
    return _keras.keras_home() == keras.src.backend.config._KERAS_DIR


def finds_the_global_seed(capsys):
    keras.random.normal((1,))
    before = np.asarray(_keras.global_seed_variable())
    drawn = np.asarray(keras.random.normal((3,)))
    _keras.global_seed_variable().assign(before)
    return np.array_equal(drawn, np.asarray(keras.random.normal((3,))))


class Within(keras.callbacks.Callback):
    """Calls `look()` when a fit begins, and notes which epochs it has."""

    def __init__(self, look=lambda callback: None):
        super().__init__()
        self.look = look
        self.found, self.epochs = None, []

    def on_train_begin(self, logs=None):
        self.found = self.look(self)

    def on_epoch_begin(self, epoch, logs=None):
        self.epochs.append(epoch)


def fit_with(*callbacks):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", metrics=["mae"])
    model.fit(np.zeros((4, 4)), np.zeros((4, 1)), callbacks=list(callbacks), epochs=3, verbose=0)
    return model


def starts_a_fit_later_once(capsys):
    later = Within(lambda callback: _keras.start_fit_at(callback.model, 2))
    model = fit_with(later)
    _keras.start_fit_at(model, None)
    anew = Within()
    model.fit(np.zeros((4, 4)), np.zeros((4, 1)), callbacks=[anew], epochs=3, verbose=0)
    return (later.epochs, anew.epochs) == ([2], [0, 1, 2])


def finds_the_other_callbacks(capsys):
    one, other = Within(_keras.callback_list), Within()
    fit_with(one, other)
    return [other in one.found.callbacks, _keras.callback_list(one)] == [True, None]


def finds_the_input_of_fit(capsys):
    one = Within(lambda callback: _keras.fit_input(_keras.callback_list(callback)))
    two = Within(lambda callback: _keras.fit_of(_keras.callback_list(callback), sys._getframe(0))["epochs"])
    fit_with(one, two)
    return one.found.shape == (4, 4) and two.found == 3


def builds_for_a_batch(capsys):
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile("sgd", "mse", metrics=["mae"])
    _keras.build_for(model, (keras.KerasTensor((None, 4)), keras.KerasTensor((None, 1))))
    paths = {variable.path for variable in model.metrics_variables}
    return model.built and {"mean_absolute_error/total", "loss/total"} <= paths


def knows_what_callbacks_remember(capsys):
    callbacks = keras.callbacks
    made = [callbacks.EarlyStopping("loss"), callbacks.ReduceLROnPlateau("loss"), callbacks.History()]
    made += [callbacks.ModelCheckpoint("x.keras", save_best_only=True), callbacks.SwapEMAWeights()]
    fit_with(*made[:3])
    return all(set(_keras.callback_memory(each)) <= vars(each).keys() and _keras.callback_memory(each) for each in made)


def tells_that_more_of_a_metric_is_better(capsys):
    metric = keras.metrics.MeanMetricWrapper(lambda y, predicted: predicted, name="score")
    _keras.more_is_better(metric)
    stopping = keras.callbacks.EarlyStopping("score")
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile("sgd", "mse", metrics=[metric])
    model.fit(np.ones((2, 4)), np.ones((2, 1)), verbose=0, callbacks=[stopping])
    return bool(stopping.monitor_op(2.0, 1.0))


def tells_that_less_of_a_metric_is_better(capsys):
    metric = keras.metrics.MeanMetricWrapper(lambda y, predicted: predicted, name="score")
    _keras.less_is_better(metric)
    stopping = keras.callbacks.EarlyStopping("score")
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile("sgd", "mse", metrics=[metric])
    model.fit(np.ones((2, 4)), np.ones((2, 1)), verbose=0, callbacks=[stopping])
    return bool(stopping.monitor_op(1.0, 2.0))


def forgets_variables_without_memory(capsys):
    with _keras.shapes_only():
        never = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    with keras.StatelessScope():
        later = keras.Variable(initializer="ones", shape=(2,))
    shapes = [weight.shape for weight in never.weights]
    return shapes == [(4, 3), (3,)] and [w._value for w in never.weights] == [None, None] and later._value is not None


def saves_and_loads_by_groups(capsys):
    model, other = network(), network()
    groups, names = _keras.saved_state(model)
    kernels = {names[group]: values["0"] for group, values in groups.items() if values}
    _keras.load_state(
        other, {group: {key: np.ones(v.shape) for key, v in values.items()} for group, values in groups.items()}
    )
    is_loaded = all(np.all(np.asarray(weight) == 1) for weight in other.weights)
    return is_loaded and kernels["deep"] is model.get_layer("inner").get_layer("deep").kernel


class Twice(_keras.DataLayer):
    """Doubles on whatever backend it runs, and notes where."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def call(self, inputs):
        self.seen.append((_keras.is_called_alone(self), _keras.in_tensorflow_graph()))
        return self.backend.numpy.multiply(inputs, 2.0)


def runs_in_a_pipeline_and_knows_where(capsys):
    layer = Twice()
    (doubled,) = tf.data.Dataset.from_tensors(np.ones((1, 2), "float32")).map(layer)
    in_pipeline = layer.seen[-1]
    layer(np.ones((1, 2)))
    alone = layer.seen[-1]
    model = keras.Sequential([keras.Input((2,)), layer])
    model.predict(np.ones((1, 2)), verbose=0)
    is_graph = keras.backend.backend() == "tensorflow"
    return doubled.numpy().tolist() == [[2.0, 2.0]] and [in_pipeline, alone, layer.seen[-1]] == [
        (True, True),
        (True, False),
        (False, is_graph),
    ]


def knows_losses_of_labels_by_name(capsys):
    kinds = (keras.losses.SparseCategoricalCrossentropy, keras.losses.CategoricalCrossentropy)
    functions = (keras.losses.sparse_categorical_crossentropy, keras.losses.categorical_crossentropy)
    pairs = (functions, [kind() for kind in kinds], [function.__name__ for function in functions])
    return all(_keras.is_sparse_loss(yes) and not _keras.is_sparse_loss(no) for yes, no in pairs)


def reads_arrays_untuned(capsys):
    """Keras's pipeline of arrays, in `fit` as elsewhere; a data set that was given stays as it is."""
    if keras.backend.backend() != "tensorflow":
        return True

    class Untuned(keras.Model):
        @property
        def distribute_strategy(self):
            return _keras.reading_arrays_untuned(self, super().distribute_strategy)

    inputs = keras.Input((4,))
    model, read = Untuned(inputs, keras.layers.Dense(2)(inputs)), []
    model.compile("sgd", "mse")
    x, y, strategy = np.zeros((4, 4), "float32"), np.zeros((4, 2), "float32"), tf.distribute.get_strategy()
    given, chosen = tf.data.Dataset.from_tensors((x, y)), tf.data.Options()
    chosen.experimental_optimization.apply_default_optimizations = False
    chosen.autotune.enabled = True
    with _keras.replaced([(strategy, "experimental_distribute_dataset", lambda data: read.append(data) or data)]):
        model.fit(x, y, validation_data=(x, y), verbose=0)
        model.predict(x, verbose=0)
        model.fit(given, shuffle=False, verbose=0)
        model.evaluate(given.with_options(chosen), verbose=0)
    return [data.options().autotune.enabled for data in read] == [False] * 3 + [None, True]


# What Keras does not make public, and a function that is true while it is as the package needs it.
PRIVATE = {
    "keras.src.utils.io_utils.print_msg": prints_a_line,
    "Layer._flatten_layers": lists_nested_layers,
    "Layer._flatten_layers(include_self)": lists_the_layer_itself,
    "Layer._trainable_variables and Layer._non_trainable_variables": lists_own_variables,
    "Layer._layers and Function.operations": lists_the_children,
    "Sequential._functional": opens_a_sequential_model,
    "Operation._inbound_nodes and KerasTensor._keras_history": walks_the_graph_back,
    "KerasTensor._keras_history.node_index": gives_the_call_of_a_tensor,
    "Function._nodes_by_depth": lists_the_calls,
    "Model._compile_loss": gives_the_compiled_loss,
    "Model._compute_loss": computes_the_loss_of_a_step,
    "Model._loss_tracker": gives_the_step_its_own_loss,
    "Layer._trainable_variables of all layers": finds_what_a_forward_pass_changes,
    "Model._compile_loss._user_loss_weights": gives_the_loss_weights,
    "names of the losses": knows_losses_of_labels_by_name,
    "Model._distribute_strategy and the options of its arrays": reads_arrays_untuned,
    "Optimizer._iterations": counts_calls_not_steps,
    "Optimizer._trainable_variables": knows_what_it_was_built_for,
    "Optimizer._get_variable_index": finds_the_slot_of_a_variable,
    "Optimizer._accumulated_gradients": holds_the_accumulated_gradient,
    "Adam._momentums and Adam._velocities": finds_the_moments,
    "Optimizer._apply_weight_decay": scales_the_decay,
    "Optimizer._learning_rate": gives_the_schedule,
    "Optimizer._update_model_variables_moving_average": stops_before_the_averages,
    "Model._compile_metrics": builds_the_compiled_metrics,
    "Model.make_train_function": knows_what_is_traced,
    "keras.src.random.seed_generator.GLOBAL_SEED_GENERATOR": finds_the_global_seed,
    "keras.src.backend.config._KERAS_DIR": remembers_where_downloads_lie,
    "Model._initial_epoch": starts_a_fit_later_once,
    "CallbackList.callbacks": finds_the_other_callbacks,
    "the variables x and callbacks of Model.fit": finds_the_input_of_fit,
    "Model._symbolic_build": builds_for_a_batch,
    "the memory of EarlyStopping, ReduceLROnPlateau and others": knows_what_callbacks_remember,
    "the global attribute uninitialized_variables": forgets_variables_without_memory,
    "Metric._direction": tells_that_more_of_a_metric_is_better,
    "Metric._direction, down": tells_that_less_of_a_metric_is_better,
    "DataLayer, CallContext.entry_layer, in_tf_graph and in_stateless_scope": runs_in_a_pipeline_and_knows_where,
    "keras.src.saving.saving_lib._save_state, _load_state and H5IOStore": saves_and_loads_by_groups,
}


@pytest.mark.parametrize("attribute", PRIVATE)
def test_keras_still_has(attribute, capsys):
    try:
        holds = PRIVATE[attribute](capsys)
    except (AttributeError, TypeError, ValueError) as error:
        pytest.fail(f"Keras {keras.__version__} has changed {attribute}: mend kvision/_keras.py ({error})")
    assert holds, f"Keras {keras.__version__} has changed the meaning of {attribute}: mend kvision/_keras.py"


def test_every_function_of_the_seam_is_tried():
    functions = {node.name for node in ast.parse(SEAM.read_text()).body if isinstance(node, ast.FunctionDef)}
    tried = {
        node.attr
        for node in ast.walk(ast.parse(pathlib.Path(__file__).read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "_keras"
    }
    assert functions <= tried


# The law: what the package reads of others is public, but for what the package itself defines.


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


def defined_in(tree):
    """Every private name that a file defines: functions, classes, variables, attributes it assigns."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


def reaches_past(tree, ours):
    """Line and text of what a file reads of `keras.src` or of private attributes that are not in `ours`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            if any(name.split(".")[:2] == ["keras", "src"] for name in names):
                yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.Attribute):
            if node.attr == "src" and ast.unparse(node) == "keras.src":
                yield node.lineno, ast.unparse(node)
            if is_private(node.attr) and isinstance(node.ctx, ast.Load) and node.attr not in ours:
                yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr", "setattr"):
            name = node.args[1].value if isinstance(node.args[1], ast.Constant) else ""
            if is_private(name) and name not in ours:
                yield node.lineno, ast.unparse(node)


FILES = sorted(path for path in ROOT.rglob("*.py") if path != SEAM)
OF_NAMED_TUPLES = {"_replace"}  # public by Python's documentation
OURS = OF_NAMED_TUPLES | {
    name for path in FILES for name in defined_in(ast.parse(path.read_text())) if is_private(name)
}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_the_seam_knows_private_keras(path):
    assert list(reaches_past(ast.parse(path.read_text()), OURS)) == []


@pytest.mark.parametrize(
    "line",
    [
        "from keras.src.utils.io_utils import print_msg",
        "import keras.src.backend",
        "keras.src.backend.config",
        "layers = model._flatten_layers()",
        "loss = self._compile_loss(y, outputs)",
        "tensor = getattr(layer, '_inbound_nodes')",
    ],
)
def test_the_law_sees(line):
    assert list(reaches_past(ast.parse(line), OURS))
