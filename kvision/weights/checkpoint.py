"""The one state dict in what a training saved: nested, prefixed, beside averaged copies and an optimizer."""

import re

from kvision._keras import print_message
from kvision.weights.files import Refused

# Names of averaged copies; what a paper's numbers are of, where a file holds one.
AVERAGED = frozenset({"ema", "model_ema", "ema_model", "ema_state_dict", "state_dict_ema", "teacher"})

# What torch.compile and the wrappers of sharded training put into names, at any depth.
WRAPPERS = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")

_DEEPEST = 8


def network_state(model, checkpoint, expected, rename, prefix=None):
    """`{key: array}` of one network out of a checkpoint.

    Args:
        model: For its name in messages.
        checkpoint: A dict: arrays by their names, or dicts of such at any depth, beside other things.
        expected: The keys that the model's weights have, those sure to be in a file first.
        rename: A function from a state dict to the one by today's names.
        prefix: Where the network lies, such as `"model."`: names of dicts and the beginning of keys, joined by dots.
            None looks for the prefix under which most of the expected keys are; an averaged copy comes first.

    Raises:
        ValueError: if there are no arrays, none under `prefix`, or several networks without a prefix given.
    """
    flat = dict(_flattened(checkpoint))
    if not flat:
        held = ", ".join(repr(str(key)) for key in list(checkpoint)[:5]) or "nothing"
        raise Refused(f"{model.name}: there are no arrays to load; the top of the file holds {held}.")
    if prefix is None:
        prefix = _find(model, flat, expected, rename)
    inside = {key.removeprefix(prefix): value for key, value in flat.items() if key.startswith(prefix)}
    outside = [_branch(key, prefix) for key in flat if not key.startswith(prefix)]
    outside = list(dict.fromkeys(outside))
    if not inside:
        raise Refused(f"{model.name}: nothing lies under prefix={prefix!r}; there are {', '.join(outside[:5])}.")
    if outside:
        more = ", …" if len(outside) > 4 else ""
        print_message(f"{model.name}: reads {prefix.rstrip('.')!r} of the file, not {', '.join(outside[:4])}{more}.")
    return rename(inside)


def most_found(checkpoint, expected, rename):
    """How many of the expected keys are in a checkpoint, under the best prefix."""
    return max(_found(dict(_flattened(checkpoint)), expected, rename).values())


def _found(flat, expected, rename):
    """`{prefix: how many of the expected keys lie under it}`."""
    probes = expected[:3]
    prefixes = [key.removesuffix(probe) for key in flat for probe in probes if key.endswith(f".{probe}")]
    return {prefix: _count(flat, prefix, expected, rename) for prefix in dict.fromkeys(["", *prefixes])}


def _find(model, flat, expected, rename):
    found = _found(flat, expected, rename)
    most = max(found.values())
    best = [prefix for prefix in found if found[prefix] == most]
    if most == 0 or "" in best:
        return ""
    averaged = [prefix for prefix in best if AVERAGED & set(prefix.split("."))]
    best = averaged or best
    if len(best) > 1:
        names = " and ".join(repr(prefix) for prefix in best[:4])
        raise Refused(
            f"The file holds {model.name} {len(best)} times, under {names}: say which you mean, as in "
            f"kvision.weights.load_torch(model, path, prefix={best[0]!r})."
        )
    return best[0]


def _count(flat, prefix, expected, rename):
    inside = rename({key.removeprefix(prefix): None for key in flat if key.startswith(prefix)})
    return sum(key in inside for key in expected)


def _flattened(values, path="", depth=0):
    for key, value in values.items():
        if hasattr(value, "items"):
            if depth < _DEEPEST:  # a pickle can hold a dict that holds itself
                yield from _flattened(value, f"{path}{key}.", depth + 1)
        elif hasattr(value, "shape") and hasattr(value, "dtype"):
            yield WRAPPERS.sub("", f"{path}{key}"), value


def _branch(key, prefix):
    """The name at which a key leaves the way to a prefix."""
    names, way = key.split("."), prefix.split(".")
    differing = (index for index, name in enumerate(names) if index >= len(way) or name != way[index])
    shared = next(differing, len(names) - 1)
    return repr(".".join(names[: shared + 1]))
