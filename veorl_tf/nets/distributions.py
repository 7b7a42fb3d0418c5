"""Distributions over latents and actions.

A distribution is described by a dict of float32 statistics, so that it can travel through loops
and be saved. Samples are made from noise that is drawn beforehand: one stateless draw for a whole
sequence instead of one per time step, and a test that sets the noise to zero sees the mode path.
Noise is `[*leading, ...]`, where the last of the leading axes counts the rows of a batch.
Densities, entropies and divergences come from TensorFlow Probability, in float32.
"""

import tensorflow as tf
import tensorflow_probability as tfp

from veorl_tf.nets.parallel import own_rows

tfd = tfp.distributions

Stats = dict[str, tf.Tensor]


def straight_through(hard: tf.Tensor, soft: tf.Tensor) -> tf.Tensor:
    """Exactly `hard` forwards, the gradient of `soft` backwards."""
    return tf.stop_gradient(hard) + (soft - tf.stop_gradient(soft))


def sigmoid2(x: tf.Tensor, minimum: float) -> tf.Tensor:
    """Dreamer's standard deviation: `2 sigmoid(x / 2) + minimum`, 1 + minimum at zero."""
    return 2 * tf.sigmoid(x / 2) + minimum


class Gaussian:
    """Diagonal Gaussian of `size` numbers; statistics `mean`, `std` `[..., size]`."""

    def __init__(self, size: int):
        self.size = size  # width of a sample
        self.outputs = 2 * size  # width of the layer that predicts it

    def noise(self, seed: tf.Tensor, leading: list) -> tf.Tensor:
        draw = lambda leading: tf.random.stateless_normal([*leading, self.size], seed)
        return own_rows(draw, leading)

    def sample(self, stats: Stats, noise: tf.Tensor) -> tf.Tensor:
        return stats["mean"] + stats["std"] * noise

    def mode(self, stats: Stats) -> tf.Tensor:
        return stats["mean"]

    def distribution(self, stats: Stats) -> tfd.Distribution:
        return tfd.MultivariateNormalDiag(stats["mean"], stats["std"])

    def entropy(self, stats: Stats) -> tf.Tensor:
        return self.distribution(stats).entropy()


class GaussianLatent(Gaussian):
    """Gaussian latent: `mean` unbounded, `std` = sigmoid2 + 0.1."""

    def __init__(self, size: int, min_std: float = 0.1):
        super().__init__(size)
        self.noise_shape = (size,)
        self.min_std = min_std
        self.shapes = {"mean": (size,), "std": (size,)}

    def stats(self, x: tf.Tensor) -> Stats:
        mean, std = tf.split(tf.cast(x, tf.float32), 2, -1)
        return {"mean": mean, "std": sigmoid2(std, self.min_std)}

    def kl(self, left: Stats, right: Stats) -> tf.Tensor:
        """KL(left || right) summed over the numbers: `[...]`."""
        return tfd.kl_divergence(self.distribution(left), self.distribution(right))


class CategoricalLatent:
    """`groups` one-hot vectors of `classes`, flattened; statistic `logit` `[..., groups, classes]`.

    Samples are straight-through: one-hot forwards, the probabilities' gradient backwards. `unimix`
    is the share of the uniform distribution in the probabilities (DreamerV3).
    """

    def __init__(self, groups: int, classes: int, unimix: float = 0.0):
        self.groups, self.classes, self.unimix = groups, classes, unimix
        self.size = groups * classes
        self.outputs = self.size
        self.noise_shape = (groups, classes)
        self.shapes = {"logit": (groups, classes)}

    def stats(self, x: tf.Tensor) -> Stats:
        leading = [*_leading(x)]
        logit = tf.reshape(tf.cast(x, tf.float32), leading + [self.groups, self.classes])
        return {"logit": mixed(logit, self.unimix)}

    def noise(self, seed: tf.Tensor, leading: list) -> tf.Tensor:
        return gumbel(seed, leading, [self.groups, self.classes])

    def sample(self, stats: Stats, noise: tf.Tensor) -> tf.Tensor:
        return self._flat(one_hot_sample(stats["logit"], noise))

    def mode(self, stats: Stats) -> tf.Tensor:
        return self._flat(one_hot_sample(stats["logit"], 0.0))

    def _flat(self, x: tf.Tensor) -> tf.Tensor:
        return tf.reshape(x, [*_leading(x, 2), self.size])

    def kl(self, left: Stats, right: Stats) -> tf.Tensor:
        """KL(left || right) summed over the groups: `[...]`."""
        make = lambda s: tfd.Independent(tfd.OneHotCategorical(s["logit"]), 1)
        return tfd.kl_divergence(make(left), make(right))

    def entropy(self, stats: Stats) -> tf.Tensor:
        return tfd.Independent(tfd.OneHotCategorical(stats["logit"]), 1).entropy()


class TruncatedNormalAction:
    """Normal truncated to [-1, 1]; statistics `mean` = tanh, `std` = sigmoid2 + 0.1, `[..., A]`.

    Sampling inverts the distribution function, so the gradient with respect to both statistics is
    exact; samples are clipped just inside the bounds, straight-through.
    """

    EDGE = 1e-6

    def __init__(self, size: int, min_std: float = 0.1):
        self.size = size
        self.outputs = 2 * size
        self.min_std = min_std

    def stats(self, x: tf.Tensor) -> Stats:
        mean, std = tf.split(tf.cast(x, tf.float32), 2, -1)
        return {"mean": tf.tanh(mean), "std": sigmoid2(std, self.min_std)}

    def noise(self, seed: tf.Tensor, leading: list) -> tf.Tensor:
        draw = lambda leading: tf.random.stateless_uniform(
            [*leading, self.size], seed, 1e-6, 1 - 1e-6
        )
        return own_rows(draw, leading)

    def sample(self, stats: Stats, noise: tf.Tensor) -> tf.Tensor:
        mean, std = stats["mean"], stats["std"]
        low, high = (_normal_cdf((bound - mean) / std) for bound in (-1.0, 1.0))
        x = mean + std * tf.math.ndtri(low + noise * (high - low))
        return straight_through(tf.clip_by_value(x, -1 + self.EDGE, 1 - self.EDGE), x)

    def mode(self, stats: Stats) -> tf.Tensor:
        return stats["mean"]

    def _distribution(self, stats: Stats) -> tfd.Distribution:
        return tfd.Independent(tfd.TruncatedNormal(stats["mean"], stats["std"], -1.0, 1.0), 1)

    def log_prob(self, stats: Stats, action: tf.Tensor) -> tf.Tensor:
        return self._distribution(stats).log_prob(tf.cast(action, tf.float32))

    def entropy(self, stats: Stats) -> tf.Tensor:
        return self._distribution(stats).entropy()


class NormalAction(Gaussian):
    """Normal of DreamerV3; statistics `mean` = tanh, `std` = 0.9 sigmoid(x + 2) + 0.1, `[..., A]`.

    Samples are not bounded: world models scale them down (`Dynamics.limited`), policies clip.
    """

    def __init__(self, size: int, min_std: float = 0.1, max_std: float = 1.0):
        super().__init__(size)
        self.min_std, self.max_std = min_std, max_std

    def stats(self, x: tf.Tensor) -> Stats:
        mean, std = tf.split(tf.cast(x, tf.float32), 2, -1)
        std = (self.max_std - self.min_std) * tf.sigmoid(std + 2) + self.min_std
        return {"mean": tf.tanh(mean), "std": std}

    def log_prob(self, stats: Stats, action: tf.Tensor) -> tf.Tensor:
        return self.distribution(stats).log_prob(tf.cast(action, tf.float32))


class OneHotAction:
    """One of `size` actions as a one-hot vector, straight-through; statistic `logit` `[..., A]`.
    `unimix` is the share of the uniform distribution in the probabilities."""

    def __init__(self, size: int, unimix: float = 0.0):
        self.size, self.unimix = size, unimix
        self.outputs = size

    def stats(self, x: tf.Tensor) -> Stats:
        return {"logit": mixed(tf.cast(x, tf.float32), self.unimix)}

    def noise(self, seed: tf.Tensor, leading: list) -> tf.Tensor:
        return gumbel(seed, leading, [self.size])

    def sample(self, stats: Stats, noise: tf.Tensor) -> tf.Tensor:
        return one_hot_sample(stats["logit"], noise)

    def mode(self, stats: Stats) -> tf.Tensor:
        return one_hot_sample(stats["logit"], 0.0)

    def log_prob(self, stats: Stats, action: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(tf.nn.log_softmax(stats["logit"]) * tf.cast(action, tf.float32), -1)

    def entropy(self, stats: Stats) -> tf.Tensor:
        return tfd.OneHotCategorical(stats["logit"]).entropy()


def make_action(kind: str, size: int, discrete: bool, unimix: float = 0.0):
    """What an actor says of actions: one-hot if `discrete`, else by name `trunc_normal` or
    `normal`."""
    if discrete:
        return OneHotAction(size, unimix)
    return {"trunc_normal": TruncatedNormalAction, "normal": NormalAction}[kind](size)


def make_latent(kind: str, stoch: int, classes: int):
    """A latent by name: `gaussian` (stoch numbers) or `categorical` (stoch groups of classes)."""
    return GaussianLatent(stoch) if kind == "gaussian" else CategoricalLatent(stoch, classes)


def mixed(logit: tf.Tensor, share: float) -> tf.Tensor:
    """Logits `[..., C]` of which `share` is the uniform distribution's."""
    if share == 0.0:
        return logit
    probs = tf.nn.softmax(logit)
    return tf.math.log((1 - share) * probs + share / logit.shape[-1])


def gumbel(seed: tf.Tensor, leading: list, shape: list) -> tf.Tensor:
    """Standard Gumbel noise `[*leading, *shape]` in float32; the argmax of logits plus it is a
    categorical sample."""
    draw = lambda leading: tf.random.stateless_uniform([*leading, *shape], seed, 1e-7, 1.0)
    uniform = own_rows(draw, leading)
    return -tf.math.log(-tf.math.log(uniform))


def one_hot_sample(logit: tf.Tensor, noise) -> tf.Tensor:
    """Gumbel-max sample `[..., C]`, straight-through to the probabilities."""
    hard = tf.one_hot(tf.argmax(logit + noise, -1), logit.shape[-1], dtype=tf.float32)
    return straight_through(hard, tf.nn.softmax(logit))


def _normal_cdf(x: tf.Tensor) -> tf.Tensor:
    return 0.5 * tf.math.erfc(-x * 0.7071067811865476)


def _leading(x: tf.Tensor, inner: int = 1) -> list:
    dynamic = tf.shape(x)
    return [
        x.shape[i] if x.shape[i] is not None else dynamic[i] for i in range(len(x.shape) - inner)
    ]
