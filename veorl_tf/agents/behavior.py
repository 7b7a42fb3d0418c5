"""Actor and critic learnt in imagination (Dreamer), with hooks for what algorithms add."""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import tensorflow as tf

from veorl_tf.agents.objectives import discount_weights, global_mean, lambda_return
from veorl_tf.agents.stage import split_seed
from veorl_tf.core.errors import UserError
from veorl_tf.nets.base import MLP
from veorl_tf.nets.parallel import own
from veorl_tf.nets.rssm import State
from veorl_tf.nets.scan import scan


class Inputs(NamedTuple):
    """What actor and critic see of a state, `[N, ...]`."""

    actor: tf.Tensor
    critic: tf.Tensor
    carry: Any  # kept by the hook for its next call (an empty tuple if it keeps nothing)
    extras: dict  # named tensors that the hook wants back in the trajectory


class Trajectory(NamedTuple):
    """An imagined rollout of n states, time first."""

    state: State  # [n, N, ...]  s_0 ... s_{n-1}
    inputs: Inputs  # [n, N, ...]
    action: tf.Tensor  # [n-1, N, A]  action[t] was chosen in state t
    policy: dict  # [n-1, N, ...] statistics of the actor in state t


class Imagination(Protocol):
    """What the learner needs of a world model; an algorithm's file implements it."""

    def features(self, carry: Any, state: State, seed: tf.Tensor) -> Inputs:
        """What actor and critic see; the first call of a rollout gets `carry=()`."""

    def imagine_step(self, state: State, action: tf.Tensor, noise: tf.Tensor) -> State:
        """One imagined transition."""

    def latent_noise(self, seed: tf.Tensor, leading: list) -> tf.Tensor:
        """Noise for `imagine_step`."""

    def reward(self, trajectory: Trajectory, seed: tf.Tensor) -> tuple[tf.Tensor, dict]:
        """Rewards `[n-1, N]` of states 0 ... n-2 over the whole rollout, and metrics."""

    def discount(self, trajectory: Trajectory) -> tf.Tensor:
        """Discounts `[n-1, N]` of states 0 ... n-2."""


@dataclass(frozen=True)
class Indexing:
    """Which state's return judges which action.

    `veorl`: H states; the action chosen in s_t is judged by R_t, baseline the critic itself.
    `dreamerv2`: H + 1 states; the action chosen in s_t is judged by R_{t+1} (R_t contains r_t,
    which the action cannot change), baseline the slow critic, the first discount is the data's.
    """

    extra_state: int
    shift: int
    slow_baseline: bool
    first_discount_from_data: bool


INDEXING = {
    "veorl": Indexing(0, 0, False, False),
    "dreamerv2": Indexing(1, 1, True, True),
}


class ImaginedActorCritic:
    """DreamerV2's behaviour learner. `actor`, `critic`, `slow` are MLPs, `action` the actor's
    distribution; the numbers are those of the configuration's `behavior` keys."""

    def __init__(
        self,
        model: Imagination,
        actor: MLP,
        critic: MLP,
        slow: MLP,
        action,
        *,
        indexing: str,
        horizon: int,
        lambda_: float,
        gradient: str,
        mix: float,
        entropy: float,
        slow_every: int,
        unroll: bool,
    ):
        if horizon < 3:
            raise UserError(f"--behavior.horizon {horizon}: at least 3")
        self.model, self.action = model, action
        self.actor, self.critic, self.slow = actor, critic, slow
        self.indexing = INDEXING[indexing]
        self.horizon, self.lambda_ = horizon, lambda_
        self.gradient, self.mix, self.entropy = gradient, mix, entropy
        self.slow_every, self.unroll = slow_every, unroll

    def copy_slow(self, index: tf.Tensor) -> None:
        """Hard copy of the critic before updates 0, `slow_every`, 2 `slow_every`, ..."""
        due = tf.equal(index % self.slow_every, 0)
        for slow, fast in zip(self.slow.weights, self.critic.weights):
            own(slow.value).assign(tf.where(due, fast.value, slow.value))

    def rollout(self, start: State, seed: tf.Tensor) -> Trajectory:
        """Imagines from `start [N, ...]`. The policy sees its input with the gradient stopped, so
        an action reaches the loss through states, never through later policy inputs."""
        steps = self.horizon - 1 + self.indexing.extra_state
        count = start["deter"].shape[0]
        seeds = split_seed(seed, 4)
        noise = (
            self.model.latent_noise(seeds[0], [steps, count]),
            self.action.noise(seeds[1], [steps, count]),
            tf.random.split(seeds[2], steps),
        )
        first = self.model.features((), start, seeds[3])

        def step(carry, noise):
            state, inputs, _, _ = carry
            latent_noise, action_noise, hook_seed = noise
            policy = self.action.stats(self.actor(tf.stop_gradient(inputs.actor)))
            action = self.action.sample(policy, action_noise)
            state = self.model.imagine_step(state, action, latent_noise)
            return state, self.model.features(inputs.carry, state, hook_seed), action, policy

        policy = self.action.stats(self.actor(tf.stop_gradient(first.actor)))
        blank = tf.nest.map_structure(tf.zeros_like, policy)
        none = self.action.mode(blank)
        states, inputs, action, policy = scan(step, (start, first, none, blank), noise, self.unroll)
        with_first = lambda one, rest: tf.nest.map_structure(
            lambda a, b: tf.concat([a[None], b], 0), one, rest
        )
        return Trajectory(with_first(start, states), with_first(first, inputs), action, policy)

    def losses(self, start: State, seed: tf.Tensor, start_discount=None):
        """Terms `actor`, `critic` and metrics from start states `[N, ...]` (no gradient to them).

        `start_discount [N]` is the data's discount of the start states, where it is known.
        """
        rollout_seed, reward_seed = split_seed(seed, 2)
        rollout = self.rollout(start, rollout_seed)
        reward, metrics = self.model.reward(rollout, reward_seed)
        discount = self.model.discount(rollout)
        if self.indexing.first_discount_from_data and start_discount is not None:
            discount = tf.concat([start_discount[None], discount[1:]], 0)
        value = tf.squeeze(self.slow(rollout.inputs.critic), -1)
        target = lambda_return(reward, value, discount, self.lambda_)
        weight = discount_weights(discount)
        entropy, mean = self.action.entropy(rollout.policy), global_mean(target)
        actor = self._actor_loss(rollout, target, weight, entropy, value)
        critic, predicted = self._critic_loss(rollout, target, weight)
        metrics |= {
            "actor_entropy": global_mean(entropy),
            "return": mean,
            "value": global_mean(predicted),
            "imagined_reward": global_mean(reward),
            "return_std": tf.sqrt(global_mean(tf.square(target - mean))),
        }
        return {"actor": actor, "critic": critic}, metrics

    def _actor_loss(self, rollout, target, weight, entropy, slow_value):
        shift = self.indexing.shift
        terms = target.shape[0] - shift
        objective = target[shift:]
        if self.gradient in ("reinforce", "both"):
            inputs = tf.stop_gradient(rollout.inputs.critic[:terms])
            baseline = (
                slow_value[:terms]
                if self.indexing.slow_baseline
                else tf.squeeze(self.critic(inputs), -1)
            )
            policy = {k: v[:terms] for k, v in rollout.policy.items()}
            action = tf.stop_gradient(rollout.action[:terms])
            advantage = tf.stop_gradient(objective - baseline)
            reinforce = self.action.log_prob(policy, action) * advantage
            mix = {"reinforce": 0.0, "both": self.mix}[self.gradient]
            objective = reinforce if mix == 0.0 else mix * objective + (1 - mix) * reinforce
        return -global_mean(weight[:terms] * (objective + self.entropy * entropy[:terms]))

    def _critic_loss(self, rollout, target, weight):
        """Half the squared error: Normal(V, 1)'s negative log-likelihood without its constant."""
        inputs = tf.stop_gradient(rollout.inputs.critic[: target.shape[0]])
        predicted = tf.squeeze(self.critic(inputs), -1)
        error = tf.square(predicted - tf.stop_gradient(target))
        return global_mean(weight * 0.5 * error), predicted
