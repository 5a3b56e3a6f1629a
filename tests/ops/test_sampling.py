import keras
import numpy as np
import pytest

from kvision import ops
from tests.ops.execution import MODES, execute


def sample_twin(matches, keys, num_samples, positive_fraction):
    """One image: the rows of each kind by falling key."""
    by_key = sorted(range(len(keys)), key=lambda row: -keys[row])
    positives = [row for row in by_key if matches[row] >= 0][: int(num_samples * positive_fraction)]
    background = [row for row in by_key if matches[row] == -1][: num_samples - len(positives)]
    return positives + background


def example(count=200):
    """Five images: many positives, few, none, only positives, all ignored."""
    rng = np.random.default_rng(0)
    matches = np.full((5, count), -1, "int32")
    matches[:, rng.permutation(count)[: count // 5]] = -2
    matches[0, ::2] = rng.integers(0, 9, (count + 1) // 2)
    matches[1, 3:9] = 4
    matches[3] = 0
    matches[4] = -2
    return matches, rng.uniform(size=(5, count)).astype("float32")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "num_samples, positive_fraction", [(64, 0.5), (64, 0.25), (64, 0.0), (64, 1.0), (1, 0.5), (300, 0.5), (15, 0.25)]
)
def test_equals_twin(num_samples, positive_fraction, mode):
    matches, keys = example()
    indices, drawn = execute(
        lambda matches, keys: ops.sample_balanced(matches, num_samples, positive_fraction, keys=keys),
        *(matches, keys),
        mode=mode,
    )
    assert indices.dtype == "int32" and indices.shape == drawn.shape == (5, num_samples)
    for image in range(5):
        want = sample_twin(matches[image], keys[image], num_samples, positive_fraction)
        assert drawn[image].sum() == len(want)
        np.testing.assert_array_equal(indices[image][drawn[image]], want)
    assert indices.min() >= 0 and indices.max() < 200


def run(matches, **options):
    return [keras.ops.convert_to_numpy(part) for part in ops.sample_balanced(matches, 64, 0.5, **options)]


def test_laws():
    matches, keys = example()
    indices, drawn = run(matches, keys=keys)
    for image in range(5):
        assert len(set(indices[image][drawn[image]])) == drawn[image].sum(), "without replacement"
    order = np.random.default_rng(1).permutation(200)
    shuffled, _ = run(matches[:, order], keys=keys[:, order])
    np.testing.assert_array_equal(order[shuffled][drawn], indices[drawn])
    ignored = np.where(np.arange(200) % 3 == 0, -2, matches)
    kept = np.arange(200) % 3 > 0
    fewer, fewer_drawn = run(matches[:, kept], keys=keys[:, kept])
    same, same_drawn = run(ignored, keys=keys)
    np.testing.assert_array_equal(fewer_drawn, same_drawn)
    np.testing.assert_array_equal(np.flatnonzero(kept)[fewer][fewer_drawn], same[same_drawn])


def test_seeds():
    matches, _ = example()
    np.testing.assert_array_equal(run(matches, seed=7), run(matches, seed=7))
    generator = keras.random.SeedGenerator(7)
    first, second = run(matches, seed=generator), run(matches, seed=generator)
    assert (first[0] != second[0]).any()
    np.testing.assert_array_equal(first, run(matches, seed=keras.random.SeedGenerator(7)))


def test_every_row_of_a_kind_is_equally_likely():
    matches = np.repeat([[0] * 10 + [-1] * 30 + [-2] * 10], 2000, axis=0)
    indices, _ = (keras.ops.convert_to_numpy(part) for part in ops.sample_balanced(matches, 8, 0.5, seed=1))
    shares = np.bincount(indices.ravel(), minlength=50) / 2000
    np.testing.assert_allclose(shares[:10], 4 / 10, atol=0.05)  # four and a half standard deviations
    np.testing.assert_allclose(shares[10:40], 4 / 30, atol=0.05)
    np.testing.assert_array_equal(shares[40:], 0)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_samples": 0, "seed": 0}, "num_samples >= 1"),
        ({"positive_fraction": 1.5, "seed": 0}, "positive_fraction <= 1"),
        ({}, "either `seed`"),
        ({"seed": 0, "keys": np.zeros((5, 200))}, "either `seed`"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        ops.sample_balanced(example()[0], **{"num_samples": 4, "positive_fraction": 0.5, **options})


def test_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"got \(200,\)"):
        ops.sample_balanced(example()[0][0], 4, 0.5, seed=0)


@pytest.mark.parity
def test_takes_as_many_of_each_kind_as_torchvision():
    import torch
    from torchvision.models.detection._utils import BalancedPositiveNegativeSampler

    matches, keys = example()
    for num_samples, positive_fraction in [(64, 0.5), (512, 0.25), (16, 0.3)]:
        sampler = BalancedPositiveNegativeSampler(num_samples, positive_fraction)
        labels = np.where(matches >= 0, 1, np.where(matches == -1, 0, -1))
        positives, background = sampler(list(torch.from_numpy(labels)))
        indices, drawn = ops.sample_balanced(matches, num_samples, positive_fraction, keys=keys)
        kinds = np.take_along_axis(labels, keras.ops.convert_to_numpy(indices), axis=1)
        drawn = keras.ops.convert_to_numpy(drawn)
        for image in range(5):
            assert ((kinds == 1) & drawn)[image].sum() == positives[image].sum()
            assert ((kinds == 0) & drawn)[image].sum() == background[image].sum()
