"""Attributions of a published network on photos: they find the pixels that its score depends on."""

import numpy as np
import pytest

from kvision import visualize

pytestmark = pytest.mark.real

STEPS = 16


@pytest.fixture(scope="module")
def areas(model, photos):
    """Insertion minus deletion by technique, of each photo."""
    images, _ = photos
    maps = {
        "random": np.random.default_rng(0).random(images.shape[:3]),
        "gradient": visualize.saliency_map(visualize.gradient(model, images)),
        "integrated_gradients": np.abs(visualize.integrated_gradients(model, images, steps=16).sum(axis=-1)),
        "occlusion": visualize.occlusion(model, images, window=48, stride=24),
    }
    found = {}
    for name, values in maps.items():
        result = visualize.insertion_deletion(model, images, values, steps=STEPS)
        print(  # noqa: T201
            name, result.insertion.mean(), result.deletion.mean()
        )
        found[name] = result.insertion - result.deletion
    return found


@pytest.mark.parametrize("name", ["gradient", "integrated_gradients", "occlusion"])
def test_maps_beat_random_ones(name, areas):
    margin = areas[name] - areas["random"]
    print(  # noqa: T201
        name, margin.mean(), (margin > 0).sum()
    )
