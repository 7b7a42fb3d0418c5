"""DreamerV2's world model: encoder, RSSM, image decoder, reward and (optional) discount head."""

import tensorflow as tf

from veorl_tf.agents.objectives import balanced_kl, global_mean
from veorl_tf.nets.base import MLP
from veorl_tf.nets.rssm import RSSM, State
from veorl_tf.nets.vision import Decoder, Encoder, image_error, preprocess


class WorldModel:
    """The losses of one RSSM that observes images and is driven by actions.

    `discount` may be None: episodes then never end in imagination and `gamma` is the discount.
    `reward_map` (`identity` or `tanh`) is applied to the data's rewards.
    """

    def __init__(
        self,
        encoder: Encoder,
        rssm: RSSM,
        decoder: Decoder,
        reward: MLP,
        discount: MLP | None,
        *,
        gamma: float,
        reward_map: str,
        free: float,
        balance: float,
    ):
        self.encoder, self.rssm, self.decoder = encoder, rssm, decoder
        self.reward_head, self.discount_head = reward, discount
        self.gamma, self.free, self.balance = gamma, free, balance
        self.reward_map = {"identity": lambda x: x, "tanh": tf.tanh}[reward_map]

    @property
    def loss_names(self) -> tuple[str, ...]:
        names = ("image", "reward", "kl")
        return names if self.discount_head is None else (*names, "discount")

    def losses(self, batch, seed: tf.Tensor):
        """Terms by name, posterior states `[B, T, ...]` and metrics, of a target batch."""
        posterior, prior = self.observe(batch, seed)
        features = self.rssm.features(posterior)
        image = preprocess(batch["image"])
        kl, nats = balanced_kl(self.rssm.latent, posterior, prior, self.free, self.balance)
        predicted = tf.squeeze(self.reward_head(features), -1)
        target = self.reward_map(tf.cast(batch["reward"], tf.float32))
        terms = {
            "image": global_mean(image_error(self.decoder(features), image)),
            "reward": global_mean(0.5 * tf.square(predicted - target)),
            "kl": kl,
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
        return self.rssm.observe(embed, batch["action"], seed)

    def _discount_error(self, features: tf.Tensor, discount: tf.Tensor) -> tf.Tensor:
        """Cross-entropy to the soft label gamma * discount (0 at a true end): `[B, T]`."""
        label = self.gamma * tf.cast(discount, tf.float32)
        logit = tf.squeeze(self.discount_head(features), -1)
        return tf.nn.sigmoid_cross_entropy_with_logits(label, logit)

    def reward(self, features: tf.Tensor) -> tf.Tensor:
        """Predicted reward `[...]` of `features [..., F]`."""
        return tf.squeeze(self.reward_head(features), -1)

    def discount(self, features: tf.Tensor) -> tf.Tensor:
        """Discount `[...]`: the head's, in which gamma is contained, or gamma itself."""
        if self.discount_head is None:
            return tf.fill(tf.shape(features)[:-1], self.gamma)
        return tf.sigmoid(tf.squeeze(self.discount_head(features), -1))


def flat_states(states: State) -> State:
    """Posterior states `[B, T, ...]` as start states `[B * T, ...]` without gradient."""
    return {k: tf.stop_gradient(tf.reshape(v, [-1, *v.shape[2:]])) for k, v in states.items()}
