"""DreamerV3 (Hafner et al. 2023; 2025) trained offline: world model, actor and critic together.

What makes it DreamerV3 are its parts (`backbone: v3` or `nature`) and the settings of its block in
configs.yaml; here stands its one stage, in which every update trains all of it.
"""

import tensorflow as tf

from veorl_tf.agents.dreamerv2 import DreamerV2
from veorl_tf.agents.stage import Stage, split_seed
from veorl_tf.nets.scan import time_major


class DreamerV3(DreamerV2):
    def stages(self) -> list[Stage]:
        return [self.joint_stage()]

    def joint_stage(self) -> Stage:
        """Model, actor and critic each learn from losses of their own; that on stored sequences
        trains the critic and, through the states, the model."""
        model, replay = self.model_scales(), self.config.behavior.replay_value
        behavior = {"actor": 1.0, "critic": 1.0}
        shared = {"replay_critic": replay} if replay else {}
        return Stage(
            name="joint",
            losses=self.joint_losses,
            streams={"target": self.target_stream()},
            scales=model | behavior | shared,
            groups={
                "model": self.group("joint", "model", *self.model_nets()),
                "actor": self.group("joint", "actor", "actor"),
                "critic": self.group("joint", "critic", "critic"),
            },
            loss_scale=self.loss_scale("joint"),
            before_update=self.learner.update_slow,
            after_update=self.learner.keep_scale,
            evaluates=True,
        )

    def joint_losses(self, batches, seed: tf.Tensor):
        batch = batches["target"]
        model_seed, behavior_seed, hook_seed = split_seed(seed, 3)
        terms, posterior, metrics = self.model.losses(batch, model_seed)
        imagined, more, returns = self.imagine_losses(batch, posterior, behavior_seed)
        terms, metrics = terms | imagined, metrics | more
        if self.config.behavior.replay_value:
            terms["replay_critic"] = self.replay_loss(batch, posterior, returns, hook_seed)
        return terms, metrics

    def replay_loss(self, batch, posterior, returns: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """`returns [B * T]` are those imagined from the posterior states `[B, T, ...]`."""
        inputs = self.features((), posterior, seed).critic
        goes_on = tf.cast(batch["discount"], tf.float32)
        returns = tf.reshape(returns, goes_on.shape)
        parts = (inputs, self.model.rewards(batch), goes_on, returns)
        return self.learner.replay_loss(*(time_major(x) for x in parts))
