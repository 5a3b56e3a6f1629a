"""Layers and operations inside a model by name, at any depth."""

import keras

from kvision._keras import children_of
from kvision.errors import unknown


def check_built(model):
    """The ValueError unless this is a model whose layers have their weights."""
    if not isinstance(model, keras.Model) or not model.built:
        raise ValueError(
            f"Expected a built keras.Model, got {type(model).__name__}. Call it on a batch, or give it a keras.Input, "
            "before looking into it."
        )


def places(model):
    """`{path: layer or operation}` of all that a model is made of, at any depth, in the order of its graph.

    A path is the names from the outside inwards, joined by `/`, which no name of Keras holds (dots it may). A layer
    that a composite one uses by itself is there too, and a layer used at several places has several paths.

    Args:
        model: A built `keras.Model`: functional, sequential, nested, or of a class of its own.

    >>> inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="fc.1")], name="inner")
    >>> model = keras.Sequential([keras.Input((4,)), inner], name="outer")
    >>> [path for path in places(model) if "fc" in path]
    ['inner/fc.1']
    """
    found = {}

    def walk(owner, prefix, around):
        for child in children_of(owner):
            path = f"{prefix}{child.name}"
            if isinstance(child, keras.layers.InputLayer) or id(child) in around:
                continue
            found.setdefault(path, child)
            if isinstance(child, keras.Layer):
                walk(child, f"{path}/", around | {id(child)})

    walk(model, "", {id(model)})
    return found


def find_place(model, layer):
    """The one place of a model that `layer` names.

    Args:
        model: A built `keras.Model`.
        layer: The name of a layer or operation at any depth, the end of its path (`"backbone/conv1"`), or the layer.

    Returns:
        `(path, layer or operation)`.

    Raises:
        ValueError: if there is none (lists the nearest), or if several have the name (lists their paths).
    """
    known = places(model)
    if not isinstance(layer, str):
        paths = [path for path, each in known.items() if each is layer]
        name = getattr(layer, "name", layer)
        if not paths and name in known:
            raise ValueError(f"The layer {name!r} given is not that of {model.name}: expected its own. Give its name.")
        if not paths:
            raise unknown(f"layer of {model.name}", name, known)
        return paths[0], layer
    if layer in known:
        return layer, known[layer]
    paths = [path for path in known if path.endswith(f"/{layer}")]
    if not paths:
        raise unknown(f"layer of {model.name}", layer, known)
    if len({id(known[path]) for path in paths}) > 1:
        listed = ", ".join(map(repr, paths[:4]))
        raise ValueError(
            f"{model.name} has {len(paths)} layers named {layer!r}: expected one. Give a path such as {listed}."
        )
    return paths[0], known[paths[0]]
