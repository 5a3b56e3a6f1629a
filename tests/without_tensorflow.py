"""An interpreter in which TensorFlow is not found, as where it is not installed."""

# As `sitecustomize.py` of a folder in PYTHONPATH it also reaches the processes that such an interpreter starts.
WITHOUT_TENSORFLOW = """
from importlib.machinery import PathFinder

found = PathFinder.find_spec

def find_spec(cls, name, path=None, target=None):
    return None if name.split(".")[0] in ("tensorflow", "tensorboard") else found(name, path, target)

PathFinder.find_spec = classmethod(find_spec)  # which pytest makes an attribute of a class of its own
"""
