"""On JAX everything but `kvision.data` runs where TensorFlow is not installed."""

import os
import subprocess
import sys

import pytest

from tests.without_tensorflow import WITHOUT_TENSORFLOW

pytestmark = pytest.mark.jax

IMPORTS = """
import importlib, pkgutil
import kvision

names = [module.name for module in pkgutil.walk_packages(kvision.__path__, "kvision.")]
names = [name for name in names if not name.startswith("kvision.data") and not name.endswith("_tensorflow")]
for name in names:
    importlib.import_module(name)
print(len(names))
"""

CLASSIFIER = """
import keras, numpy as np, kvision

rng = np.random.default_rng(0)
images, labels = rng.random((8, 32, 32, 1), dtype="float32"), rng.integers(0, 10, 8)
model = kvision.applications.LeNet5("modern")
kvision.training.describe(model)
model.compile(kvision.optimizers.SGD(0.01, momentum=0.9), "sparse_categorical_crossentropy", metrics=["accuracy"])
callbacks = [kvision.callbacks.Vitals(), kvision.callbacks.RunHistory("run")]
model.fit(images, labels, batch_size=4, epochs=2, verbose=0, validation_data=(images, labels), callbacks=callbacks)
model.save("model.keras")
scores = keras.models.load_model("model.keras").predict(images, verbose=0)
np.testing.assert_allclose(scores, model.predict(images, verbose=0), atol=1e-6)
print(kvision.visualize.gradient(model, images[:1]).shape)
"""

DETECTOR = """
import numpy as np
from tests.applications.detection.rows import ROWS

model = next(row for row in ROWS if row.name == "retinanet").tiny()
model.compile("sgd")
images = np.random.default_rng(0).uniform(0, 255, (2, 64, 64, 3)).astype("float32")
targets = {"boxes": np.array([[[4, 6, 30, 34]], [[10, 8, 42, 60]]], "float32"), "labels": np.array([[0], [1]])}
assert np.isfinite(model.fit(images, targets, batch_size=2, verbose=0).history["loss"]).all()
found = model.predict(images, verbose=0)
print(found["boxes"].shape)
"""


@pytest.mark.parametrize("script", [IMPORTS, CLASSIFIER, DETECTOR], ids=["imports", "classifier", "detector"])
def test_it_runs(script, tmp_path):
    end = "\nimport sys\nassert 'tensorflow' not in sys.modules\n"
    path = os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]])
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_TENSORFLOW)
    done = subprocess.run(
        [sys.executable, "-c", script + end],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path, "KERAS_BACKEND": "jax"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout
