"""What every layer of the project has in common: explicit sizes, explicit build, stable names."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import lru_cache, reduce
from types import MappingProxyType

import keras
import tensorflow as tf

from veorl_tf.core import seeds
from veorl_tf.nets import initial

ACTIVATIONS = {
    "elu": tf.nn.elu,
    "relu": tf.nn.relu,
    "silu": tf.nn.silu,
    "none": lambda x: x,
}


# Numbers that norms work on at a time on a CPU: as float32, 4 MiB of them.
TILE = 2**20

# What frozen variables are, by their ids: the value, and the value in their net's compute type.
# Replicas trace in threads of their own, each with its own tensors.
_FROZEN: ContextVar[Mapping[int, tuple[tf.Tensor, tf.Tensor]]] = ContextVar(
    "frozen", default=MappingProxyType({})
)


@contextmanager
def frozen(*nets: keras.layers.Layer) -> Iterator[None]:
    """Inside, the weights of `nets` are constants: gradients pass through the nets to what they
    are given, and none reaches the weights. A loop inside finds most of them cast already.

    It holds for weights that are read by `read` or `Net.value`: all but V2's convolutions and the
    codebook, which no loss under it trains.
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
        constant = _FROZEN.get().get(id(variable))
        return self.cast(variable.value if constant is None else constant[1])

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


@dataclass(frozen=True)
class Style:
    """What the layers of one family have in common: a hidden layer is a linear one, `norm` (none,
    layer, rms) and `activation`; kernels start by `kernel`'s rule, given the scale of their output.
    """

    activation: str = "elu"
    norm: str = "none"
    epsilon: float = 1e-5  # of the norm
    biased: bool = True  # whether layers with a norm have a bias all the same
    average_fan: bool | None = None  # of truncated normal kernels; None: Glorot-uniform ones
    tiled: bool = False  # whether norms work on pieces that stay in a CPU's cache

    def kernel(self, scale: float = 1.0, fan_in: int | None = None) -> initial.Rule:
        if self.average_fan is None:
            return initial.glorot_uniform
        return initial.truncated_normal(self.average_fan, scale, fan_in)

    @property
    def plain(self) -> "Style":
        """Of layers that give an output: neither norm nor activation."""
        return replace(self, norm="none", activation="none")

    def bias(self) -> bool:
        """Whether hidden layers have one."""
        return self.norm == "none" or self.biased

    def normalised(self, name: str, width: int, dtype: str) -> "Norm":
        """The norm and the activation of `[..., width]`, as one layer."""
        rest = self.norm, self.activation, self.epsilon, dtype, self.tiled
        return Norm(name, width, *rest)


PLAIN = Style("none")
RELU = Style("relu")
ELU = Style("elu")


class Dense(Net):
    """Dense layer over `[..., D]`; the input may come in parts.

    `widths` are the widths of the parts. The parameters are those of one dense layer over the
    concatenation, kernel `[sum(widths), units]` and bias `[units]`; `part(i, x)` applies only the
    rows of part `i`, without bias and activation, so that what does not depend on a recurrent
    state can be computed for all time steps at once. `scale` is that of the output's start.
    """

    def __init__(self, name, widths, units, style=PLAIN, dtype="float32", scale=1.0):
        super().__init__(name, dtype)
        self.widths = (widths,) if isinstance(widths, int) else tuple(widths)
        self.units, self.style, self.scale = units, style, scale
        self.activation = ACTIVATIONS[style.activation]
        self.norm = None if style.norm == "none" else style.normalised("norm", units, dtype)

    def build(self):
        shape = (sum(self.widths), self.units)
        self.kernel = self.add_weight(shape, "kernel", self.style.kernel(self.scale))
        self.bias = (
            self.add_weight((self.units,), "bias", initial.zeros) if self.style.bias() else None
        )
        if self.norm is not None:
            self.norm.build()

    def rows(self, index: int) -> tf.Tensor:
        """The kernel's rows of part `index`, `[widths[index], units]`."""
        start = sum(self.widths[:index])
        return read(self.kernel)[start : start + self.widths[index]]

    def part(self, rows: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
        """The product with a part's `rows`, `[..., widths[index]] -> [..., units]`; no bias."""
        return linear(self.cast(x), self.cast(rows))

    def with_bias(self, x: tf.Tensor) -> tf.Tensor:
        return x if self.bias is None else x + self.value(self.bias)

    def finish(self, x: tf.Tensor, centred: bool = False) -> tf.Tensor:
        """Norm and activation of the sum of all parts and the bias."""
        return self.activation(x) if self.norm is None else self.norm(x, centred=centred)

    def call(self, *parts):
        x = tf.concat([self.cast(part) for part in parts], -1)
        flat, leading = flatten_leading(x, 1)
        # Product, bias and activation in a row on a matrix: TensorFlow makes one kernel of them.
        # (Not of activation(product + (product + bias)): its optimiser breaks on that and leaves
        # the whole graph as it was.)
        centred = self.centres(flat.shape[0])
        kernel = self.cast(centre(read(self.kernel))) if centred else self.value(self.kernel)
        x = tf.matmul(flat, kernel)
        if self.bias is not None:
            x = tf.nn.bias_add(x, self.value(self.bias))
        return tf.reshape(self.finish(x, centred), leading + [self.units])

    def centres(self, rows: int | None) -> bool:
        """Whether the kernel is centred for a LayerNorm, and not what it gives for `rows`."""
        return (
            self.style.norm == "layer"
            and self.bias is None
            and rows is not None
            and rows > sum(self.widths)
        )


class Norm(Net):
    """LayerNorm (Ba et al. 2016; `layer`, with gain and offset) or RMSNorm (Zhang & Sennrich 2019;
    `rms`, gain alone) over the last axis, then an activation: `[..., D]` to `[..., D]`.

    Statistics are float32.
    """

    def __init__(
        self,
        name,
        width,
        kind="layer",
        activation="none",
        epsilon=1e-5,
        dtype="float32",
        tiled=False,
    ):
        super().__init__(name, dtype)
        self.width, self.kind, self.activation, self.epsilon = width, kind, activation, epsilon
        self.tiled = tiled

    def build(self):
        self.gamma = self.add_weight((self.width,), "gamma", initial.ones)
        self.beta = None
        if self.kind == "layer":
            self.beta = self.add_weight((self.width,), "beta", initial.zeros)

    def call(self, x, centred=False):
        """`centred` says that the mean of `x` is 0 already (see `centre`)."""
        parameters = (self.gamma, self.beta)[: 2 if self.kind == "layer" else 1]
        parameters = [tf.convert_to_tensor(read(v)) for v in parameters]
        centres = self.kind == "layer" and not centred
        function = normalise(centres, self.activation, self.epsilon, self.tiled)
        return function(self.cast(x), *parameters)


def centre(x: tf.Tensor) -> tf.Tensor:
    """`x [..., D]` less its mean over the last axis.

    What a LayerNorm does first is linear: done to a kernel's outputs, it is done to all that the
    kernel gives, and a kernel is small where there are many rows.
    """
    return x - tf.reduce_mean(x, -1, keepdims=True)


@lru_cache(maxsize=None)
def normalise(centres: bool, activation: str, epsilon: float, tiled: bool = False):
    """A function of `x [..., D]`, a gain and maybe an offset `[D]`; float32 inside.

    Its gradient is in closed form, in a third of the passes over memory that automatic
    differentiation takes; `tiled`, the passes are over pieces that stay in a CPU's cache
    (docs/speed.md).
    """
    silu = activation == "silu"
    if activation not in ("none", "silu"):
        raise ValueError(f"no gradient is written for a norm followed by {activation!r}")

    def affine(normal, parameters):
        y = normal * parameters[0]
        return y if len(parameters) == 1 else y + parameters[1]

    def forward(x, parameters):
        full = centre(tf.cast(x, tf.float32)) if centres else tf.cast(x, tf.float32)
        scale = tf.math.rsqrt(tf.reduce_mean(tf.square(full), -1, keepdims=True) + epsilon)
        normal = full * scale
        y = affine(normal, parameters)
        return tf.cast(y * tf.sigmoid(y) if silu else y, x.dtype), normal, scale

    def backward(upstream, normal, scale, parameters):
        to_x = tf.cast(upstream, tf.float32)
        if silu:
            y = affine(normal, parameters)
            gate = tf.sigmoid(y)
            to_x *= gate + tf.raw_ops.SigmoidGrad(y=gate, dy=y)
        product, gain = to_x * normal, parameters[0]
        sums = [column_sums(part) for part in (product, to_x)[: len(parameters)]]
        to_x *= gain
        to_x -= normal * linear(product, gain[:, None] / float(normal.shape[-1]))
        to_x = (centre(to_x) if centres else to_x) * scale
        return tf.cast(to_x, upstream.dtype), *sums

    @tf.custom_gradient
    def function(x, *parameters):
        count = tiles(x.shape) if tiled else 1
        outputs, *kept = zip(*(forward(tile, parameters) for tile in cut(x, count)))

        def gradient(upstream):
            upstream = cut(upstream, count)
            to_x, *sums = zip(*(backward(*tile, parameters) for tile in zip(upstream, *kept)))
            return paste(to_x), *[reduce(tf.add, parts) for parts in sums]

        return paste(outputs), gradient

    return function


def tiles(shape: tf.TensorShape) -> int:
    """Into how many pieces a tensor is cut along its first axis, of at most `TILE` numbers each."""
    if not shape.is_fully_defined():
        return 1
    count, wanted = shape[0], shape.num_elements() / TILE
    return next((n for n in range(1, count) if count % n == 0 and n >= wanted), count)


def cut(x: tf.Tensor, count: int) -> list[tf.Tensor]:
    return tf.split(x, count) if count > 1 else [x]


def paste(parts) -> tf.Tensor:
    return tf.concat(parts, 0) if len(parts) > 1 else parts[0]


def column_sums(x: tf.Tensor) -> tf.Tensor:
    """Sums of `x [..., D]` over all leading axes, as a product: faster than a reduction."""
    x, _ = flatten_leading(x, 1)
    return tf.matmul(tf.ones([1, tf.shape(x)[0]], x.dtype), x)[0]


class MLP(Net):
    """`layers` hidden layers of `units`, then a plain output layer: `[..., D] -> [..., out]`.

    The output is float32 whatever the compute type, since distributions are built on it; `scale` is
    that of its start (0: an output of zeros).
    """

    def __init__(self, name, width, units, layers, out, style=ELU, dtype="float32", scale=1.0):
        super().__init__(name, dtype)
        widths = [width] + [units] * layers
        self.hidden = [Dense(f"hidden{i}", widths[i], units, style, dtype) for i in range(layers)]
        self.out = Dense("out", widths[-1], out, style.plain, dtype, scale)

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

    A weight of a Keras layer inside starts by its name: kernels Glorot-uniform, biases zero.
    """
    by_name = {"kernel": initial.glorot_uniform, "bias": initial.zeros}
    for variable in net.weights:
        rng = seeds.generator(seed, "initialise", variable.path, 0)
        rule = getattr(variable, "rule", None) or by_name.get(variable.path.rsplit("/", 1)[-1])
        if rule is None:
            raise ValueError(f"no initial value is defined for {variable.path!r}")
        variable.assign(rule(tuple(variable.shape), rng))
