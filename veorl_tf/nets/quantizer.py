"""VeoRL's behaviour abstraction network: pairs of frame embeddings to discrete behaviour codes."""

from typing import NamedTuple

import tensorflow as tf

from veorl_tf.nets import initial
from veorl_tf.nets.base import Net
from veorl_tf.nets.dense import Dense
from veorl_tf.nets.distributions import straight_through
from veorl_tf.nets.parallel import total


class Quantised(NamedTuple):
    code: tf.Tensor  # [..., Dc] exactly a row of the codebook; gradient of the input
    index: tf.Tensor  # [...] int32, which row
    loss: tf.Tensor  # [...] codebook loss + beta * commitment loss, mean over Dc


class Codebook(Net):
    """`entries` vectors of `size`; everything in float32, since codes are compared and rounded."""

    def __init__(self, name, entries, size, beta=1.0):
        super().__init__(name, "float32")
        self.entries, self.size, self.beta = entries, size, beta

    def build(self):
        self.codebook = self.add_weight((self.entries, self.size), "codebook", initial.codebook)

    def nearest(self, y: tf.Tensor) -> tf.Tensor:
        """Index `[...]` of the row nearest to `y [..., Dc]` in the Euclidean norm."""
        table = tf.stop_gradient(self.codebook.value)
        y = tf.stop_gradient(tf.cast(y, tf.float32))
        return tf.argmin(tf.reduce_sum(tf.square(y[..., None, :] - table), -1), -1, tf.int32)

    def lookup(self, index: tf.Tensor) -> tf.Tensor:
        """Rows by index: `[...]` to `[..., Dc]`; their gradient reaches the codebook."""
        return tf.gather(self.codebook.value, index)

    def snap(self, y: tf.Tensor) -> tf.Tensor:
        """`y` replaced by its nearest row, straight-through."""
        y = tf.cast(y, tf.float32)
        return straight_through(self.lookup(self.nearest(y)), y)

    def call(self, y: tf.Tensor) -> Quantised:
        """VQ-VAE quantisation (van den Oord et al. 2017, eq. 3): codebook and commitment loss."""
        y = tf.cast(y, tf.float32)
        index = self.nearest(y)
        rows = self.lookup(index)
        loss = tf.reduce_mean(tf.square(tf.stop_gradient(y) - rows), -1)
        loss += self.beta * tf.reduce_mean(tf.square(y - tf.stop_gradient(rows)), -1)
        return Quantised(straight_through(rows, y), index, loss)


class BehaviorAbstraction(Net):
    """BAN: `[B, T, E]` embeddings of T frames to T - 1 codes, code j labelling frame j -> j + 1."""

    def __init__(self, name, embed, hidden, entries, size, beta=1.0, dtype="float32"):
        super().__init__(name, dtype)
        self.after = Dense("after", embed, hidden, dtype=dtype)
        self.before = Dense("before", embed, hidden, dtype=dtype)
        self.out = Dense("out", hidden, size)
        self.codebook = Codebook("codebook", entries, size, beta)

    def build(self):
        for layer in (self.after, self.before, self.out, self.codebook):
            layer.build()

    def project(self, embed: tf.Tensor) -> tf.Tensor:
        """The continuous codes before quantisation: `[B, T, E]` to `[B, T - 1, Dc]`."""
        later, earlier = embed[:, 1:], embed[:, :-1]
        return self.out(tf.nn.relu(self.after(later) + self.before(earlier)))

    def call(self, embed: tf.Tensor) -> Quantised:
        return self.codebook(self.project(embed))


def usage(index: tf.Tensor, entries: int, mask: tf.Tensor | None = None) -> dict[str, tf.Tensor]:
    """How much of the codebook the batch `index [...]` uses.

    `perplexity` is exp of the entropy of the empirical distribution (1 = collapsed, `entries` =
    uniform), `used` the fraction of entries that occur at all. `mask [...]` leaves slots out.
    """
    weight = tf.ones_like(index, tf.float32) if mask is None else tf.cast(mask, tf.float32)
    counts = total(
        tf.math.unsorted_segment_sum(tf.reshape(weight, [-1]), tf.reshape(index, [-1]), entries)
    )
    share = counts / tf.maximum(tf.reduce_sum(counts), 1.0)
    entropy = -tf.reduce_sum(tf.math.xlogy(share, share))
    return {"perplexity": tf.exp(entropy), "used": tf.reduce_mean(tf.cast(counts > 0, tf.float32))}
