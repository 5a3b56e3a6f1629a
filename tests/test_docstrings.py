"""The examples in docstrings run and give what they show."""

import doctest
import importlib
import pkgutil

import keras
import numpy as np
import pytest

import kvision

pytestmark = pytest.mark.tensorflow_only  # shapes and numbers are printed as TensorFlow prints them

MODULES = [
    module.name
    for module in pkgutil.walk_packages(kvision.__path__, "kvision.")
    if not module.name.rsplit(".", 1)[-1].startswith("_")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_of(name):
    module = importlib.import_module(name)
    globs = vars(module) | {"keras": keras, "kvision": kvision, "np": np, "layers": keras.layers}
    finder = doctest.DocTestFinder(exclude_empty=True)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    failures = []
    for test in finder.find(module, name, globs=globs):
        if test.examples:
            runner.run(test, out=failures.append)
    assert not failures, "".join(failures)
