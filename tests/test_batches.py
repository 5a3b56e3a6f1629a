"""Data that is read by others than `fit` is read by one rule."""

import itertools

import keras
import numpy as np
import pytest

from kvision.batches import first_given
from kvision.detection.batches import detection_batches
from kvision.training.batches import batches
from kvision.visualize.batches import image_batches

READERS = {
    "images": (image_batches, [0, 1, 2]),
    "detection": (lambda data: (detection_batches(data), None), [0, 1, 2]),
    "training": (lambda data: (batches(data), None), [0, 1, 2, 0]),  # epoch after epoch
}


class Endless(keras.utils.PyDataset):
    num_batches = None

    def __getitem__(self, index):
        return np.full((2, 4, 4, 3), index, "float32"), np.zeros(2)


class Three(Endless):
    num_batches = 3


@pytest.mark.parametrize(("read", "order"), list(READERS.values()), ids=list(READERS))
def test_a_py_dataset_is_read_by_its_indices(read, order):
    found = itertools.islice(read(Three())[0], 4)
    assert [batch[0][0, 0, 0, 0] for batch in found] == order
    with pytest.raises(ValueError, match="A PyDataset needs num_batches here: got None"):
        next(iter(read(Endless())[0]))


def test_an_iterator_is_not_read():
    once = iter([(np.zeros(2), np.ones(2))])
    assert first_given(once) is None and next(once)[1].sum() == 2
    assert first_given(np.zeros(2), np.ones(2))[1].sum() == 2
