"""What every layer of the project has in common: explicit sizes, explicit build, stable names."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType

import keras
import tensorflow as tf

from veorl_tf.core import seeds
from veorl_tf.nets import initial

# What frozen variables are, by their ids: the value, and the value in their net's compute type.
# Replicas trace in threads of their own, each with its own tensors.
_FROZEN: ContextVar[Mapping[int, tuple[tf.Tensor, tf.Tensor]]] = ContextVar(
    "frozen", default=MappingProxyType({})
)


@contextmanager
def frozen(*nets: keras.layers.Layer) -> Iterator[None]:
    """Inside, the weights of `nets` are constants: gradients pass through the nets to what they
    are given, and none reaches the weights. A loop inside finds most of them cast already.

    It holds for weights that are read by `read` or `Net.value`: all but the codebook, which no loss
    under it trains.
    """
    constants = {}
    for net in nets:
        for variable in net.weights:
            value = tf.stop_gradient(variable.value)
            constants[id(variable)] = value, tf.cast(value, net.compute_dtype)
    token = _FROZEN.set({**_FROZEN.get(), **constants})
    try:
        yield
    finally:
        _FROZEN.reset(token)


def read(variable: keras.Variable) -> tf.Variable | tf.Tensor:
    """A variable's value; a constant inside `frozen`."""
    constant = _FROZEN.get().get(id(variable))
    return variable.value if constant is None else constant[0]


class Net(keras.layers.Layer):
    """A layer whose sizes are all known when it is made.

    `__init__` creates the sub-layers, `build()` (no arguments) builds them with explicit input
    widths, so that every variable's path, for example `trunk/cell/dense/kernel`, exists before the
    first call and never depends on the order of calls. Methods take and give tensors in any
    floating type; matrix products run in `compute_dtype`, statistics leave in float32.
    """

    def __init__(self, name: str, dtype: str = "float32"):
        super().__init__(name=name, dtype=dtype, autocast=False)

    def add_weight(self, shape, name: str, rule: initial.Rule) -> keras.Variable:
        """A variable of zeros, for which `initialise` draws values by `rule`."""
        variable = super().add_weight(shape=shape, name=name, initializer="zeros", autocast=False)
        variable.rule = rule
        return variable

    def cast(self, x: tf.Tensor) -> tf.Tensor:
        """`x` in the type that matrix products run in."""
        return tf.cast(x, self.compute_dtype)

    def value(self, variable: keras.Variable) -> tf.Tensor:
        """A variable in the type that matrix products run in."""
        exact, ready = _FROZEN.get().get(id(variable), (variable.value, None))
        if ready is None or ready.dtype != self.compute_dtype:
            return self.cast(exact)
        return ready


def flatten_leading(x: tf.Tensor, inner: int) -> tuple[tf.Tensor, list]:
    """Merges all but the last `inner` axes; returns the tensor and the merged axes' sizes."""
    rank = len(x.shape)
    dynamic = tf.shape(x)
    sizes = [x.shape[i] if x.shape[i] is not None else dynamic[i] for i in range(rank)]
    return tf.reshape(x, [-1] + sizes[rank - inner :]), sizes[: rank - inner]


def initialise(net: keras.layers.Layer, seed: int) -> None:
    """Draws every weight of `net` from (seed, path), so that no net's draw depends on another's."""
    for variable in net.weights:
        rng = seeds.generator(seed, "initialise", variable.path, 0)
        rule = getattr(variable, "rule", None)
        if rule is None:
            raise ValueError(f"no initial value is defined for {variable.path!r}")
        variable.assign(rule(tuple(variable.shape), rng))
