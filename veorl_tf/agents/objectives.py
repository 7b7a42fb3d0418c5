"""The pure functions that losses are made of. Every number is passed in; all run in float32."""

import tensorflow as tf

from veorl_tf.nets.parallel import everywhere, replicas, total


def global_mean(x: tf.Tensor, mask: tf.Tensor | None = None) -> tf.Tensor:
    """The mean over everything, or over the slots where `mask` is not zero.

    Every average goes through here or through `mean_vector`, so that replicas that each hold an
    equal share of the batch compute the numbers of one device.
    """
    x = tf.cast(x, tf.float32)
    if mask is None:
        return _over_replicas(tf.reduce_mean(x))
    mask = tf.cast(mask, tf.float32)
    return total(tf.reduce_sum(x * mask)) / tf.maximum(total(tf.reduce_sum(mask)), 1.0)


def _over_replicas(mean: tf.Tensor) -> tf.Tensor:
    """The mean of the replicas' means."""
    count = replicas()
    return mean if count == 1 else total(mean) / count


def balanced_kl(latent, posterior, prior, free: float, balance: float, mask=None):
    """KL of DreamerV2 (Hafner et al. 2021, alg. 2) with free nats applied to the *mean*.

    `balance` weights the term that trains the prior, `1 - balance` the one that trains the
    posterior. `posterior` and `prior` are dicts of statistics `[B, T, ...]`, `mask [B, T]`.
    Returns the loss and the mean KL in nats. While the mean is under `free`, nothing is trained.
    """
    keys = latent.shapes
    stats = lambda state, stop: {k: tf.stop_gradient(state[k]) if stop else state[k] for k in keys}
    to_posterior = global_mean(latent.kl(stats(posterior, False), stats(prior, True)), mask)
    to_prior = global_mean(latent.kl(stats(posterior, True), stats(prior, False)), mask)
    loss = balance * tf.maximum(free, to_prior) + (1 - balance) * tf.maximum(free, to_posterior)
    return loss, tf.stop_gradient(to_prior)


def two_sided_kl(latent, posterior, prior, free: float):
    """KL of DreamerV3 (Hafner et al. 2023, eq. 5) per element: `[B, T]` dynamics and representation
    losses, each with `free` nats of its own, and the KL in nats, without gradient."""
    keys = latent.shapes
    stats = lambda state, stop: {k: tf.stop_gradient(state[k]) if stop else state[k] for k in keys}
    dyn = latent.kl(stats(posterior, True), stats(prior, False))
    rep = latent.kl(stats(posterior, False), stats(prior, True))
    return tf.maximum(dyn, free), tf.maximum(rep, free), tf.stop_gradient(dyn)


def percentiles(x: tf.Tensor, low: float, high: float) -> tuple[tf.Tensor, tf.Tensor]:
    """Two percentiles (of 100) of all the numbers in `x`, over all replicas, without gradient;
    between neighbours they are interpolated."""
    x = tf.sort(tf.reshape(everywhere(tf.stop_gradient(tf.cast(x, tf.float32))), [-1]))
    last = int(x.shape[0]) - 1

    def at(percent: float) -> tf.Tensor:
        place = percent / 100 * last
        below = min(int(place), max(last - 1, 0))
        share = place - below
        return x[below] * (1 - share) + x[min(below + 1, last)] * share

    return at(low), at(high)


def linear_mmd(left: tf.Tensor, right: tf.Tensor, left_mask=None, right_mask=None) -> tf.Tensor:
    """Squared distance of the two mean embeddings: MMD with a linear kernel.

    `left [..., E]`, `right [..., E]` may differ in their leading axes; masks cover those.
    """
    return tf.reduce_sum(tf.square(mean_vector(left, left_mask) - mean_vector(right, right_mask)))


def mean_vector(x: tf.Tensor, mask=None) -> tf.Tensor:
    """The mean of `x [..., E]` over all but its last axis, or over the slots of `mask [...]`."""
    x = tf.reshape(tf.cast(x, tf.float32), [-1, x.shape[-1]])
    if mask is None:
        return _over_replicas(tf.reduce_mean(x, 0))
    mask = tf.reshape(tf.cast(mask, tf.float32), [-1, 1])
    return total(tf.reduce_sum(x * mask, 0)) / tf.maximum(total(tf.reduce_sum(mask)), 1.0)


def safe_norm(x: tf.Tensor) -> tf.Tensor:
    """Euclidean norm over the last axis whose gradient at zero is zero, not NaN."""
    square = tf.reduce_sum(tf.square(tf.cast(x, tf.float32)), -1)
    positive = square > 0
    return tf.where(positive, tf.sqrt(tf.where(positive, square, 1.0)), 0.0)


def lambda_return(reward, value, discount, lambda_: float) -> tf.Tensor:
    """TD(lambda) targets in forward order.

        state      s0   s1   s2   s3
        reward     r0   r1   r2            R_t = r_t + d_t ((1 - lambda) v_{t+1}
        discount   d0   d1   d2                             + lambda R_{t+1}),   R_3 = v_3
        value           v1   v2   v3

    `reward`, `discount [n-1, N]` and `value [n, N]`, time first; returns `[n-1, N]`.
    """
    following = value[1:]
    target = value[-1]
    targets = []
    for t in reversed(range(reward.shape[0])):
        target = reward[t] + discount[t] * ((1 - lambda_) * following[t] + lambda_ * target)
        targets.append(target)
    return tf.stack(targets[::-1])


def discount_weights(discount: tf.Tensor) -> tf.Tensor:
    """How likely each state is still reached: `w_t = prod_{u<t} d_u`, `w_0 = 1`; no gradient."""
    ones = tf.ones_like(discount[:1])
    return tf.stop_gradient(tf.math.cumprod(tf.concat([ones, discount[:-1]], 0), 0))
