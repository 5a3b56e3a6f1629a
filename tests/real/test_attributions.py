"""Attributions of a published network on photos: they find the pixels that its score depends on."""

import numpy as np
import pytest

from kvision import visualize

pytestmark = pytest.mark.real

# Of insertion minus deletion above that of random maps, mean of the photos. Measured in 16 steps: 0.18, 0.11 and 0.40,
# and 18, 16 and 19 of the 20 photos better than with random maps.
MARGINS = {"gradient": 0.1, "integrated_gradients": 0.05, "occlusion": 0.25}


@pytest.fixture(scope="module")
def differences(model, photos):
    """Area under the curve of insertion minus that of deletion, of each photo, by technique."""
    images, _ = photos
    maps = {
        "random": np.random.default_rng(0).random(images.shape[:3]),
        "gradient": visualize.saliency_map(visualize.gradient(model, images)),
        "integrated_gradients": np.abs(visualize.integrated_gradients(model, images, steps=16).sum(axis=-1)),
        "occlusion": visualize.occlusion(model, images, window=48, stride=24),
    }
    found = {name: visualize.insertion_deletion(model, images, each, steps=10) for name, each in maps.items()}
    return {name: each.insertion - each.deletion for name, each in found.items()}


@pytest.mark.parametrize("name", MARGINS)
def test_maps_beat_random_ones(name, differences):
    margins = differences[name] - differences["random"]
    assert len(margins) == 20
    assert margins.mean() > MARGINS[name]
    assert (margins > 0).sum() >= 14
