"""Optimal assignment of targets to queries."""

from keras import ops

from kvision.ops._backend import kernels

MAX_COST = 1e30


def hungarian(cost, valid=None):
    """Assign each target a query of its own so that the sum of the costs is minimal, exactly.

    Kuhn 1955, by shortest augmenting paths (Jonker and Volgenant 1987), for a whole batch at once. DETR (Carion et al.
    2020, section 3.1) assigns predictions to objects this way. If several assignments cost the same, any one is
    returned. No gradient flows through it.

    Args:
        cost: Costs `[batch, queries, targets]`, compared in float32. A pair is forbidden by infinity, NaN, or at least
            1e30 in magnitude: it costs more than any sum of the others, and is assigned only where a target has no
            other query left. Not by a large number: where a pair of 1e6 cannot be avoided, float32 resolves the
            other costs to 0.06 only.
        valid: Which targets exist, `[batch, targets]`; all by default.

    Returns:
        int32 `[batch, targets]`: the query of each target. -1 for targets that do not exist and, if there are more
        targets than queries, for those whose omission is cheapest.

    Raises:
        ValueError: If shapes do not fit.

    Example:

    >>> queries = hungarian([[[4, 1, 9], [2, 0, 9], [5, 3, 9]]], valid=[[True, True, False]])
    >>> keras.ops.convert_to_numpy(queries).tolist()
    [[1, 0, -1]]
    """
    cost = ops.stop_gradient(ops.cast(cost, "float32"))
    if len(cost.shape) != 3 or None in cost.shape[1:]:
        raise ValueError(
            "Assignment needs costs [batch, queries, targets] with fixed numbers of queries and targets: "
            f"got {tuple(cost.shape)}."
        )
    if valid is None:
        valid = ops.ones((ops.shape(cost)[0], cost.shape[2]), "bool")
    valid = ops.cast(valid, "bool")
    if len(valid.shape) != 2 or valid.shape[1] != cost.shape[2]:
        raise ValueError(
            f"`valid` must be [batch, targets], here with {cost.shape[2]} targets: got {tuple(valid.shape)}."
        )
    if 0 in cost.shape[1:]:
        return ops.full(ops.shape(valid), -1, "int32")
    return _hungarian(cost, valid)


@kernels.compiled
def _hungarian(cost, valid):
    queries, targets = cost.shape[1:]
    spare = max(targets - queries, 0)  # expensive dummy queries for the targets in excess
    cost = ops.pad(ops.transpose(cost, (0, 2, 1)), [(0, 0), (0, 0), (0, spare)], constant_values=float("nan"))
    cost = _finite(cost, valid[:, :, None])
    query_of, target_of = _greedy_start(cost, valid)
    query_of, *_ = ops.while_loop(
        lambda query_of, *_: ops.any(_unassigned(query_of, valid)),
        lambda *state: _augment(cost, valid, *state),
        (query_of, target_of, ops.zeros_like(cost[:, 0])),
    )
    return ops.where(query_of < queries, query_of, -1)


def _finite(cost, valid):
    """Costs shifted to begin at 0, by batch entry; unusable ones exceed the sum of all others."""
    usable = ops.logical_and(valid, ops.abs(cost) < MAX_COST)
    least = ops.min(ops.where(usable, cost, MAX_COST), axis=(1, 2), keepdims=True)
    cost = ops.where(usable, cost - least, 0.0)
    prohibitive = 1.0 + (cost.shape[1] + 1) * ops.max(cost, axis=(1, 2), keepdims=True)
    return ops.where(usable, cost, prohibitive)


def _unassigned(query_of, valid):
    return ops.logical_and(valid, query_of < 0)


def _at(values, index):
    """`values[b, index[b]]` as `[batch, 1]`, for `[batch, n]` and `[batch, 1]`; 0 for an index of -1."""
    return ops.sum(ops.where(ops.arange(values.shape[1]) == index, values, 0), axis=1, keepdims=True)


def _greedy_start(cost, valid):
    """Targets take their cheapest query, the first target if several share it: an optimal partial assignment."""
    targets, queries = cost.shape[1:]
    cheapest = ops.argmin(cost, axis=2)[:, :, None] == ops.arange(queries)
    cheapest = ops.logical_and(cheapest, valid[:, :, None])
    target_of = ops.where(ops.any(cheapest, axis=1), ops.cast(ops.argmax(cheapest, axis=1), "int32"), -1)
    taken = target_of[:, None, :] == ops.arange(targets)[:, None]
    query_of = ops.where(ops.any(taken, axis=2), ops.cast(ops.argmax(taken, axis=2), "int32"), -1)
    return query_of, target_of


def _augment(cost, valid, query_of, target_of, potential):
    """Assign a query to the first unassigned target of each batch entry, along the shortest augmenting path.

    `potential` [batch, queries] keeps every reduced cost at or above 0, and at 0 where a target is assigned.
    """
    unassigned = _unassigned(query_of, valid)
    searching = ops.any(unassigned, axis=1, keepdims=True)
    first = ops.cast(ops.argmax(unassigned, axis=1), "int32")[:, None]
    reached, distance, predecessor, scanned, end = _shortest_path(
        cost, query_of, target_of, potential, first, searching
    )
    potential = potential - ops.where(scanned, reached - distance, 0.0)
    query_of, target_of = _flip_path(query_of, target_of, predecessor, end)
    return query_of, target_of, potential


def _shortest_path(cost, query_of, target_of, potential, first, searching):
    """Dijkstra's search for the nearest free query from the target `first`, over paths of assigned targets."""
    targets, queries = ops.arange(cost.shape[1]), ops.arange(cost.shape[2])

    def scan(target, reached, distance, predecessor, scanned, end, searching):
        costs = ops.sum(ops.where((targets == target)[:, :, None], cost, 0.0), axis=1)
        own = _at(query_of, target)
        through = reached + (costs - potential) - (_at(costs, own) - _at(potential, own))
        nearer = ops.logical_and(searching, ops.logical_and(ops.logical_not(scanned), through < distance))
        distance = ops.where(nearer, through, distance)
        predecessor = ops.where(nearer, target, predecessor)
        ahead = ops.where(scanned, float("inf"), distance)
        query = ops.cast(ops.argmin(ahead, axis=1), "int32")[:, None]
        reached = ops.where(searching, ops.min(ahead, axis=1, keepdims=True), reached)
        owner = _at(target_of, query)
        end = ops.where(ops.logical_and(searching, owner < 0), query, end)
        searching = ops.logical_and(searching, owner >= 0)
        scanned = ops.logical_or(scanned, ops.logical_and(searching, queries == query))
        return ops.where(searching, owner, target), reached, distance, predecessor, scanned, end, searching

    no_end = ops.full_like(first, -1)
    start = (
        first,
        ops.zeros_like(first, "float32"),
        ops.full_like(potential, float("inf")),
        ops.full_like(target_of, -1),
        ops.zeros_like(target_of, "bool"),
        no_end,
        searching,
    )
    _, *found, _ = ops.while_loop(lambda *state: ops.any(state[-1]), scan, start)
    return found


def _flip_path(query_of, target_of, predecessor, end):
    """Reassign queries along the path that ends at the query `end`; -1 for no path."""
    targets, queries = ops.arange(query_of.shape[1]), ops.arange(target_of.shape[1])

    def step(query_of, target_of, query):
        on_path = query >= 0
        target = _at(predecessor, query)
        released = _at(query_of, target)
        query_of = ops.where(ops.logical_and(on_path, targets == target), query, query_of)
        target_of = ops.where(ops.logical_and(on_path, queries == query), target, target_of)
        return query_of, target_of, ops.where(on_path, released, -1)

    query_of, target_of, _ = ops.while_loop(
        lambda query_of, target_of, query: ops.any(query >= 0), step, (query_of, target_of, end)
    )
    return query_of, target_of
