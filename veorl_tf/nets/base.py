"""What every layer of the project has in common: explicit sizes, explicit build, stable names."""

import keras
import numpy as np
import tensorflow as tf

from veorl_tf.core import seeds

ACTIVATIONS = {
    "elu": tf.nn.elu,
    "relu": tf.nn.relu,
    "silu": tf.nn.silu,
    "none": lambda x: x,
}


class Net(keras.layers.Layer):
    """A layer whose sizes are all known when it is made.

    `__init__` creates the sub-layers, `build()` (no arguments) builds them with explicit input
    widths, so that every variable's path, for example `trunk/cell/dense/kernel`, exists before the
    first call and never depends on the order of calls. Methods take and give tensors in any
    floating type; matrix products run in `compute_dtype`, statistics leave in float32.
    """

    def __init__(self, name: str, dtype: str = "float32"):
        super().__init__(name=name, dtype=dtype, autocast=False)

    def cast(self, x: tf.Tensor) -> tf.Tensor:
        """`x` in the type that matrix products run in."""
        return tf.cast(x, self.compute_dtype)

    def value(self, variable: keras.Variable) -> tf.Tensor:
        """A variable in the type that matrix products run in."""
        return tf.cast(variable.value, self.compute_dtype)

    @property
    def leaf(self) -> dict:
        """Keyword arguments for the Keras layers inside: the same precision policy."""
        return {"dtype": self.dtype_policy}


def flatten_leading(x: tf.Tensor, inner: int) -> tuple[tf.Tensor, list]:
    """Merges all but the last `inner` axes; returns the tensor and the merged axes' sizes."""
    rank = len(x.shape)
    dynamic = tf.shape(x)
    sizes = [x.shape[i] if x.shape[i] is not None else dynamic[i] for i in range(rank)]
    return tf.reshape(x, [-1] + sizes[rank - inner :]), sizes[: rank - inner]


def linear(x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """`x [..., D] @ kernel [D, U]` as one matrix product over all leading axes."""
    flat, leading = flatten_leading(x, 1)
    return tf.reshape(tf.matmul(flat, kernel), leading + [kernel.shape[-1]])


class Dense(Net):
    """Dense layer over `[..., D]`; the input may come in parts.

    `widths` are the widths of the parts. The parameters are those of one dense layer over the
    concatenation, kernel `[sum(widths), units]` and bias `[units]`; `part(i, x)` applies only the
    rows of part `i`, without bias and activation, so that what does not depend on a recurrent
    state can be computed for all time steps at once.
    """

    def __init__(self, name, widths, units, activation="none", dtype="float32"):
        super().__init__(name, dtype)
        self.widths = (widths,) if isinstance(widths, int) else tuple(widths)
        self.units = units
        self.activation = ACTIVATIONS[activation]

    def build(self):
        self.kernel = self.add_weight(shape=(sum(self.widths), self.units), name="kernel")
        self.bias = self.add_weight(shape=(self.units,), initializer="zeros", name="bias")

    def rows(self, index: int) -> tf.Tensor:
        """The kernel's rows of part `index`, `[widths[index], units]`. A loop takes them before it
        begins: sliced inside, every step's gradient would have the size of the whole kernel."""
        start = sum(self.widths[:index])
        return self.kernel.value[start : start + self.widths[index]]

    def part(self, rows: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
        """The product with a part's `rows`, `[..., widths[index]] -> [..., units]`; no bias."""
        return linear(self.cast(x), self.cast(rows))

    def with_bias(self, x: tf.Tensor) -> tf.Tensor:
        return x + self.value(self.bias)

    def call(self, *parts):
        x = tf.concat([self.cast(part) for part in parts], -1)
        flat, leading = flatten_leading(x, 1)
        # Product, bias and activation in a row on a matrix: TensorFlow makes one kernel of them.
        # (Not of activation(product + (product + bias)): its optimiser breaks on that and leaves
        # the whole graph as it was.)
        x = tf.nn.bias_add(tf.matmul(flat, self.value(self.kernel)), self.value(self.bias))
        return tf.reshape(self.activation(x), leading + [self.units])


class LayerNorm(Net):
    """LayerNorm over the last axis (Ba et al. 2016), `[..., D]` to `[..., D]`; float32 inside."""

    EPSILON = 1e-5

    def __init__(self, name, width, dtype="float32"):
        super().__init__(name, dtype)
        self.width = width

    def build(self):
        self.gamma = self.add_weight(shape=(self.width,), initializer="ones", name="gamma")
        self.beta = self.add_weight(shape=(self.width,), initializer="zeros", name="beta")

    def call(self, x):
        x, gamma, beta = (tf.cast(v, tf.float32) for v in (x, self.gamma.value, self.beta.value))
        return self.cast(_layer_norm(x, gamma, beta, self.EPSILON))


@tf.custom_gradient
def _layer_norm(x, gamma, beta, epsilon):
    """With the gradient in closed form: a third of the passes over memory."""
    centred = x - tf.reduce_mean(x, -1, keepdims=True)
    scale = tf.math.rsqrt(tf.reduce_mean(tf.square(centred), -1, keepdims=True) + epsilon)
    normal = centred * scale

    def gradient(upstream):
        leading = list(range(len(upstream.shape) - 1))
        inner = upstream * gamma
        mean = tf.reduce_mean(inner, -1, keepdims=True)
        slope = tf.reduce_mean(inner * normal, -1, keepdims=True)
        return (
            scale * (inner - mean - normal * slope),
            tf.reduce_sum(upstream * normal, leading),
            tf.reduce_sum(upstream, leading),
            None,
        )

    return normal * gamma + beta, gradient


class MLP(Net):
    """`layers` hidden layers of `units`, then a plain output layer: `[..., D] -> [..., out]`.

    The output is float32 whatever the compute type, since distributions are built on it.
    """

    def __init__(self, name, width, units, layers, out, activation="elu", dtype="float32"):
        super().__init__(name, dtype)
        widths = [width] + [units] * layers
        self.hidden = [
            Dense(f"hidden{i}", widths[i], units, activation, dtype) for i in range(layers)
        ]
        self.out = Dense("out", widths[-1], out, dtype=dtype)

    def build(self):
        for layer in [*self.hidden, self.out]:
            layer.build()

    def call(self, x):
        x, leading = flatten_leading(x, 1)
        for layer in self.hidden:
            x = layer(x)
        return tf.reshape(tf.cast(self.out(x), tf.float32), leading + [self.out.units])


def initialise(net: keras.layers.Layer, seed: int) -> None:
    """Draws every weight of `net` from (seed, path), so that no net's draw depends on another's.

    Kernels are Glorot-uniform (Dreamer's choice), codebooks uniform in +-1/entries (VeoRL's),
    LayerNorm gains one, biases zero.
    """
    for variable in net.weights:
        kind = variable.path.rsplit("/", 1)[-1]
        rng = seeds.generator(seed, "initialise", variable.path, 0)
        variable.assign(_initial_value(kind, tuple(variable.shape), rng))


def _initial_value(kind: str, shape: tuple, rng: np.random.Generator) -> np.ndarray:
    if kind == "kernel":
        receptive = int(np.prod(shape[:-2]))
        limit = np.sqrt(6.0 / (receptive * (shape[-2] + shape[-1])))
        return rng.uniform(-limit, limit, shape).astype(np.float32)
    if kind == "codebook":
        return rng.uniform(-1 / shape[0], 1 / shape[0], shape).astype(np.float32)
    if kind in ("bias", "beta"):
        return np.zeros(shape, np.float32)
    if kind == "gamma":
        return np.ones(shape, np.float32)
    raise ValueError(f"no initial value is defined for a variable called {kind!r}")
