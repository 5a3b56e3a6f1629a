import itertools

import keras
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from kvision import ops
from tests.ops.differentiation import GRAPHS_ARE_SLOW, JIT_IS_SLOW, SLOW
from tests.ops.execution import execute

QUERIES, TARGETS = 12, 7


def total(cost, queries):
    """Sum of the chosen costs of one image, and how many targets are assigned; fails if a query is assigned twice."""
    assigned = np.flatnonzero(queries >= 0)
    assert len(set(queries[assigned])) == len(assigned)
    return cost[queries[assigned], assigned].sum(dtype="float64"), len(assigned)


def least(cost):
    """The same by scipy."""
    queries, targets = linear_sum_assignment(cost.astype("float64"))
    return cost[queries, targets].sum(dtype="float64"), len(targets)


def examples():
    """Costs of many kinds `[n, QUERIES, TARGETS]`."""
    rng = np.random.default_rng(0)
    shape = (6, QUERIES, TARGETS)
    contested = rng.uniform(0, 1, shape) + 5 * rng.uniform(0, 1, (6, QUERIES, 1))  # every target wants the same queries
    return np.concatenate(
        [
            rng.normal(size=shape),
            contested,
            rng.integers(0, 3, shape),  # ties
            rng.normal(size=shape) * 1e-3 + 100,
            -(rng.uniform(size=shape) ** 4) * 1e4,
            np.zeros((1, QUERIES, TARGETS)),
            np.add.outer(np.arange(QUERIES), np.arange(TARGETS))[None],  # rank one: all assignments cost the same
            np.multiply.outer(-np.arange(QUERIES), np.arange(TARGETS))[None],
        ]
    ).astype("float32")


def check(cost, queries, valid=None):
    valid = np.ones((len(cost), cost.shape[2]), bool) if valid is None else valid
    for image in range(len(cost)):
        real = np.flatnonzero(valid[image])
        assert (np.delete(queries[image], real) == -1).all()
        got, got_assigned = total(cost[image][:, real], queries[image][real])
        want, want_assigned = least(cost[image][:, real])
        assert got_assigned == want_assigned
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("mode", JIT_IS_SLOW)
def test_costs_as_little_as_scipy(mode):
    cost = examples()
    queries = execute(ops.hungarian, cost, mode=mode)
    assert queries.dtype == "int32"
    check(cost, queries)


@pytest.mark.parametrize("mode", GRAPHS_ARE_SLOW)
def test_padding_is_left_out(mode):
    cost = examples()
    valid = np.random.default_rng(1).uniform(size=(len(cost), TARGETS)) < 0.6
    valid[0] = False
    wild = np.where(valid[:, None], cost, np.nan)
    check(cost, execute(ops.hungarian, wild, valid, mode=mode), valid)


def test_equals_every_permutation():
    cost = np.random.default_rng(0).normal(size=(5, 4, 4)).astype("float32")
    for image, queries in zip(cost, keras.ops.convert_to_numpy(ops.hungarian(cost)), strict=True):
        best = min(itertools.permutations(range(4)), key=lambda order: image[list(order), range(4)].sum())
        np.testing.assert_array_equal(queries, best)


@pytest.mark.parametrize("queries, targets", [(5, 9), *(pytest.param(*row, marks=SLOW) for row in [(1, 4), (6, 1)])])
def test_other_shapes(queries, targets):
    rng = np.random.default_rng(0)
    cost = rng.normal(size=(6, queries, targets)).astype("float32")
    valid = rng.uniform(size=(6, targets)) < 0.7
    check(cost, keras.ops.convert_to_numpy(ops.hungarian(cost, valid)), valid)


def run(cost):
    return keras.ops.convert_to_numpy(ops.hungarian(cost))


def test_invariances():
    cost = np.random.default_rng(2).normal(size=examples().shape).astype("float32")  # no ties
    queries = run(cost)
    np.testing.assert_array_equal(run(cost * 4), queries)
    np.testing.assert_array_equal(run(cost + np.arange(TARGETS, dtype="float32")), queries)
    np.testing.assert_array_equal(run(cost[:, :, ::-1]), queries[:, ::-1])
    np.testing.assert_array_equal(QUERIES - 1 - run(cost[:, ::-1]), queries)
    np.testing.assert_array_equal(run(cost[::-1]), queries[::-1])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
def test_unusable_costs_are_avoided_and_never_hang(bad):
    cost = examples()
    spoilt = cost.copy()
    spoilt[:, 2:5] = bad  # rows of queries: nine are left for seven targets
    queries = run(spoilt)
    assert not np.isin(queries, [2, 3, 4]).any()
    check(np.delete(cost, [2, 3, 4], axis=1), queries - 3 * (queries > 4))
    queries = run(np.full_like(cost, bad))
    assert all(len(set(row)) == TARGETS for row in queries)


@pytest.mark.parametrize("forbidden", [np.nan, np.inf, 1e30])
def test_where_forbidden_pairs_cannot_be_avoided_the_others_are_still_optimal(forbidden):
    rng = np.random.default_rng(0)
    cost, allowed = rng.uniform(size=(64, 12, 12)).astype("float32"), rng.uniform(size=(64, 12, 12)) < 0.1
    queries = run(np.where(allowed, cost, np.float32(forbidden)))
    for image in range(64):
        rows, columns = linear_sum_assignment(np.where(allowed[image], cost[image], 1e3).astype("float64"))
        want, got = (
            (allowed[image][pairs], cost[image][pairs]) for pairs in ((rows, columns), (queries[image], range(12)))
        )
        assert got[0].sum() == want[0].sum() < 12
        np.testing.assert_allclose(got[1][got[0]].sum(), want[1][want[0]].sum(), rtol=1e-6)


@pytest.mark.parametrize("shape", [(2, 5, 0), (2, 0, 5), (0, QUERIES, TARGETS)])
def test_nothing_to_assign(shape):
    queries = run(np.zeros(shape, "float32"))
    np.testing.assert_array_equal(queries, np.full((shape[0], shape[2]), -1))


def test_16_bit_inputs_are_computed_in_float32():
    keras.mixed_precision.set_dtype_policy("mixed_float16")
    narrow = keras.ops.cast(examples(), "float16")
    wide = keras.ops.convert_to_numpy(keras.ops.cast(narrow, "float32"))
    check(wide, run(narrow))


def test_errors():
    with pytest.raises(ValueError, match=r"got \(3, 4\)"):
        ops.hungarian(np.zeros((3, 4)))
    with pytest.raises(ValueError, match="here with 4 targets"):
        ops.hungarian(np.zeros((2, 3, 4)), np.ones((2, 3)))
