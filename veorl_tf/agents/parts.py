"""The parts that agents are made of, by the name of a backbone: nets, distributions, and the losses
that go with them.

A backbone's methods make nets that are not built yet. `latent` is the latent of every world model,
`scalar` what reward heads and critics say of a number, `has_discount` whether the end of episodes
is learnt, `starts_blank` whether a world model ignores the action that led to a window's first
frame.
"""

from dataclasses import replace

import tensorflow as tf

from veorl_tf.agents.objectives import balanced_kl, global_mean, two_sided_kl
from veorl_tf.core.hardware import accelerated
from veorl_tf.nets.base import Net
from veorl_tf.nets.block_rssm import BlockRSSM
from veorl_tf.nets.dense import MLP, Style
from veorl_tf.nets.distributions import CategoricalLatent, make_latent
from veorl_tf.nets.rssm import RSSM
from veorl_tf.nets.scalars import TwoHot, UnitNormal
from veorl_tf.nets.vision import Decoder, Encoder, image_error
from veorl_tf.nets.vision3 import (
    PooledEncoder,
    StridedDecoder,
    StridedEncoder,
    UpsamplingDecoder,
)


class Backbone:
    """What the backbones share: heads are MLPs, deep as the sizes' `<like>_layers` say."""

    style: Style
    starts_blank = False

    def __init__(self, config, sizes, latent):
        self.config, self.precision, self.unroll = config, config.precision, config.unroll
        self.sizes, self.latent = sizes, latent
        self.feature_size = latent.size + sizes.deter

    def layers(self, head: str) -> int:
        """Hidden layers of `reward`, `discount`, `critic` or `actor`."""
        return self.sizes[f"{head}_layers"]

    def out_scale(self, head: str) -> float:
        """Scale of a head's output at the start."""
        return 1.0

    def head(self, name: str, width: int, out: int, like: str = "") -> MLP:
        """An MLP from features to `out` numbers, a head such as `like` (`name`)."""
        kind = like or name
        return MLP(
            name,
            width,
            self.sizes.units,
            self.layers(kind),
            out,
            self.style,
            self.precision,
            self.out_scale(kind),
        )

    def encoder(self, name: str) -> Net:
        raise NotImplementedError("encoder(name) -> Net")

    def decoder(self, name: str) -> Net:
        """From a world model's features to images."""
        raise NotImplementedError("decoder(name) -> Net")

    def rssm(self, name: str, action: int, embed: int, codes: bool = False) -> Net:
        """A world model driven by vectors of width `action`, observing ones of width `embed`;
        actions are bounded where the backbone does so, `codes` are not."""
        raise NotImplementedError("rssm(name, action, embed) -> Dynamics")

    def dynamics(self, kind, name: str, action: int, embed: int, hidden: int, **more) -> Net:
        """A world model of class `kind`."""
        return kind(
            name,
            action,
            embed,
            self.sizes.deter,
            hidden,
            self.latent,
            self.style,
            unroll=self.unroll,
            dtype=self.precision,
            **more,
        )

    def image_error(self, mean: tf.Tensor, image: tf.Tensor) -> tf.Tensor:
        """The image loss `[...]` of predicted and true images `[..., H, W, C]`."""
        raise NotImplementedError("image_error(mean, image) -> [...]")

    @property
    def kl_scales(self) -> dict[str, float]:
        """Weights of the terms of `kl`."""
        raise NotImplementedError("kl_scales -> {term: weight}")

    def kl(self, posterior, prior, mask=None) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        """The KL's terms by name and its mean in nats, of states `[B, T, ...]`."""
        raise NotImplementedError("kl(posterior, prior, mask) -> terms, nats")


class V2(Backbone):
    """DreamerV2's parts in the sizes of the configuration's `v2` keys."""

    def __init__(self, config):
        sizes = config.v2
        super().__init__(config, sizes, make_latent(sizes.latent, sizes.stoch, sizes.classes))
        self.style = Style(sizes.activation)
        self.scalar = UnitNormal()
        self.has_discount = config.v2.discount_head

    def encoder(self, name):
        return Encoder(name, self.sizes.depth, self.style, self.precision)

    def decoder(self, name):
        return Decoder(name, self.feature_size, self.sizes.depth, self.style, self.precision)

    def rssm(self, name, action, embed, codes=False):
        return self.dynamics(RSSM, name, action, embed, self.sizes.hidden)

    def image_error(self, mean, image):
        return image_error(mean, image)

    @property
    def kl_scales(self):
        return {"kl": self.config.kl.scale}

    def kl(self, posterior, prior, mask=None):
        keys = self.config.kl
        loss, nats = balanced_kl(self.latent, posterior, prior, keys.free, keys.balance, mask)
        return {"kl": loss}, nats


class Third(Backbone):
    """What both forms of DreamerV3 have: a categorical latent, a discount head, losses."""

    starts_blank = has_discount = True

    def __init__(self, config, sizes):
        latent = CategoricalLatent(sizes.stoch, sizes.classes, sizes.unimix)
        super().__init__(config, sizes, latent)
        tiled = config.compiler != "xla" and not accelerated()
        self.style = replace(type(self).style, tiled=tiled)

    def image_error(self, mean, image):
        """The squared error, summed."""
        return 2 * image_error(mean, image)

    @property
    def kl_scales(self):
        return {"dyn": self.config.kl.dyn, "rep": self.config.kl.rep}

    def kl(self, posterior, prior, mask=None):
        dyn, rep, nats = two_sided_kl(self.latent, posterior, prior, self.config.kl.free)
        terms = {"dyn": global_mean(dyn, mask), "rep": global_mean(rep, mask)}
        return terms, global_mean(nats, mask)


class V3(Third):
    """DreamerV3's parts as in 2023 (arXiv 2301.04104v1) in the sizes of the `v3` keys."""

    style = Style("silu", "layer", 1e-3, biased=False, average_fan=True)

    def __init__(self, config):
        super().__init__(config, config.v3)
        self.scalar = TwoHot(self.sizes.bins)

    def layers(self, head):
        return self.sizes.layers

    def out_scale(self, head):
        return {"reward": 0.0, "critic": 0.0}.get(head, 1.0)

    def encoder(self, name):
        return StridedEncoder(name, self.sizes.depth, self.style, self.precision)

    def decoder(self, name):
        return StridedDecoder(name, self.feature_size, self.sizes.depth, self.style, self.precision)

    def rssm(self, name, action, embed, codes=False):
        more = {"learnt_start": True, "bounded": not codes}
        return self.dynamics(RSSM, name, action, embed, self.sizes.units, **more)


class Nature(Third):
    """DreamerV3's parts as in 2025 (Nature 640) in the sizes of the `nature` keys."""

    style = Style("silu", "rms", 1e-4, average_fan=False)

    def __init__(self, config):
        super().__init__(config, config.nature)
        self.scalar = TwoHot(self.sizes.bins, raw=True)

    def out_scale(self, head):
        return {"reward": 0.0, "critic": 0.0, "actor": 0.01}.get(head, 1.0)

    def encoder(self, name):
        return PooledEncoder(name, self.sizes.depth, self.style, self.precision)

    def decoder(self, name):
        sizes = self.sizes
        return UpsamplingDecoder(
            name,
            self.latent.size,
            sizes.deter,
            sizes.depth,
            sizes.units,
            self.style,
            sizes.blocks,
            self.precision,
        )

    def rssm(self, name, action, embed, codes=False):
        more = {"blocks": self.sizes.blocks, "bounded": not codes}
        return self.dynamics(BlockRSSM, name, action, embed, self.sizes.hidden, **more)
