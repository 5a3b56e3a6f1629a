"""What is compared before anything is written: the weights of a model, and what a file has instead."""

from kvision._keras import layers_of, own_variables


def weights_of(model):
    """Every weight with the layer that owns it, nested models included; states of random generators left out."""
    seen = set()
    for layer in layers_of(model):
        for variable in own_variables(layer):
            if id(variable) not in seen and not variable.path.endswith("seed_generator_state"):
                seen.add(id(variable))
                yield layer, variable


def mismatch(model, faults, count):
    shown = "\n  ".join(faults[:5])
    more = f"\n  and {len(faults) - 5} more" if len(faults) > 5 else ""
    return ValueError(
        f"These weights are not {model.name}'s: it has {len(list(weights_of(model)))} weights, the file {count}; "
        f"nothing was changed.\n  {shown}{more}\nLikely cause: {_likely_cause(faults)}"
    )


def _likely_cause(faults):
    if all("not there" in fault for fault in faults):
        return "the file lacks layers: was it saved with include_top=False, or under other names (source=)?"
    if all("no counterpart" in fault for fault in faults):
        return "the model lacks layers: was it built with include_top=False, or is it another variant?"
    if len(faults) <= 2 and not any("no counterpart" in fault or "not there" in fault for fault in faults):
        return "another number of classes: build the model with the file's, or give include_top=False."
    return "another variant, or a file of another source (source=)."
