"""Which pixels of the image the positions of a layer see."""

from kvision.receptive_field import receptive_fields
from kvision.visualize.places import find_place


def receptive_field(model, layer, image_size=None):
    """Which pixels of the image each position of a layer's map sees, by the arithmetic of its graph.

    Araujo, Norris and Sim 2019, "Computing receptive fields of convolutional neural networks"; the pixels of each
    position are exact, with padding and border. Within the field pixels count differently: those of the centre most
    (Luo 2016, "Understanding the effective receptive field").

    Args:
        model: A built `keras.Model`.
        layer: The name of a layer at any depth, the end of its path, or the layer; `(name, call)` where it is called
            several times.
        image_size: (height, width) where the model takes any; None: the size of its input.

    Returns:
        A `kvision.receptive_field.ReceptiveField`: `size`, `stride`, `boxes_xyxy(rows, columns)`; or None where a
        position sees the whole image, or what it sees cannot be told: behind a global pooling, a dense layer or
        attention, inside a composite layer, and in a model that is not functional.

    Raises:
        ValueError: on a layer that does not exist or is not unique, and a call that it does not have.

    >>> network = kvision.applications.LeNet5("modern", input_shape=(32, 32, 1))
    >>> field = receptive_field(network, "C3")
    >>> field.size, field.stride, field.boxes_xyxy([0], [1]).tolist()
    ((14, 14), (2, 2), [[2, 0, 16, 14]])
    """
    name, call = layer if isinstance(layer, tuple) else (layer, None)
    path, _ = find_place(model, name)
    fields = receptive_fields(model, image_size).get(path)
    if fields is None:
        return None
    if (call is None and len(fields) > 1) or (call is not None and not 0 <= call < len(fields)):
        raise ValueError(
            f"{model.name} calls its layer {path!r} {len(fields)} times. Give (name, call) with a call from 0 to "
            f"{len(fields) - 1}."
        )
    return fields[call or 0]
