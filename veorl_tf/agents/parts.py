"""The parts that agents are made of, by the name of a backbone."""

from veorl_tf.nets.base import MLP
from veorl_tf.nets.distributions import make_latent
from veorl_tf.nets.rssm import RSSM
from veorl_tf.nets.vision import Decoder, Encoder


class V2:
    """DreamerV2's parts in the sizes of the configuration's `v2` keys.

    Methods make nets that are not built yet; `latent` is the latent of every world model.
    """

    def __init__(self, config):
        self.sizes, self.precision, self.unroll = config.v2, config.precision, config.unroll
        self.latent = make_latent(self.sizes.latent, self.sizes.stoch, self.sizes.classes)

    def encoder(self, name: str) -> Encoder:
        return Encoder(name, self.sizes.depth, self.precision, self.sizes.activation)

    def decoder(self, name: str, width: int) -> Decoder:
        return Decoder(name, width, self.sizes.depth, self.precision, self.sizes.activation)

    def rssm(self, name: str, action: int, embed: int) -> RSSM:
        """A world model driven by vectors of width `action`, observing ones of width `embed`."""
        sizes = self.sizes
        return RSSM(
            name,
            action,
            embed,
            sizes.deter,
            sizes.hidden,
            self.latent,
            sizes.activation,
            self.unroll,
            self.precision,
        )

    def head(self, name: str, width: int, out: int, like: str = "") -> MLP:
        """An MLP from features to `out` numbers, as deep as `<like>_layers` (`<name>_layers`) says:
        `reward`, `discount`, `critic` or `actor`."""
        layers = self.sizes[f"{like or name}_layers"]
        return MLP(
            name, width, self.sizes.units, layers, out, self.sizes.activation, self.precision
        )
