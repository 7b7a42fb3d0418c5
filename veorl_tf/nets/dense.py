"""Dense layers and what the layers of one family have in common."""

from dataclasses import dataclass, replace

import tensorflow as tf

from veorl_tf.nets import initial
from veorl_tf.nets.base import Net, flatten_leading, read
from veorl_tf.nets.norm import Norm, centre
from veorl_tf.nets.products import add_bias, linear, product

ACTIVATIONS = {
    "elu": tf.nn.elu,
    "relu": tf.nn.relu,
    "silu": tf.nn.silu,
    "none": lambda x: x,
}


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
        return x if self.bias is None else add_bias(x, read(self.bias))

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
        x = self.with_bias(product(flat, kernel))
        return tf.reshape(self.finish(x, centred), leading + [self.units])

    def centres(self, rows: int | None) -> bool:
        """Whether the kernel is centred for a LayerNorm, and not what it gives for `rows`."""
        return (
            self.style.norm == "layer"
            and self.bias is None
            and rows is not None
            and rows > sum(self.widths)
        )


class MLP(Net):
    """`layers` hidden layers of `units`, then a plain output layer: `[..., D] -> [..., out]`.

    The output layer is float32 whatever the compute type, since distributions are built on it: in
    bfloat16 a return of 700.7 would be 700. `scale` is that of its start (0: an output of zeros).
    """

    def __init__(self, name, width, units, layers, out, style=ELU, dtype="float32", scale=1.0):
        super().__init__(name, dtype)
        widths = [width] + [units] * layers
        self.hidden = [Dense(f"hidden{i}", widths[i], units, style, dtype) for i in range(layers)]
        self.out = Dense("out", widths[-1], out, style.plain, scale=scale)

    def build(self):
        for layer in [*self.hidden, self.out]:
            layer.build()

    def call(self, x):
        x, leading = flatten_leading(x, 1)
        for layer in self.hidden:
            x = layer(x)
        return tf.reshape(self.out(x), leading + [self.out.units])
