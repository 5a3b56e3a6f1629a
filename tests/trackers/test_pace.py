"""Points of the loss are dense at first and bounded in number."""

import itertools
import math
import time
import types

import keras
import pytest

from kvision.trackers.pace import POINTS, Pace


class Model(keras.Model):
    def __init__(self, mean):
        super().__init__()
        self.mean = mean

    metrics = property(lambda self: [self.mean])


class Fit:
    """A callback of a run whose batches have a loss each, as Keras's mean of an epoch holds them."""

    def __init__(self, name="loss"):
        self.mean = types.SimpleNamespace(name=name, total=0.0, count=0.0)
        self.model = Model(self.mean)

    def train(self, loss, images=8):
        self.mean.total += loss * images
        self.mean.count += images


def points_of(losses, steps_per_epoch, images=lambda batch: 8, fit=None, cuts=(), restores=True):
    """`{number of the step: loss}` of what a `Pace` reads; at each of the cuts another process goes on."""
    pace, fit, points, first = Pace(), fit or Fit(), {}, 0
    for step, loss in enumerate(losses):
        batch = step % steps_per_epoch
        if step and batch == 0:
            pace.end_training(fit)
        if step in cuts:
            state = pace.get_state()
            pace, first = Pace(), batch
            pace.set_state(state)
        if batch == 0:
            first = 0
        if batch == 0 or (step in cuts and not restores):
            fit.mean.total = fit.mean.count = 0.0
        if batch == first:
            pace.begin_epoch()
        found = pace.loss(fit, batch - first)
        if found is not None:
            points[step] = found
        fit.train(loss, images(batch))
    return points


@pytest.mark.parametrize("steps", [POINTS, 10 * POINTS, 300 * POINTS])
def test_their_number_is_bounded(steps):
    points = points_of([1.0] * steps, steps)
    assert len(points) <= POINTS * (1 + math.log2(steps / POINTS)) + 1
    assert list(points)[: POINTS - 1] == list(range(1, POINTS))
    assert max(points) > 0.8 * steps


def test_each_is_the_mean_of_the_images_since_the_one_before():
    losses = [float(step % 7) for step in range(5 * POINTS)]
    images = [1 + step % 3 for step in range(5 * POINTS)]
    points = points_of(losses, len(losses), images.__getitem__)
    steps = [0, *points]
    for before, step in itertools.pairwise(steps):
        stretch = range(before, step)
        mean = sum(losses[n] * images[n] for n in stretch) / sum(images[n] for n in stretch)
        assert points[step] == pytest.approx(mean)


def test_no_stretch_reaches_into_another_epoch():
    steps = 3 * POINTS
    points = points_of([float(step // 50) for step in range(steps)], steps_per_epoch=50)
    assert all(value == step // 50 for step, value in points.items())
    assert not any(step % 50 == 0 for step in points)


def test_a_mean_that_is_reset_within_an_epoch_begins_again():
    class Reset(Fit):
        def train(self, loss, images=8):
            if loss == 5.0:
                self.mean.total = self.mean.count = 0.0
            super().train(loss, images)

    assert points_of([1.0, 1.0, 5.0, 2.0, 3.0], 5, fit=Reset()) == {1: 1.0, 2: 1.0, 3: 5.0, 4: 2.0}


def test_a_model_without_a_mean_of_its_loss_has_none():
    assert points_of([1.0] * 9, 9, fit=Fit("reward")) == {}


@pytest.mark.parametrize("cuts", [(POINTS // 2,), (130, 371, 372, 900), (64, 640)])
def test_a_run_that_goes_on_elsewhere_has_the_points_of_the_straight_one(cuts):
    losses = [math.sin(step) + 2 for step in range(10 * POINTS)]
    straight = points_of(losses, 64)
    assert points_of(losses, 64, cuts=cuts) == straight


def test_an_epoch_whose_mean_was_not_restored_begins_anew():
    losses = [float(step) for step in range(20)]
    points = points_of(losses, 20, cuts=(10,), restores=False)
    assert all(points[step] == step - 1 for step in points if step != 10)


def test_only_the_images_of_this_process_count_for_its_speed(monkeypatch):
    fit, before = Fit(), Pace()
    before.begin_epoch()
    fit.train(1.0, images=80)
    before.loss(fit, 1)
    pace = Pace()
    pace.set_state(before.get_state())
    clock = iter((10.0, 12.0))
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    pace.begin_epoch()
    pace.loss(fit, 0)
    fit.train(1.0, images=60)
    pace.end_training(fit)
    assert pace.images_per_second == 30.0
