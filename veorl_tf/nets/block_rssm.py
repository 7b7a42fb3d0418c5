"""DreamerV3's world model of 2025: a GRU whose hidden layers are block-diagonal."""

import tensorflow as tf

from veorl_tf.nets import initial
from veorl_tf.nets.base import Net, flatten_leading, read
from veorl_tf.nets.dense import Dense, Style
from veorl_tf.nets.products import add_bias, linear
from veorl_tf.nets.rssm import Dynamics, gated
from veorl_tf.nets.scan import multiply


class BlockLinear(Net):
    """`blocks` linear maps side by side, `[..., G, I]` to `[..., G, O]`: a dense layer from `width`
    = G I to `units` = G O whose kernel is zero outside the blocks.
    """

    def __init__(self, name, width, units, blocks, style: Style, dtype="float32"):
        super().__init__(name, dtype)
        if width % blocks or units % blocks:
            raise ValueError(f"{name}: {width} and {units} are not multiples of {blocks} blocks")
        self.width, self.units, self.blocks, self.style = width, units, blocks, style

    def build(self):
        shape = (self.blocks, self.width // self.blocks, self.units // self.blocks)
        self.kernel = self.add_weight(shape, "kernel", self.style.kernel(fan_in=self.width))
        self.bias = self.add_weight((self.units,), "bias", initial.zeros)

    def call(self, x):
        return self.with_bias(multiply(self.cast(x), self.value(self.kernel)))

    def with_bias(self, x: tf.Tensor) -> tf.Tensor:
        """`x [..., G, O]` plus the bias `[G O]`."""
        flat, leading = flatten_leading(x, 2)
        flat = add_bias(tf.reshape(flat, [-1, self.units]), read(self.bias))
        return tf.reshape(flat, leading + [self.blocks, self.units // self.blocks])


class BlockRSSM(Dynamics):
    """Deterministic state, sample and action are projected to `hidden` each; every one of `blocks`
    blocks of the GRU sees the projections and its own slice of the deterministic state.
    """

    def __init__(
        self,
        name,
        action,
        embed,
        deter,
        hidden,
        latent,
        style: Style,
        blocks=8,
        unroll=True,
        dtype="float32",
        bounded=True,
    ):
        super().__init__(name, action, embed, deter, hidden, latent, style, unroll, dtype, bounded)
        self.hidden, self.blocks = hidden, blocks
        self.deter_in = Dense("deter_in", deter, hidden, style, dtype)
        self.stoch_in = Dense("stoch_in", latent.size, hidden, style, dtype)
        self.action_in = Dense("action_in", action, hidden, style, dtype)
        self.layer = BlockLinear("layer", deter + 3 * blocks * hidden, deter, blocks, style, dtype)
        self.norm = style.normalised("norm", deter, dtype)
        self.gates = BlockLinear("gates", deter, 3 * deter, blocks, style, dtype)
        self.img_out0 = Dense("img_out0", deter, hidden, style, dtype)
        self.img_out1 = Dense("img_out1", hidden, hidden, style, dtype)

    def build(self):
        super().build()
        for layer in (
            self.deter_in,
            self.stoch_in,
            self.action_in,
            self.layer,
            self.norm,
            self.gates,
            self.img_out0,
            self.img_out1,
        ):
            layer.build()

    def layer_kernels(self) -> tuple[tf.Tensor, tf.Tensor]:
        """The layer's kernel as that of the blocks' own slices `[G, D / G, D / G]`, and that of the
        projections that all blocks see, `[3 hidden, D]`: a plain matrix."""
        kernel, own = read(self.layer.kernel), self.deter // self.blocks
        shared = tf.transpose(kernel[:, own:], [1, 0, 2])
        return kernel[:, :own], tf.reshape(shared, [-1, self.deter])

    def drive(self, action):
        rows = self.layer_kernels()[1][2 * self.hidden :]
        x = linear(self.action_in(self.limited(action)), self.cast(rows))
        return add_bias(x, read(self.layer.bias))

    def kernels(self):
        own, shared = self.layer_kernels()
        return {
            "deter_in": read(self.deter_in.kernel),
            "stoch_in": read(self.stoch_in.kernel),
            "own": own,
            "shared": shared[: 2 * self.hidden],
            "gates": read(self.gates.kernel),
            **super().kernels(),
        }

    def advance(self, product, state, drive):
        deter, slices = self.cast(state["deter"]), [-1, self.blocks, self.deter // self.blocks]
        through = lambda layer, name, x: layer.finish(layer.with_bias(product(name, x)))
        projected = (
            through(self.deter_in, "deter_in", deter),
            through(self.stoch_in, "stoch_in", state["stoch"]),
        )
        x = tf.reshape(product("own", tf.reshape(deter, slices)), [-1, self.deter])
        x = self.norm(x + product("shared", tf.concat(projected, -1)) + drive)
        gates = self.gates.with_bias(product("gates", tf.reshape(x, slices)))
        flat = [tf.reshape(gate, [-1, self.deter]) for gate in tf.split(gates, 3, -1)]
        return gated(*flat, deter)

    def predict(self, deter):
        return self.img_dist(self.img_out1(self.img_out0(deter)))

    def without_action(self, path, rows):
        return 0 if path.endswith("/action_in/kernel") else rows
