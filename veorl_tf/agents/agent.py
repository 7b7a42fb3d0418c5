"""What every agent is, seen by the loops: nets, stages, a policy, a report."""

from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from veorl_tf.agents.behavior import Inputs, ReturnScale, Trajectory
from veorl_tf.agents.objectives import global_mean
from veorl_tf.agents.registry import BACKBONES, LEARNERS, find
from veorl_tf.agents.stage import Stage, split_seed
from veorl_tf.agents.world_model import WorldModel
from veorl_tf.nets.base import Net, initialise
from veorl_tf.nets.distributions import make_action
from veorl_tf.nets.optimizers import OPTIMIZERS, LossScale, Optimizer
from veorl_tf.nets.rssm import Dynamics, State
from veorl_tf.nets.vision import preprocess


@dataclass(frozen=True)
class ActionSpace:
    """Actions as the agent gives them: `size` numbers in [-1, 1], or a one-hot vector."""

    size: int
    discrete: bool


class Agent:
    """Base of the agents that imagine with one trunk world model.

    A subclass creates further nets in `create`, says its `stages()`, and may change the hooks of
    the behaviour learner (`features`, `reward`). `config` is the resolved configuration.
    """

    def __init__(self, config, action: ActionSpace):
        self.config, self.action_space = config, action
        self.nets: dict[str, Net] = {}
        self.create()
        for net in self.nets.values():
            net.build()
            initialise(net, config.seed)

    # ----- nets --------------------------------------------------------------------------------

    def create(self) -> None:
        """Makes the trunk world model, actor and critic."""
        config = self.config
        self.parts = find(BACKBONES, "backbone", config.backbone)(config)
        self.latent = self.parts.latent
        encoder = self.add(self.parts.encoder("encoder"))
        trunk = self.add(self.parts.rssm("trunk", self.action_space.size, encoder.size))
        width = trunk.feature_size
        decoder = self.add(self.parts.decoder("image"))
        reward = self.add(self.parts.head("reward", width, self.parts.scalar.outputs))
        discount = None
        if self.parts.has_discount:
            discount = self.add(self.parts.head("discount", width, 1))
        self.model = WorldModel(
            self.parts,
            encoder,
            trunk,
            decoder,
            reward,
            discount,
            gamma=config.behavior.gamma,
            decides=config.behavior.discount == "mode",
            reward_map=config.data.reward,
        )
        self.create_behavior(width)

    def create_behavior(self, width: int) -> None:
        """Actor, critic and slow critic over inputs of `width`."""
        keys, space, scalar = self.config.behavior, self.action_space, self.parts.scalar
        action = make_action(keys.actor, space.size, space.discrete, keys.unimix)
        actor = self.add(self.parts.head("actor", width, action.outputs))
        critic = self.add(self.parts.head("critic", width, scalar.outputs))
        slow = self.add(self.parts.head("slow_critic", width, scalar.outputs, like="critic"))
        scale = None
        if keys.return_rate:
            scale = self.add(ReturnScale("return_scale", keys.return_rate))
        gradient = keys.gradient
        if gradient == "auto":
            gradient = "reinforce" if space.discrete else "dynamics"
        self.learner = find(LEARNERS, "behavior.learner", keys.learner)(
            self,
            actor,
            critic,
            slow,
            action,
            scalar,
            scale,
            indexing=keys.indexing,
            horizon=keys.horizon,
            gamma=keys.gamma,
            lambda_=keys["lambda"],
            gradient=gradient,
            mix=keys.mix,
            entropy=keys.entropy,
            slow_every=keys.slow_every,
            slow_fraction=keys.slow_fraction,
            slow_target=keys.slow_target,
            slow_pull=keys.slow_pull,
            unroll=self.config.unroll,
        )

    def add(self, net: Net) -> Any:
        self.nets[net.name] = net
        return net

    def weights(self, *names: str) -> dict[str, tf.Variable]:
        """Variables by path, of the named nets or of all."""
        nets = [self.nets[name] for name in names] if names else self.nets.values()
        return {v.path: v.value for net in nets for v in net.weights}

    def group(self, stage: str, name: str, *nets: str) -> Optimizer:
        """The optimiser of group `name` (its keys in the configuration) over the named nets."""
        keys, make = self.config[name], OPTIMIZERS[self.config.optimizer]
        return make(f"{stage}/{name}", self.weights(*nets), **keys.to_dict())

    def loss_scale(self, stage: str) -> LossScale:
        return LossScale(stage, self.config.precision == "mixed_float16")

    def copy(self, source: str, target: str) -> None:
        """Overwrites one net's weights by those of another of the same shape."""
        for left, right in zip(self.nets[source].weights, self.nets[target].weights, strict=True):
            right.assign(left)

    # ----- what the loop calls -----------------------------------------------------------------

    def stages(self) -> list[Stage]:
        """The stages of training, in order."""
        raise NotImplementedError("stages() -> list[Stage]")

    def policy(
        self,
        image: tf.Tensor,
        is_first: tf.Tensor,
        state: State,
        seed: tf.Tensor,
        sample: bool = False,
    ) -> tuple[tf.Tensor, State]:
        """Acts on `image [B, 64, 64, 3]` uint8; rows where `is_first [B]` start afresh.

        `state` is `initial(B)` or what the last call returned (it holds the action taken); the
        latent is sampled with `seed [2]`; the action is the actor's mode, or a sample. Returns
        actions `[B, A]` in [-1, 1] or one-hot, and the next state, float32 in any precision.
        """
        latent_seed, action_seed, hook_seed = split_seed(seed, 3)
        count = tf.shape(image)[0]
        first = lambda x: tf.reshape(is_first, [-1] + [1] * (len(x.shape) - 1))
        state = {k: tf.where(first(v), v, state[k]) for k, v in self.initial(count).items()}
        rssm, actor = self.model.rssm, self.learner.actor
        latent = rssm.observe_step(
            {k: v for k, v in state.items() if k != "action"},
            state["action"],
            self.model.encoder(preprocess(image)),
            rssm.latent.noise(latent_seed, [count]),
        )
        dist = self.learner.action
        stats = dist.stats(actor(self.features((), latent, hook_seed).actor))
        noise = dist.noise(action_seed, [count])
        action = dist.sample(stats, noise) if sample else dist.mode(stats)
        action = tf.clip_by_value(action, -1.0, 1.0)
        return action, as_float32({**latent, "action": action})

    def initial(self, batch) -> State:
        """The policy's state before the first frame of `batch` episodes."""
        return as_float32(
            {**self.model.rssm.initial(batch), "action": tf.zeros([batch, self.action_space.size])}
        )

    def report(self, stage: str, batches, seed: tf.Tensor) -> dict[str, tf.Tensor]:
        """Videos `[T, H, W, 3]` and pictures `[H, W, 3]` in [0, 1], by name, of some windows."""
        batch = batches["target"]
        embed = self.model.encoder(preprocess(batch["image"]))
        return {
            "open_loop/trunk": self.open_loop(
                self.model.rssm,
                self.model.decoder,
                embed,
                self.model.actions(batch),
                batch["image"],
                seed,
            )
        }

    def open_loop(
        self,
        rssm: Dynamics,
        decoder: Net,
        embed,
        action,
        image,
        seed,
        context: int = 5,
        columns: int = 4,
    ) -> tf.Tensor:
        """Truth, prediction and error from top to bottom, `[T, 3 H, columns * W, 3]` in [0, 1].

        The first `context` frames are reconstructions, the rest is imagined from the actions alone.
        """
        embed, action, image = embed[:columns], action[:columns], image[:columns]
        context = min(context, image.shape[1] - 1)
        seen, ahead = split_seed(seed, 2)
        posterior, _ = rssm.observe(embed[:, :context], action[:, :context], seen)
        last = {k: v[:, -1] for k, v in posterior.items()}
        future = rssm.imagine(last, action[:, context:], ahead)
        features = tf.concat([rssm.features(posterior), rssm.features(future)], 1)
        truth = preprocess(image) + 0.5
        model = tf.clip_by_value(tf.cast(decoder(features), tf.float32) + 0.5, 0, 1)
        rows = tf.concat([truth, model, (model - truth + 1) / 2], 2)
        return tf.concat(tf.unstack(rows), 2)

    # ----- hooks of the behaviour learner ------------------------------------------------------

    def features(self, carry, state: State, seed: tf.Tensor) -> Inputs:
        """Actor and critic see the state."""
        features = self.model.rssm.features(state)
        return Inputs(features, features, carry, {})

    def imagine_step(self, state: State, action: tf.Tensor, noise: tf.Tensor) -> State:
        return self.model.rssm.imagine_step(state, action, noise)

    def latent_noise(self, seed: tf.Tensor, leading: list) -> tf.Tensor:
        return self.model.rssm.latent.noise(seed, leading)

    def reward(self, rollout: Trajectory, seed: tf.Tensor) -> tuple[tf.Tensor, dict]:
        """The reward head's mean."""
        reward = self.model.reward(self.model.rssm.features(rollout.state))
        return reward, {"extrinsic_reward": global_mean(reward)}

    def discount(self, rollout: Trajectory) -> tf.Tensor:
        return self.model.discount(self.model.rssm.features(rollout.state))


def as_float32(state: State) -> State:
    """A state that leaves this code: half precision stays inside."""
    return {k: tf.cast(v, tf.float32) for k, v in state.items()}
