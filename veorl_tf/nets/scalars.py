"""What a head says of a number (a reward, a return): its mean, and the loss of a target."""

import numpy as np
import tensorflow as tf


def symlog(x: tf.Tensor) -> tf.Tensor:
    """sign(x) log(1 + |x|) (Hafner et al. 2023, eq. 1)."""
    return tf.sign(x) * tf.math.log1p(tf.abs(x))


def symexp(x: tf.Tensor) -> tf.Tensor:
    """The inverse of `symlog`."""
    return tf.sign(x) * tf.math.expm1(tf.abs(x))


class UnitNormal:
    """Normal(mean, 1): `[..., 1]` numbers of a head are its mean."""

    outputs = 1

    def mean(self, x: tf.Tensor) -> tf.Tensor:
        """`[..., 1]` to `[...]`."""
        return tf.squeeze(x, -1)

    def loss(self, x: tf.Tensor, target: tf.Tensor) -> tf.Tensor:
        """Half the squared error of `target [...]`: a likelihood without its constant."""
        return 0.5 * tf.square(self.mean(x) - tf.stop_gradient(target))


class TwoHot:
    """A categorical distribution over `bins` values, symmetric around 0; `[..., bins]` logits.

    A target is spread over the two values next to it. The bins are evenly spaced up to +-`limit`
    in symlog space, where the mean is taken (`raw` false: DreamerV3 of 2023, eq. 8 to 10), or
    taken back by symexp, the mean being taken of the values themselves (`raw`: 2025).
    """

    def __init__(self, bins: int = 255, raw: bool = False, limit: float = 20.0):
        if bins % 2 == 0 or bins < 3:
            raise ValueError(f"{bins} bins: an odd number, at least 3, has a 0 in its middle")
        half = np.linspace(0, limit, bins // 2 + 1)[1:]
        half = (np.expm1(half) if raw else half).astype(np.float32)
        self.outputs, self.raw = bins, raw
        self.half = half  # the positive values
        self.bins = np.concatenate([-half[::-1], np.zeros(1, np.float32), half])

    def mean(self, x: tf.Tensor) -> tf.Tensor:
        """`[..., bins]` to `[...]`. Mirrored bins are paired: equal logits give exactly 0."""
        probs, middle = tf.nn.softmax(tf.cast(x, tf.float32)), self.outputs // 2
        pairs = probs[..., middle + 1 :] - tf.reverse(probs[..., :middle], [-1])
        mean = tf.reduce_sum(pairs * self.half, -1)
        return mean if self.raw else symexp(mean)

    def two_hot(self, target: tf.Tensor) -> tf.Tensor:
        """Weights `[..., bins]` of a target `[...]`: hats around every bin, without gradient."""
        x = tf.stop_gradient(tf.cast(target, tf.float32))
        x = (x if self.raw else symlog(x))[..., None]
        x = tf.clip_by_value(x, self.bins[0], self.bins[-1])
        width = np.diff(self.bins)
        rise = (x - self.bins[:-1]) / width  # to bin i + 1, from bin i on
        ones = tf.ones_like(x)
        rising = tf.concat([ones, rise], -1)
        falling = tf.concat([1 - rise, ones], -1)
        return tf.clip_by_value(tf.minimum(rising, falling), 0.0, 1.0)

    def loss(self, x: tf.Tensor, target: tf.Tensor) -> tf.Tensor:
        """Cross-entropy of the two-hot `target [...]`: `[...]`."""
        x = tf.cast(x, tf.float32)
        return tf.reduce_logsumexp(x, -1) - tf.reduce_sum(self.two_hot(target) * x, -1)
