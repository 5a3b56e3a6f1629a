"""Guided backpropagation and deconvnet against twins in loops, with ReLUs in every form."""

import pytest

from kvision.visualize import deconvnet, gradient, guided_backprop
from tests.support import SLOW, assert_close
from tests.visualize import nets

RULES = {"guided": guided_backprop, "rectified": deconvnet}
QUICK = [("activation", "guided"), ("reused", "rectified"), ("operation", "guided"), ("own class", "rectified")]
FORMS = [
    pytest.param(form, rule, marks=() if (form, rule) in QUICK else SLOW)
    for form in ("activation", "reused", "operation", "own class", "layer", "Activation", "nested")
    for rule in RULES
]


@pytest.mark.parametrize(("form", "rule"), FORMS)
def test_a_class_goes_back_as_in_the_twin(form, rule):
    model, _ = nets.with_relus(form)
    logits, want = nets.twin(nets.images(), model.get_weights(), rule, target=2)
    with nets.unchanged(model):
        got = RULES[rule](model, nets.images(), 2)
    assert_close(model(nets.images()), logits)
    assert_close(got, want)


@pytest.mark.parametrize(
    ("form", "rule"),
    [
        ("operation", "rectified"),
        *(pytest.param(form, rule, marks=SLOW) for form in ("activation", "reused", "nested") for rule in RULES),
        pytest.param("own class", "guided", marks=SLOW),
    ],
)
def test_the_most_active_position_of_a_channel_goes_back_alone(form, rule):
    model, layer = nets.with_relus(form)
    _, want = nets.twin(nets.images(), model.get_weights(), rule, unit=5)
    assert (abs(want).max(axis=(1, 2, 3)) > 0).all()
    assert_close(RULES[rule](model, nets.images(), layer=layer, unit=5), want)


@SLOW
def test_one_unit_at_a_position():
    model, layer = nets.with_relus("activation")
    got = guided_backprop(model, nets.images(), layer=layer, unit=(1, 0, 5))
    assert not got[:, :2].any()  # what it does not see


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": "conv2"}, "told by layer and unit: got layer='conv2', unit=None"),
        ({"layer": "conv2", "unit": 16}, "got unit 16. Give a channel from 0 to 15"),
        ({"layer": "conv2", "unit": 1, "target": 0}, "Give a target, or layer and unit"),
        ({"layer": "conv3", "unit": 1}, "conv2"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    model, _ = nets.with_relus("activation")
    for technique in RULES.values():
        with pytest.raises(ValueError, match=message):
            technique(model, nets.images(), **options)


def test_a_network_without_relus_is_refused():
    with pytest.raises(ValueError, match="has no ReLU"):
        guided_backprop(nets.linear(), nets.images(), 0)
    assert_close(gradient(nets.linear(), nets.images(), 0).std(axis=0).max(), 0.0)
