"""Grouped convolution: both forms are one convolution per group of channels."""

import keras
import numpy as np
import pytest
from keras import ops

from kvision.ops import convolution, convolve_groups
from tests.support import assert_close

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 6, 5, 6)).astype("float32")


def same(x, kernel):
    return ops.conv(x, kernel, padding="same")


@pytest.mark.parametrize("on_cpu", [True, False])
@pytest.mark.parametrize("groups", [1, 2, 3])
def test_each_group_sees_its_own_channels(groups, on_cpu, monkeypatch):
    monkeypatch.setattr(convolution.kernels, "on_cpu", lambda: on_cpu)
    kernel = RNG.normal(size=(3, 3, 6 // groups, 12)).astype("float32")
    got = convolve_groups(same, ops.convert_to_tensor(X), ops.convert_to_tensor(kernel), groups)
    parts = zip(np.split(X, groups, -1), np.split(kernel, groups, -1), strict=True)
    want = np.concatenate([ops.convert_to_numpy(same(*part)) for part in parts], axis=-1)
    assert_close(got, want, tolerance=(1e-4, 1e-4))  # 54 products in another order


@pytest.mark.parametrize(("on_cpu", "calls"), [(True, 3), (False, 1)])
def test_the_device_chooses_the_form(on_cpu, calls, monkeypatch):
    monkeypatch.setattr(convolution.kernels, "on_cpu", lambda: on_cpu)
    seen = []
    convolve_groups(lambda x, kernel: seen.append(x.shape) or x, ops.ones((1, 4, 4, 6)), ops.ones((1, 1, 2, 6)), 3)
    assert len(seen) == calls


def test_the_device_of_this_machine_is_known():
    assert convolution.kernels.on_cpu() == all("cpu" in name.lower() for name in keras.distribution.list_devices())
