"""What a comparison is: the cases that are timed in turn in one run, and the targets they are held against."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Case:
    """One thing that is timed: which environment runs which case of which file."""

    environment: str
    file: str
    case: str


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Ours beside its peers, timed in turn in one run.

    Args:
        name: Short, for `ONLY=` and the headings.
        title: What is measured.
        ours: The case of kvision.
        peers: `{label: case}`.
        targets: `{label: largest ratio ours / peer that counts as reached}`.
        memory: `{label: largest ratio of peak memory}`.
        most_ms: Milliseconds of ours that count as reached, where there is no peer.
        rounds: How often the cases run in turn.
        agree: `{name: largest difference from ours, as a fraction of ours}` of numbers that the cases tell; 0 wants
            them equal.
        throughput: Whether the page tells images a second as well.
        note: What a reader should know, above all why a target is missed.
    """

    name: str
    title: str
    ours: Case
    peers: dict
    targets: dict
    memory: dict = dataclasses.field(default_factory=dict)
    most_ms: float | None = None
    rounds: int = 5
    agree: dict = dataclasses.field(default_factory=dict)
    throughput: bool = False
    note: str = ""


def training_step(
    name, title, case, *, torch_case=None, keras_case=None, hub_case=None, targets=None, memory=1.1, note=""
):
    """Forward, backward and one SGD step with momentum, by `train_on_batch`, images of 224x224 pixels."""
    peers = {}
    if torch_case:
        peers["torchopt"] = Case("torchopt", "steps_torch.py", torch_case)
    if keras_case:
        peers["Keras layers"] = Case("keras", "steps_keras.py", keras_case)
    if hub_case:
        peers["KerasHub"] = Case("keras_hub", "steps_keras_hub.py", hub_case)
    memory = {"torchopt": memory} if torch_case else {}
    return Comparison(name, title, Case("kvision", "steps_kvision.py", case), peers, targets or {}, memory, note=note)


def inference(name, title, case):
    """`predict_on_batch` beside the fastest form of torch's network and Keras's layers."""
    peers = {
        "torchopt": Case("torchopt", "steps_torch.py", case),
        "Keras layers": Case("keras", "steps_keras.py", case),
    }
    targets = dict.fromkeys(peers, 0.90)
    return Comparison(name, title, Case("kvision", "steps_kvision.py", case), peers, targets, throughput=True)


def detection(name, title, target=None, *, memory=None, hub=None, agree=None, note=""):
    """A row of detection against tuned torchvision; the cases have the same name on both sides."""
    peers = {"torchopt": Case("torchopt", "steps_detection_torch.py", name)}
    targets = {"torchopt": target} if target else {}
    if hub:
        peers["KerasHub"] = Case("keras_hub", "steps_keras_hub.py", name)
        targets["KerasHub"] = hub
    memory = {"torchopt": memory} if memory else {}
    ours = Case("kvision", "steps_detection.py", name)
    return Comparison(name, title, ours, peers, targets, memory, agree=agree or {}, note=note)
