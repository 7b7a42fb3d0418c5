"""DreamerV2 (Hafner et al. 2021) trained offline: first the world model, then the behaviour.

The baseline of VeoRL: the same sizes, indexing and optimisers, no video.
"""

import tensorflow as tf

from veorl_tf.agents.agent import Agent
from veorl_tf.agents.stage import Column, Stage, Stream, split_seed
from veorl_tf.agents.world_model import flat_states
from veorl_tf.nets.base import frozen
from veorl_tf.nets.vision import preprocess


class DreamerV2(Agent):
    def stages(self) -> list[Stage]:
        return [self.model_stage(), self.behavior_stage()]

    def model_stage(self) -> Stage:
        return Stage(
            name="model",
            losses=self.model_losses,
            streams={"target": self.target_stream()},
            scales=self.model_scales(),
            groups={"model": self.group("model", "model", *self.model_nets())},
            loss_scale=self.loss_scale("model"),
        )

    def model_nets(self) -> list[str]:
        nets = ["encoder", "trunk", "image", "reward", "discount"]
        return [name for name in nets if name in self.nets]

    def model_scales(self) -> dict[str, float]:
        scale = self.config.scale
        scales = {"image": scale.image, "reward": scale.reward, "discount": scale.discount}
        scales |= self.parts.kl_scales
        return {name: scales[name] for name in self.model.loss_names}

    def behavior_stage(self) -> Stage:
        """The model is frozen, so every frame is embedded once."""
        embed = Column("embed", ("encoder",), lambda image: self.model.encoder(preprocess(image)))
        keys = ("embed", "action", "discount")
        return Stage(
            name="behavior",
            losses=self.behavior_losses,
            streams={"target": Stream("target", self.config.data.length, keys)},
            columns=(embed,),
            scales={"actor": 1.0, "critic": 1.0},
            groups={
                "actor": self.group("behavior", "actor", "actor"),
                "critic": self.group("behavior", "critic", "critic"),
            },
            loss_scale=self.loss_scale("behavior"),
            before_update=self.learner.update_slow,
            after_update=self.learner.keep_scale,
            evaluates=True,
        )

    def target_stream(self) -> Stream:
        keys = ("image", "action", "reward", "discount")
        return Stream("target", self.config.data.length, keys)

    def model_losses(self, batches, seed: tf.Tensor):
        terms, _, metrics = self.model.losses(batches["target"], seed)
        return terms, metrics

    def behavior_losses(self, batches, seed: tf.Tensor):
        """Imagines from every posterior state of the batch; the model is frozen."""
        model_seed, behavior_seed = split_seed(seed, 2)
        posterior, _ = self.model.observe(batches["target"], model_seed)
        terms, metrics, _ = self.imagine_losses(batches["target"], posterior, behavior_seed)
        return terms, metrics

    def imagine_losses(self, batch, posterior, seed: tf.Tensor):
        """The learner's losses, metrics and returns from every posterior state `[B, T, ...]`; they
        pass through the model and train none of it."""
        goes_on = tf.reshape(tf.cast(batch["discount"], tf.float32), [-1])
        goes_on = goes_on if self.parts.has_discount else None
        learnt = ("actor", "critic")
        with frozen(*(net for name, net in self.nets.items() if name not in learnt)):
            return self.learner.losses(flat_states(posterior), seed, goes_on)
