"""The one seam to what Keras does not make public: a release of Keras that moves something is mended here.

`tests/test_keras_seam.py` tries every function on the installed Keras and names what broke; `setup.cfg` bounds the
releases that were tried. Nothing else in the package reaches into `keras.src` or a private attribute of Keras.
"""

import contextlib
import sys

import keras
from keras.src.backend import config
from keras.src.backend.common.global_state import get_global_attribute, set_global_attribute
from keras.src.backend.common.stateless_scope import in_stateless_scope
from keras.src.layers.preprocessing.data_layer import DataLayer as DataLayer  # runs in `tf.data` on every backend
from keras.src.random.seed_generator import GLOBAL_SEED_GENERATOR
from keras.src.saving.saving_lib import H5IOStore, _load_state, _save_state
from keras.src.utils.backend_utils import in_tf_graph
from keras.src.utils.io_utils import print_msg


def print_message(text):
    """Print a line to where Keras prints its progress: the terminal, or the log."""
    print_msg(text)


@contextlib.contextmanager
def replaced(attributes):
    """Instance attributes `(object, name, value)` replaced for a while, past Keras's tracking of attributes."""
    absent = object()
    before = [(vars(owner), name, vars(owner).get(name, absent)) for owner, name, _ in attributes]
    try:
        for owner, name, value in attributes:
            vars(owner)[name] = value
        yield
    finally:
        for namespace, name, value in before:
            if value is absent:
                namespace.pop(name, None)
            else:
                namespace[name] = value


def layers_of(layer, include_self=False):
    """Every layer inside `layer`, at any depth, as a list; one that is used in several places comes once."""
    return list(layer._flatten_layers(include_self=include_self))


def children_of(layer):
    """The layers and operations directly inside `layer`: those of its graph in their order, or its attributes."""
    graph = graph_of(layer)
    return list(getattr(graph, "operations", ())) or list(getattr(graph, "_layers", ()))


def own_variables(layer):
    """The variables a layer holds itself, without those of the layers inside it: trainable ones first."""
    return [*layer._trainable_variables, *layer._non_trainable_variables]


def forward_variables(model):
    """What a forward pass of `model` changes: moving statistics and seeds, and no weights, frozen or not."""
    weights = {id(v) for layer in layers_of(model, include_self=True) for v in layer._trainable_variables}
    return [variable for variable in model.non_trainable_variables if id(variable) not in weights]


def graph_of(model):
    """The functional model inside a sequential one; any other model as it is."""
    return getattr(model, "_functional", None) or model


def inbound_nodes(operation):
    """The calls of `operation` in a functional graph: objects with `input_tensors`."""
    return operation._inbound_nodes


def producer(tensor):
    """The operation of a functional graph whose output `tensor` is."""
    return tensor._keras_history.operation


@contextlib.contextmanager
def shapes_only():
    """Models built inside have variables with shapes and without memory, which they never get.

    After a `StatelessScope` alone Keras holds such variables as not initialized yet, and gives all of them their memory
    at the end of the next scope that does initialize: gigabytes, in the midst of another model's first step.
    """
    before = get_global_attribute(_UNINITIALIZED) or []
    set_global_attribute(_UNINITIALIZED, [])
    try:
        with keras.StatelessScope(initialize_variables=False):
            yield
    finally:
        set_global_attribute(_UNINITIALIZED, before)


_UNINITIALIZED = "uninitialized_variables"


def call_of(tensor):
    """The operation of a functional graph that gave a tensor, and the tensors of that call."""
    history = tensor._keras_history
    return history.operation, list(history.operation._inbound_nodes[history.node_index].input_tensors)


def calls_of(graph):
    """`(operation, input tensors, output tensors)` of every call in a functional graph, in the order of a run."""
    for _, nodes in sorted(graph._nodes_by_depth.items(), reverse=True):
        for node in nodes:
            if not node.is_input:
                yield node.operation, list(node.input_tensors), list(node.outputs)


def compiled_loss(model, y, outputs, sample_weight=None):
    """The loss given to `compile`, of one batch, without the regularisation losses of the layers."""
    return model._compile_loss(y, outputs, sample_weight)


def step_loss(model, x, y, outputs, sample_weight=None):
    """The whole loss of one batch in training, as Keras's training step computes it."""
    return model._compute_loss(x=x, y=y, y_pred=outputs, sample_weight=sample_weight, training=True)


def loss_mean(model):
    """The metric whose `update_state` a training step of Keras gives the loss of its batch; None before `compile`."""
    return model._loss_tracker


def loss_weights(model):
    """The `loss_weights` given to `compile`, as they were given; None where there are none."""
    return model._compile_loss._user_loss_weights


class _Untuned:
    """A strategy of `tf.distribute` that reads Keras's pipeline of arrays without tuning it as it runs."""

    def __init__(self, strategy):
        self._strategy = strategy

    def __getattr__(self, name):
        return getattr(self._strategy, name)

    def experimental_distribute_dataset(self, dataset):
        options = dataset.options()
        # By these Keras's arrays are told from data sets that were given, which stay as they are.
        if options.autotune.enabled is None and options.experimental_optimization.apply_default_optimizations is False:
            untuned = type(options)()  # those of a data set are frozen; new ones are merged with them
            untuned.autotune.enabled = False
            dataset = dataset.with_options(untuned)
        return self._strategy.experimental_distribute_dataset(dataset)


def reading_arrays_untuned(model, strategy):
    """The strategy of a model on TensorFlow such that an epoch over arrays ends with its last step.

    What tunes a pipeline of `tf.data` wakes 10, 30, 70, 150 … ms after the start, and at times the end of an epoch
    waits for that: as long again as the epoch took, up to a minute. In Keras's pipeline of arrays there is nothing to
    tune. A strategy that was chosen, for several devices, is left alone.
    """
    return _Untuned(strategy) if model._distribute_strategy is None else strategy


def is_sparse_loss(loss):
    """Whether a loss, as `compile` takes it, is Keras's of integer labels: by name, for there is no other sign."""
    named = loss if isinstance(loss, str) else getattr(loss, "name", None) or getattr(loss, "__name__", "")
    return "sparse_categorical" in named


def calls_variable(optimizer):
    """The variable that counts calls of `apply`; the public `iterations` divides it by the accumulated batches."""
    return optimizer._iterations


def optimized_variables(optimizer):
    """The variables `apply` changes when it is given gradients alone: those `build` was called with."""
    return list(optimizer._trainable_variables)


def variable_index(optimizer, variable):
    """The index of `variable` in the optimizer's lists of slots, such as `momentums`."""
    return optimizer._get_variable_index(variable)


def adam_moments(optimizer, variable):
    """The two moving averages that Adam keeps of the gradient of `variable`, and of its square."""
    index = optimizer._get_variable_index(variable)
    return optimizer._momentums[index], optimizer._velocities[index]


class ScaledDecay:
    """Mixin over an optimizer: the weight decay of a weight is multiplied by `rate_factor(variable)`."""

    def _apply_weight_decay(self, variables):
        decay = self.weight_decay
        if not decay:
            return super()._apply_weight_decay(variables)
        groups = {}
        for variable in variables:
            groups.setdefault(self.rate_factor(variable), []).append(variable)
        try:
            for factor, group in groups.items():  # Keras multiplies the decay by the one rate of the optimizer
                self.weight_decay = decay * factor
                super()._apply_weight_decay(group)
        finally:
            self.weight_decay = decay


def accumulated_gradient(optimizer, variable):
    """The variable that holds the sum of the gradients of `variable` so far, under gradient accumulation."""
    return optimizer._accumulated_gradients[optimizer._get_variable_index(variable)]


def learning_rate_schedule(optimizer):
    """The schedule an optimizer was compiled with, or None where its rate is a number or a function."""
    rate = optimizer._learning_rate
    return rate if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule) else None


def before_averaging(optimizer, call):
    """An instance attribute `(object, name, value)`: in place, it calls `call()` between the update of a step and its
    moving average, which may overwrite the weights."""
    update_averages = optimizer._update_model_variables_moving_average

    def called_before(variables):
        call()
        update_averages(variables)

    return optimizer, "_update_model_variables_moving_average", called_before


def is_traced(train_function):
    """Whether TensorFlow has traced what Keras's train function runs, and so has fixed the weights it trains."""
    cells = getattr(train_function, "__closure__", None) or ()
    counts = [getattr(cell.cell_contents, "experimental_get_tracing_count", int) for cell in cells]
    return any(count() for count in counts)


class _State(H5IOStore):
    """What Keras would write to a file, and would read from it, in a dict: `{group: {key: value}}`."""

    def __init__(self, groups):
        self.groups = groups
        self.names = {}

    def __bool__(self):
        return True

    def make(self, path, metadata=None):
        if metadata and "name" in metadata:
            self.names[path] = metadata["name"]
        return self.groups.setdefault(path, {})

    def get(self, path):
        return self.groups.get(path, {})

    def has_path(self, path):
        return any(f"{group}/".startswith(f"{path}/") for group in self.groups)


def saved_state(model):
    """`{group: {key: variable}}` of all that Keras saves of a model, by its own names, and the names by group."""
    state = _State({})
    _save_state(model, state, None, "", set())
    return state.groups, state.names


def load_state(model, groups):
    """Load what `saved_state` gives, with other values."""
    _load_state(model, _State(groups), None, "", visited_saveables=set())


def global_seed_variable():
    """The variable behind random numbers that are drawn without a seed; None before anything has drawn from it."""
    generator = get_global_attribute(GLOBAL_SEED_GENERATOR)
    return None if generator is None else generator.state


def start_fit_at(model, epoch):
    """Let the `fit` that is about to begin start at `epoch`; None takes that back, or every later one starts there."""
    model._initial_epoch = epoch


def callback_list(callback):
    """The `CallbackList` that is calling a method of `callback` now: Keras gives no other way to its neighbours."""
    frame = sys._getframe(1)
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, keras.callbacks.CallbackList) and callback in caller.callbacks:
            return caller
        frame = frame.f_back
    return None


def fit_of(callbacks, frame):
    """The local variables of the `fit` that uses a `CallbackList`, where it is being run around `frame`; or None."""
    while frame is not None:
        if frame.f_code.co_name == "fit" and frame.f_locals.get("callbacks") is callbacks:
            return frame.f_locals
        frame = frame.f_back
    return None


def fit_input(callbacks):
    """The `x` that was given to the `fit` which uses a `CallbackList` now; None outside."""
    return (fit_of(callbacks, sys._getframe(1)) or {}).get("x")


def build_for(model, batch):
    """Build what a first batch would: the layers, metrics and loss of a compiled model.

    Args:
        model: The model.
        batch: A batch, or what has the shapes and dtypes of one.
    """
    model._symbolic_build(data_batch=batch)


def build_compiled_metrics(model, y, outputs):
    """Make the variables of the metrics given to `compile`, for tensors like these, where they have none yet."""

    def spec(value):
        return None if value is None else keras.KerasTensor(value.shape, keras.backend.standardize_dtype(value.dtype))

    metrics = model._compile_metrics
    if metrics is not None and not metrics.built:
        metrics.build(*keras.tree.map_structure(spec, (y, outputs)))


# What Keras's callbacks remember between epochs, by class; what a subclass adds is its own.
_MEMORY = {
    keras.callbacks.EarlyStopping: ("wait", "stopped_epoch", "best", "best_weights", "best_epoch"),
    keras.callbacks.ReduceLROnPlateau: ("best", "wait", "cooldown_counter"),
    keras.callbacks.ModelCheckpoint: ("best", "_batches_seen_since_last_saving", "_last_batch_seen"),
    keras.callbacks.SwapEMAWeights: ("_ema_weights_in_model",),
    keras.callbacks.TensorBoard: ("_global_train_batch", "_global_test_batch", "_previous_epoch_iterations"),
    keras.callbacks.History: ("history", "epoch"),
}


def more_is_better(metric):
    """Let `EarlyStopping` and its like know that a higher number of a metric is a better one."""
    metric._direction = "up"


def less_is_better(metric):
    """Let `EarlyStopping` and its like know that a lower number of a metric is a better one."""
    metric._direction = "down"


def callback_memory(callback):
    """The names of the attributes in which one of Keras's callbacks remembers what it saw."""
    return [name for kind, names in _MEMORY.items() if isinstance(callback, kind) for name in names]


def keras_home():
    """The folder that Keras keeps its settings and downloads in."""
    return config.keras_home()


def in_tensorflow_graph():
    """Whether TensorFlow builds a graph now, such as that of a `tf.data` pipeline under any backend."""
    return in_tf_graph()


def is_called_alone(layer):
    """Whether a layer, within its `call`, was called by itself and not by a model around it."""
    context = get_global_attribute("current_call_ctx")
    return context is not None and context.entry_layer is layer and not in_stateless_scope()
