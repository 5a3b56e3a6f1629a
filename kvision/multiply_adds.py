"""How many multiply-adds a forward pass takes."""

import contextlib
import math

import keras

from kvision._keras import layers_of


def multiply_adds(graph):
    """`{id(layer): multiply-adds of one image}`, counted by running the model on shapes alone."""
    products = {}

    def count(layer):
        call = layer.call

        def counting_call(inputs, *args, **kwargs):
            outputs = call(inputs, *args, **kwargs)
            products[id(layer)] = products.get(id(layer), 0) + _products(layer, inputs.shape, outputs.shape)
            return outputs

        layer.call = counting_call
        return lambda: layer.__dict__.pop("call")

    layers = {id(layer): layer for layer in layers_of(graph)}.values()
    with contextlib.ExitStack() as stack:
        for layer in layers:
            if hasattr(layer, "multiply_adds") or hasattr(layer, "kernel"):
                stack.callback(count(layer))
        _RunOnShapes(graph)(keras.KerasTensor((1, *graph.inputs[0].shape[1:]), dtype=graph.inputs[0].dtype))
    return products


class _RunOnShapes(keras.Layer):
    """Runs every layer's `call`, where the model itself would only reuse the shapes it was built with."""

    def __init__(self, graph):
        super().__init__()
        self._run = graph.call

    def call(self, image):
        return self._run(image)


def _products(layer, input_shape, output_shape):
    if hasattr(layer, "multiply_adds"):
        return layer.multiply_adds(tuple(input_shape))
    kernel = math.prod(layer.kernel.shape)
    if isinstance(layer, keras.layers.Dense):
        return kernel * _positions(input_shape)
    return kernel * _positions(input_shape if "Transpose" in type(layer).__name__ else output_shape)


def _positions(shape):
    """Number of positions of one image, whose windows may lie in the batch axis."""
    return math.prod(size or 1 for size in shape[:-1])
