"""Recurrent state-space models.

A state is a dict of tensors with equal leading axes: `deter` `[..., D]`, the flattened sample
`stoch` `[..., S]` and the latent's statistics (`mean`, `std`, or `logit`). Sequences are `[B, T,
...]` outside and `[T, B, ...]` only inside the loop.
"""

from dataclasses import replace

import tensorflow as tf

from veorl_tf.nets import initial
from veorl_tf.nets.base import Net, read
from veorl_tf.nets.dense import ELU, Dense, Style
from veorl_tf.nets.scan import Product, multiply, scan, scan_with_products, time_major

State = dict[str, tf.Tensor]


class Dynamics(Net):
    """What all recurrent state-space models have in common.

    A kind of model says how the deterministic state advances (`advance`) and what the
    statistics of posterior (`correct`) and prior (`predict`) are made from. In a loop over time,
    whatever does not depend on the recurrent state is one product over all steps: of actions
    (`drive`), of embeddings (`watch`), and the prior.

    Args:
        action, embed: widths of what drives the model and of what it observes.
        deter: D, the deterministic state's width.
        hidden: width of the hidden layers.
        latent: a distribution of `nets.distributions`.
        bounded: scale actions down to 1 where they exceed it.
    """

    def __init__(self, name, action, embed, deter, hidden, latent, style, unroll, dtype, bounded):
        super().__init__(name, dtype)
        self.latent, self.deter, self.unroll = latent, deter, unroll
        self.action_size, self.bounded = action, bounded
        self.feature_size = latent.size + deter
        self.img_dist = Dense("img_dist", hidden, latent.outputs, style.plain, dtype)
        self.obs_out = Dense("obs_out", (deter, embed), hidden, style, dtype)
        self.obs_dist = Dense("obs_dist", hidden, latent.outputs, style.plain, dtype)

    def build(self):
        for layer in (self.img_dist, self.obs_out, self.obs_dist):
            layer.build()

    # ----- what a kind of model says ------------------------------------------------------------

    def drive(self, action: tf.Tensor) -> tf.Tensor:
        """What actions `[..., A]` contribute to steps."""
        raise NotImplementedError("drive(action [..., A]) -> [..., X]")

    def kernels(self) -> dict[str, tf.Tensor]:
        """The kernels that `advance` and `correct` multiply with, by name."""
        return {"deter": self.obs_out.rows(0), "posterior": read(self.obs_dist.kernel)}

    def advance(self, product: Product, state: State, drive: tf.Tensor) -> tf.Tensor:
        """The next `deter [B, D]`."""
        raise NotImplementedError("advance(product, state, drive) -> [B, D]")

    def predict(self, deter: tf.Tensor) -> tf.Tensor:
        """What the prior's statistics are made from."""
        raise NotImplementedError("predict(deter [..., D]) -> [..., outputs]")

    def without_action(self, path: str, rows: int) -> int:
        """How many of the first `rows` rows of the weight at `path` read no action."""
        raise NotImplementedError("without_action(path, rows) -> int")

    # ----- what they share ----------------------------------------------------------------------

    def watch(self, embed: tf.Tensor) -> tf.Tensor:
        """What embeddings `[..., E]` contribute to posteriors."""
        return self.obs_out.with_bias(self.obs_out.part(self.obs_out.rows(1), embed))

    def correct(self, product: Product, deter: tf.Tensor, watch: tf.Tensor) -> tf.Tensor:
        """What the posterior's statistics are made from."""
        hidden = self.obs_out.finish(product("deter", deter) + watch)
        return self.obs_dist.with_bias(product("posterior", hidden))

    def limited(self, action: tf.Tensor) -> tf.Tensor:
        """`action`, scaled down to 1 where it is beyond if that is asked for; the scale has no
        gradient."""
        if not self.bounded:
            return action
        return action / tf.stop_gradient(tf.maximum(1.0, tf.abs(action)))

    # ----- states -------------------------------------------------------------------------------

    def initial(self, batch) -> State:
        """The state before the first frame: all zeros, statistics included."""
        stats = {k: tf.zeros([batch, *shape]) for k, shape in self.latent.shapes.items()}
        return {
            "deter": tf.zeros([batch, self.deter], self.compute_dtype),
            "stoch": tf.zeros([batch, self.latent.size]),
            **stats,
        }

    def features(self, state: State) -> tf.Tensor:
        """`[..., S + D]`: the sample, then the deterministic part, in the compute type."""
        return tf.concat([self.cast(state["stoch"]), self.cast(state["deter"])], -1)

    def prior(self, deter: tf.Tensor) -> State:
        """Statistics of the prior p(z | h) for `deter [..., D]`."""
        return self.latent.stats(self.predict(deter))

    # ----- sequences and steps ------------------------------------------------------------------

    def observe(self, embed: tf.Tensor, action: tf.Tensor, seed: tf.Tensor) -> tuple[State, State]:
        """Filters a sequence from the initial state.

        `embed [B, T, E]` and `action [B, T, A]`, action[t] being the one that led to frame t, give
        posterior states `[B, T, ...]` and the prior's statistics at the same steps.
        """
        batch, steps = embed.shape[0] or tf.shape(embed)[0], embed.shape[1]
        inputs = (
            time_major(self.drive(action)),
            time_major(self.watch(embed)),
            self.latent.noise(seed, [steps, batch]),
        )

        def step(state, inputs, product):
            drive, watch, noise = inputs
            deter = self.advance(product, state, drive)
            return self._sampled(deter, self.correct(product, deter, watch), noise)

        states = scan_with_products(
            step, self.initial(batch), inputs, self.kernels(), self.compute_dtype, self.unroll
        )
        posterior = {k: time_major(v) for k, v in states.items()}
        return posterior, self.prior(posterior["deter"])

    def observe_step(self, state: State, action, embed, noise) -> State:
        """One step of `observe`: `[B, ...]` states, `action [B, A]`, `embed [B, E]`."""
        deter = self.next_deter(state, action)
        return self._sampled(deter, self.infer(deter, embed), noise)

    def imagine_step(self, state: State, action, noise) -> State:
        """One step without a frame: the next state is a sample of the prior."""
        deter = self.next_deter(state, action)
        return self._sampled(deter, self.predict(deter), noise)

    def imagine(self, state: State, action: tf.Tensor, seed: tf.Tensor) -> State:
        """Open loop from `state [B, ...]` under `action [B, T, A]`: states `[B, T, ...]`."""
        batch, steps = action.shape[0], action.shape[1]
        inputs = (time_major(action), self.latent.noise(seed, [steps, batch]))
        states = scan(lambda s, x: self.imagine_step(s, *x), state, inputs, self.unroll)
        return {k: time_major(v) for k, v in states.items()}

    def next_deter(self, state: State, action) -> tf.Tensor:
        """`advance` of a single step."""
        return self.advance(self._product(), state, self.drive(action))

    def infer(self, deter: tf.Tensor, embed: tf.Tensor) -> tf.Tensor:
        """`correct` of a single step."""
        return self.correct(self._product(), deter, self.watch(embed))

    def _product(self) -> Product:
        kernels = self.kernels()
        return lambda name, x: multiply(self.cast(x), self.cast(kernels[name]))

    def _sampled(self, deter: tf.Tensor, outputs: tf.Tensor, noise: tf.Tensor) -> State:
        stats = self.latent.stats(outputs)
        return {"deter": deter, "stoch": self.latent.sample(stats, noise), **stats}


class GRUCell(Net):
    """GRU with one LayerNorm over its three stacked gates: `[B, X], [B, D] -> [B, D]`.

    The gates are split in the order reset, candidate, update; the update gate's bias is -1.
    """

    def __init__(self, name, width, size, style=ELU, dtype="float32"):
        super().__init__(name, dtype)
        gates = replace(style, norm="layer", activation="none")
        self.dense = Dense("dense", (width, size), 3 * size, gates, dtype)

    def build(self):
        self.dense.build()

    def call(self, x, deter):
        return self.gate(self.dense(x, deter), deter)

    def gate(self, gates: tf.Tensor, deter: tf.Tensor) -> tf.Tensor:
        """The new state from the three stacked gates."""
        return gated(*tf.split(gates, 3, -1), self.cast(deter))


def gated(reset, candidate, update, deter):
    """The GRU's new state from its gates before their activation, all of one shape."""
    candidate = tf.tanh(tf.sigmoid(reset) * candidate)
    return deter + tf.sigmoid(update - 1) * (candidate - deter)


class RSSM(Dynamics):
    """DreamerV2's model (PlaNet's, with a LayerNorm GRU); in another style, DreamerV3's of 2023.

    With `learnt_start` the initial state is the tanh of a learnt vector, with the mode of the prior
    there.
    """

    def __init__(
        self,
        name,
        action,
        embed,
        deter,
        hidden,
        latent,
        style: Style = ELU,
        unroll=True,
        dtype="float32",
        learnt_start=False,
        bounded=False,
    ):
        super().__init__(name, action, embed, deter, hidden, latent, style, unroll, dtype, bounded)
        self.learnt_start = learnt_start
        self.img_in = Dense("img_in", (latent.size, action), hidden, style, dtype)
        self.cell = GRUCell("cell", hidden, deter, style, dtype)
        self.img_out = Dense("img_out", deter, hidden, style, dtype)

    def build(self):
        super().build()
        for layer in (self.img_in, self.cell, self.img_out):
            layer.build()
        if self.learnt_start:
            self.start = self.add_weight((self.deter,), "start", initial.zeros)

    def initial(self, batch) -> State:
        if not self.learnt_start:
            return super().initial(batch)
        deter = tf.tanh(read(self.start))[None]
        stats = self.prior(deter)
        mode = tf.stop_gradient(self.latent.mode(stats))
        state = {"deter": deter, "stoch": mode, **stats}
        rows = {k: tf.repeat(v, batch, 0) for k, v in state.items()}
        return rows | {"deter": self.cast(rows["deter"])}

    def drive(self, action):
        return self.img_in.with_bias(self.img_in.part(self.img_in.rows(1), self.limited(action)))

    def kernels(self):
        return {
            "stoch": self.img_in.rows(0),
            "gates": read(self.cell.dense.kernel),
            **super().kernels(),
        }

    def advance(self, product, state, drive):
        x = self.img_in.finish(product("stoch", state["stoch"]) + drive)
        gates = self.cell.dense
        before = tf.concat([x, self.cast(state["deter"])], -1)
        before = gates.finish(gates.with_bias(product("gates", before)))
        return self.cell.gate(before, state["deter"])

    def predict(self, deter):
        return self.img_dist(self.img_out(deter))

    # Single steps concatenate their inputs: TensorFlow's optimiser breaks on the sum of products
    # (see `Dense.call`).

    def next_deter(self, state, action):
        return self.cell(self.img_in(state["stoch"], self.limited(action)), state["deter"])

    def infer(self, deter, embed):
        return self.obs_dist(self.obs_out(deter, embed))

    def without_action(self, path, rows):
        return self.latent.size if path.endswith("/img_in/kernel") else rows
