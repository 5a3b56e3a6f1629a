"""Rotation, translation, scale, stretching and shear, each alone."""

from kvision.data.augmentation.geometric import Affine


def _affine(kind, argument, field, value, options):
    """`Affine` with one of its arguments, whose errors name the function that was called."""
    try:
        return Affine(**{field: value}, **options)
    except ValueError as error:
        message = str(error).replace(f"Affine: {field} ", f"{kind}: {argument} ").replace("Affine: ", f"{kind}: ")
        raise ValueError(message) from None


def Rotation(degrees=15.0, **options):
    """`Affine` that rotates by up to `degrees`, in either direction."""
    return _affine("Rotation", "degrees", "rotation", degrees, options)


def Translation(fraction=0.1, **options):
    """`Affine` that translates by up to a fraction of width and height."""
    return _affine("Translation", "fraction", "translation", fraction, options)


def Scale(scale=(0.8, 1.25), **options):
    """`Affine` that scales about the centre."""
    return _affine("Scale", "scale", "scale", scale, options)


def Stretching(ratio=1.33, **options):
    """`Affine` that stretches width against height by up to `ratio`, and keeps the area."""
    return _affine("Stretching", "ratio", "stretching", ratio, options)


def Shear(degrees=10.0, **options):
    """`Affine` that shears each axis by up to `degrees`."""
    return _affine("Shear", "degrees", "shear", degrees, options)
