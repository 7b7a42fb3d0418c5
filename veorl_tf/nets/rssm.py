"""Recurrent state-space model of DreamerV2 (PlaNet's, with a LayerNorm GRU).

A state is a dict of tensors with equal leading axes: `deter` `[..., D]`, the flattened sample
`stoch` `[..., S]` and the latent's statistics (`mean`, `std`, or `logit`). Sequences are `[B, T,
...]` outside and `[T, B, ...]` only inside the loop.
"""

import tensorflow as tf

from veorl_tf.nets.base import Dense, LayerNorm, Net
from veorl_tf.nets.scan import scan

State = dict[str, tf.Tensor]


class GRUCell(Net):
    """GRU with one LayerNorm over its three stacked gates: `[B, X], [B, D] -> [B, D]`.

    The gates are split in the order reset, candidate, update; the update gate's bias is -1.
    """

    def __init__(self, name, width, size, dtype="float32"):
        super().__init__(name, dtype)
        self.size = size
        self.dense = Dense("dense", (width, size), 3 * size, dtype=dtype)
        self.norm = LayerNorm("norm", 3 * size, dtype)

    def build(self):
        self.dense.build()
        self.norm.build()

    def call(self, x, deter):
        gates = self.norm(self.dense(x, deter))
        reset, candidate, update = tf.split(gates, 3, -1)
        candidate = tf.tanh(tf.sigmoid(reset) * candidate)
        deter = self.cast(deter)
        return deter + tf.sigmoid(update - 1) * (candidate - deter)


class RSSM(Net):
    """`deter`, `hidden` sizes; `latent` a distribution of `nets.distributions`; `action` and
    `embed` are the widths of what drives it and of what it observes."""

    def __init__(
        self,
        name,
        action,
        embed,
        deter,
        hidden,
        latent,
        activation="elu",
        unroll=True,
        dtype="float32",
    ):
        super().__init__(name, dtype)
        self.latent, self.deter, self.unroll = latent, deter, unroll
        self.action_size = action
        self.feature_size = latent.size + deter
        self.img_in = Dense("img_in", (latent.size, action), hidden, activation, dtype)
        self.cell = GRUCell("cell", hidden, deter, dtype)
        self.img_out = Dense("img_out", deter, hidden, activation, dtype)
        self.img_dist = Dense("img_dist", hidden, latent.outputs, dtype=dtype)
        self.obs_out = Dense("obs_out", (deter, embed), hidden, activation, dtype)
        self.obs_dist = Dense("obs_dist", hidden, latent.outputs, dtype=dtype)

    def build(self):
        for layer in (
            self.img_in,
            self.cell,
            self.img_out,
            self.img_dist,
            self.obs_out,
            self.obs_dist,
        ):
            layer.build()

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
        return self.latent.stats(self.img_dist(self.img_out(deter)))

    def observe(self, embed: tf.Tensor, action: tf.Tensor, seed: tf.Tensor) -> tuple[State, State]:
        """Filters a sequence from the zero state.

        `embed [B, T, E]` and `action [B, T, A]`, action[t] being the one that led to frame t, give
        posterior states `[B, T, ...]` and the prior's statistics at the same steps. Whatever does
        not depend on the recurrent state (inputs before, prior after the loop) is one product over
        all steps.
        """
        batch, steps = embed.shape[0] or tf.shape(embed)[0], embed.shape[1]
        inputs = (
            _time_major(self.img_in.with_bias(self.img_in.part(self.img_in.rows(1), action))),
            _time_major(self.obs_out.with_bias(self.obs_out.part(self.obs_out.rows(1), embed))),
            self.latent.noise(seed, [steps, batch]),
        )
        initial = self.initial(batch)
        stoch_rows, deter_rows = self.img_in.rows(0), self.obs_out.rows(0)

        def step(carry, inputs):
            action_part, embed_part, noise = inputs
            x = self.img_in.activation(self.img_in.part(stoch_rows, carry["stoch"]) + action_part)
            deter = self.cell(x, carry["deter"])
            hidden = self.obs_out.activation(self.obs_out.part(deter_rows, deter) + embed_part)
            return self._posterior(deter, hidden, noise)

        states = scan(step, initial, inputs, self.unroll)
        posterior = {k: _time_major(v) for k, v in states.items()}
        return posterior, self.prior(posterior["deter"])

    def observe_step(self, state: State, action, embed, noise) -> State:
        """One step of `observe`: `[B, ...]` states, `action [B, A]`, `embed [B, E]`."""
        deter = self.cell(self.img_in(state["stoch"], action), state["deter"])
        return self._posterior(deter, self.obs_out(deter, embed), noise)

    def imagine_step(self, state: State, action, noise) -> State:
        """One step without a frame: the next state is a sample of the prior."""
        deter = self.cell(self.img_in(state["stoch"], action), state["deter"])
        stats = self.prior(deter)
        return {"deter": deter, "stoch": self.latent.sample(stats, noise), **stats}

    def imagine(self, state: State, action: tf.Tensor, seed: tf.Tensor) -> State:
        """Open loop from `state [B, ...]` under `action [B, T, A]`: states `[B, T, ...]`."""
        batch, steps = action.shape[0], action.shape[1]
        inputs = (_time_major(action), self.latent.noise(seed, [steps, batch]))
        states = scan(lambda s, x: self.imagine_step(s, *x), state, inputs, self.unroll)
        return {k: _time_major(v) for k, v in states.items()}

    def _posterior(self, deter, hidden, noise) -> State:
        stats = self.latent.stats(self.obs_dist(hidden))
        return {"deter": deter, "stoch": self.latent.sample(stats, noise), **stats}


def _time_major(x: tf.Tensor) -> tf.Tensor:
    """Swaps the first two axes."""
    return tf.transpose(x, [1, 0, *range(2, len(x.shape))])
