"""What is emitted during a run, and recorded by trackers."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Measurement:
    """Numbers by weight or layer at one step.

    Args:
        name: What was measured, as in `logs`: `"update_ratio"`, `"dead_relu"`, `"gradient_norm"`.
        step: Optimizer steps taken when it was measured.
        values: `{weight or layer path: number}`.
        healthy: The range `(low, high)` in which a healthy run stays, or None where there is none.
    """

    name: str
    step: int
    values: dict
    healthy: tuple | None = None


@dataclasses.dataclass(frozen=True)
class Advice:
    """A sentence for the person who watches the run: which layer, which number, what is healthy, what to change."""

    vital: str
    step: int
    epoch: int
    text: str


@dataclasses.dataclass(frozen=True)
class Overlay:
    """An image and what lies over it.

    Args:
        image: [h, w, 3] uint8.
        layers: `{name: dict}` with `"boxes"` [n, 4] xyxy in pixels, `"labels"` [n] from 0 and, optional, `"scores"` [n]
            and `"masks"` [n, h, w] bool; or with `"label_map"` [h, w], the class of each pixel, −1 for none, and,
            optional, `"classes"`, names of its own.
        classes: Names of the classes, in the order of the labels, or None.
        caption: A line for below the image.
    """

    image: object
    layers: dict
    classes: tuple | None = None
    caption: str | None = None


@dataclasses.dataclass(frozen=True)
class Images:
    """Images of one step.

    Args:
        step: Optimizer steps taken.
        images: `{name: matplotlib figure, or [h, w, 3] uint8 array}`.
        overlays: `{name: [Overlay]}`: the same with nothing drawn over them. A tracker that draws boxes and masks by
            itself records these, where there are any, and leaves out `images`.
    """

    step: int
    images: dict
    overlays: dict = dataclasses.field(default_factory=dict)


def unique_names(names):
    """The names in order; one that came before gets a number, since dicts are keyed by them."""
    seen, unique = {}, []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        unique.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return unique
