"""Norms, with the activation that follows them: one layer, and one gradient in closed form."""

from functools import lru_cache, reduce

import tensorflow as tf

from veorl_tf.nets import initial
from veorl_tf.nets.base import Net, read
from veorl_tf.nets.products import column_sums, linear

# Numbers that norms work on at a time on a CPU: as float32, 4 MiB of them.
TILE = 2**20


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
