"""Dreamer's world model: encoder, RSSM, image decoder, reward and (optional) discount head."""

import tensorflow as tf

from veorl_tf.agents.objectives import global_mean
from veorl_tf.nets.base import Net
from veorl_tf.nets.dense import MLP
from veorl_tf.nets.rssm import Dynamics, State
from veorl_tf.nets.vision import preprocess


class WorldModel:
    """The losses of one RSSM that observes images and is driven by actions.

    `parts` is the backbone that the nets are of. `discount` may be None: episodes then never end in
    imagination and `gamma` is the discount. Else it learns `gamma` times the data's discount and
    its mean is used; or, if `decides`, the data's, and its mode times `gamma` is used.
    `reward_map` (`identity` or `tanh`) is applied to the data's rewards.
    """

    def __init__(
        self,
        parts,
        encoder: Net,
        rssm: Dynamics,
        decoder: Net,
        reward: MLP,
        discount: MLP | None,
        *,
        gamma: float,
        decides: bool,
        reward_map: str,
    ):
        self.parts, self.encoder, self.rssm, self.decoder = parts, encoder, rssm, decoder
        self.reward_head, self.discount_head = reward, discount
        self.gamma, self.decides = gamma, decides
        self.reward_map = {"identity": lambda x: x, "tanh": tf.tanh}[reward_map]

    @property
    def loss_names(self) -> tuple[str, ...]:
        names = ("image", "reward", *self.parts.kl_scales)
        return names if self.discount_head is None else (*names, "discount")

    def losses(self, batch, seed: tf.Tensor):
        """Terms by name, posterior states `[B, T, ...]` and metrics, of a target batch."""
        posterior, prior = self.observe(batch, seed)
        features = self.rssm.features(posterior)
        image = preprocess(batch["image"])
        divergence, nats = self.parts.kl(posterior, prior)
        reward = self.parts.scalar.loss(self.reward_head(features), self.rewards(batch))
        terms = {
            "image": global_mean(self.parts.image_error(self.decoder(features), image)),
            "reward": global_mean(reward),
            **divergence,
        }
        if self.discount_head is not None:
            terms["discount"] = global_mean(self._discount_error(features, batch["discount"]))
        metrics = {
            "kl_nats": nats,
            "posterior_entropy": global_mean(self.rssm.latent.entropy(posterior)),
            "prior_entropy": global_mean(self.rssm.latent.entropy(prior)),
        }
        return terms, posterior, metrics

    def observe(self, batch, seed: tf.Tensor) -> tuple[State, State]:
        """Posterior states and prior statistics of `image` (or what the encoder made of it,
        `embed`) and `action [B, T, ...]`."""
        embed = batch["embed"] if "embed" in batch else self.encoder(preprocess(batch["image"]))
        return self.rssm.observe(embed, self.actions(batch), seed)

    def actions(self, batch) -> tf.Tensor:
        """The batch's actions `[B, T, A]`, the first one blank where the backbone starts so."""
        action = batch["action"]
        if not self.parts.starts_blank:
            return action
        return tf.concat([tf.zeros_like(action[:, :1]), action[:, 1:]], 1)

    def rewards(self, batch) -> tf.Tensor:
        """The batch's rewards `[B, T]`, as they are learnt."""
        return self.reward_map(tf.cast(batch["reward"], tf.float32))

    def _discount_error(self, features: tf.Tensor, discount: tf.Tensor) -> tf.Tensor:
        """Cross-entropy to the data's discount (0 at a true end), times gamma unless the head's
        mode is what counts: `[B, T]`."""
        label = (1.0 if self.decides else self.gamma) * tf.cast(discount, tf.float32)
        logit = tf.squeeze(self.discount_head(features), -1)
        return tf.nn.sigmoid_cross_entropy_with_logits(label, logit)

    def reward(self, features: tf.Tensor) -> tf.Tensor:
        """Predicted reward `[...]` of `features [..., F]`."""
        return self.parts.scalar.mean(self.reward_head(features))

    def discount(self, features: tf.Tensor) -> tf.Tensor:
        """Discount `[...]`: the head's mean, in which gamma is contained, or its mode times gamma,
        or gamma itself."""
        if self.discount_head is None:
            return tf.fill(tf.shape(features)[:-1], self.gamma)
        logit = tf.squeeze(self.discount_head(features), -1)
        return self.gamma * tf.cast(logit > 0, tf.float32) if self.decides else tf.sigmoid(logit)


def flat_states(states: State) -> State:
    """Posterior states `[B, T, ...]` as start states `[B * T, ...]` without gradient."""
    return {k: tf.stop_gradient(tf.reshape(v, [-1, *v.shape[2:]])) for k, v in states.items()}
