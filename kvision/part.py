"""What heads are made of: layers whose constructor's signature is their config, and whose options may be changed."""

import functools
import inspect

import keras

from kvision._keras import layers_of


class FromSignature:
    """An object whose config is the signature of its `__init__`: every argument is an attribute of the same name.

    Options of the base class (`name`, `dtype`, …) come and go by `**options`. Parts may be layers, models, or other
    serializable objects, alone or in lists.
    """

    def get_config(self):
        base = super().get_config() if hasattr(super(), "get_config") else {}
        own = {name: keras.saving.serialize_keras_object(getattr(self, name)) for name in _arguments(type(self))}
        return base | own

    @classmethod
    def from_config(cls, config):
        return cls(**{name: keras.saving.deserialize_keras_object(value) for name, value in config.items()})


class Part(FromSignature, keras.layers.Layer):
    """A layer of a head, its weights made at construction; it is used by its methods, not called.

    An option that is changed afterwards, such as `score_threshold`, holds from the next `fit`, `evaluate` or `predict`
    on: the model sees that its compiled functions are out of date.
    """

    def __setattr__(self, name, value):
        if self.__dict__.get("_is_complete"):
            if name in _arguments(type(self)):
                self.__dict__["_num_changes"] = self.__dict__.get("_num_changes", 0) + 1
            elif not hasattr(self, name):
                self._refuse_option_of_parts(name)
        super().__setattr__(name, value)

    def _refuse_option_of_parts(self, name):
        """Set here, it would have no effect."""
        owners = [part.name for part in self._parts() if name in _arguments(type(part))]
        if owners:
            raise ValueError(f"{self.name} has no option {name!r}; its part {' and '.join(owners)} has: set it there.")

    def _parts(self):
        return [layer for layer in layers_of(self) if isinstance(layer, Part)]

    def complete(self):
        """At the end of `__init__`: all weights are there."""
        self.built = True
        self._is_complete = True

    @property
    def num_changes(self):
        """How often options of this part and of its parts were changed since they were made."""
        return sum(part.__dict__.get("_num_changes", 0) for part in (self, *self._parts()))


def option_of(path, name):
    """A property of a `Part` that reads and sets the option `name` of one of its parts, found by `path(self)`."""
    return property(
        lambda self: getattr(path(self), name),
        lambda self, value: setattr(path(self), name, value),
        doc=f"The {name} of the part that decodes.",
    )


@functools.cache
def _arguments(cls):
    parameters = inspect.signature(cls.__init__).parameters.values()
    return [p.name for p in parameters if p.name != "self" and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
