"""Actor and critic learnt in imagination (Dreamer), with hooks for what algorithms add."""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import tensorflow as tf

from veorl_tf.agents.objectives import (
    discount_weights,
    global_mean,
    lambda_return,
    percentiles,
)
from veorl_tf.agents.stage import split_seed
from veorl_tf.core.errors import UserError
from veorl_tf.nets import initial
from veorl_tf.nets.base import Net, frozen
from veorl_tf.nets.dense import MLP
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
        """Rewards `[n, N]` of arriving in the trajectory's states, and metrics."""

    def discount(self, trajectory: Trajectory) -> tf.Tensor:
        """Discounts `[n, N]` of the trajectory's states."""


@dataclass(frozen=True)
class Indexing:
    """Which state's return judges which action.

    `veorl`: H states; the action chosen in s_t is judged by R_t, baseline the critic itself.
    `dreamerv2`: H + 1 states; the action chosen in s_t is judged by R_{t+1} (R_t contains r_t,
    which the action cannot change), baseline the slow critic, the first discount is the data's.
    `dreamerv3`: H + 1 states; returns count rewards from the next state on, R_t = r_{t+1} +
    d_{t+1} ..., and the action chosen in s_t is judged by R_t; every weight contains whether the
    data went on in the first state.
    """

    extra_state: int = 0
    shift: int = 0
    slow_baseline: bool = False
    first_discount_from_data: bool = False
    arriving: bool = False


INDEXING = {
    "veorl": Indexing(),
    "dreamerv2": Indexing(1, 1, slow_baseline=True, first_discount_from_data=True),
    "dreamerv3": Indexing(1, arriving=True),
}


class ReturnScale(Net):
    """How far the returns of a batch lie apart: the range from their 5th to their 95th percentile,
    averaged over updates (Hafner et al. 2023, eq. 12), at least 1."""

    LOW, HIGH = 5.0, 95.0

    def __init__(self, name: str, rate: float):
        super().__init__(name)
        self.rate = rate

    def build(self):
        self.range = self.add_weight((2,), "range", initial.zeros)

    def update(self, returns: tf.Tensor) -> tf.Tensor:
        """The averages `[2]` after a batch of returns, without gradient; nothing is assigned."""
        batch = tf.stack(percentiles(returns, self.LOW, self.HIGH))
        before = tf.stop_gradient(self.range.value)
        moved = (1 - self.rate) * before + self.rate * batch
        finite = tf.math.is_finite(global_mean(tf.stop_gradient(returns)))
        return tf.where(finite, moved, before)

    @staticmethod
    def divisor(averages: tf.Tensor) -> tf.Tensor:
        return tf.maximum(1.0, averages[1] - averages[0])


class ImaginedActorCritic:
    """Dreamer's behaviour learner. `actor`, `critic`, `slow` are MLPs, `action` the actor's
    distribution, `scalar` what the critics say; the numbers are those of the configuration's
    `behavior` keys. `scale` divides the returns that the actor sees, or is None."""

    def __init__(
        self,
        model: Imagination,
        actor: MLP,
        critic: MLP,
        slow: MLP,
        action,
        scalar,
        scale: ReturnScale | None,
        *,
        indexing: str,
        horizon: int,
        gamma: float,
        lambda_: float,
        gradient: str,
        mix: float,
        entropy: float,
        slow_every: int,
        slow_fraction: float,
        slow_target: bool,
        slow_pull: float,
        unroll: bool,
    ):
        if horizon < 3:
            raise UserError(f"--behavior.horizon {horizon}: at least 3")
        self.model, self.action, self.scalar, self.scale = model, action, scalar, scale
        self.actor, self.critic, self.slow = actor, critic, slow
        self.indexing = INDEXING[indexing]
        self.horizon, self.gamma, self.lambda_ = horizon, gamma, lambda_
        self.gradient, self.mix, self.entropy = gradient, mix, entropy
        self.slow_every, self.slow_fraction = slow_every, slow_fraction
        self.slow_target, self.slow_pull = slow_target, slow_pull
        self.unroll = unroll

    def update_slow(self, index: tf.Tensor) -> None:
        """Before updates 0, `slow_every`, 2 `slow_every`, ... the slow critic goes `slow_fraction`
        of the way to the critic; the first time all of it."""
        due = tf.equal(index % self.slow_every, 0)
        share = tf.where(tf.equal(index, 0), 1.0, self.slow_fraction)
        share = tf.where(due, share, 0.0)
        for slow, fast in zip(self.slow.weights, self.critic.weights):
            own(slow.value).assign((1 - share) * slow.value + share * fast.value)

    def keep_scale(self, metrics, made: tf.Tensor) -> None:
        """After an update, if it was made: the averages that its losses were computed with."""
        if self.scale is not None:
            averages = tf.stack([metrics["return_low"], metrics["return_high"]])
            kept = own(self.scale.range.value)
            kept.assign(tf.where(made, averages, kept))

    def rollout(self, start: State, seed: tf.Tensor) -> Trajectory:
        """Imagines from `start [N, ...]`. The policy sees its input with the gradient stopped, so
        an action reaches the loss through states, never through later policy inputs; under
        REINFORCE not even through states."""
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
            if self.gradient == "reinforce":
                action = tf.stop_gradient(action)
            state = self.model.imagine_step(state, action, latent_noise)
            if self.gradient == "reinforce":
                state = tf.nest.map_structure(tf.stop_gradient, state)
            return state, self.model.features(inputs.carry, state, hook_seed), action, policy

        policy = self.action.stats(self.actor(tf.stop_gradient(first.actor)))
        blank = tf.nest.map_structure(tf.zeros_like, policy)
        none = self.action.mode(blank)
        states, inputs, action, policy = scan(step, (start, first, none, blank), noise, self.unroll)
        with_first = lambda one, rest: tf.nest.map_structure(
            lambda a, b: tf.concat([a[None], b], 0), one, rest
        )
        return Trajectory(with_first(start, states), with_first(first, inputs), action, policy)

    def losses(self, start: State, seed: tf.Tensor, goes_on=None):
        """Terms `actor`, `critic`, metrics, and the returns `[N]` of the start states `[N, ...]`
        (no gradient to them).

        `goes_on [N]` is the data's discount of the start states, 0 where an episode truly ended.
        """
        rollout_seed, reward_seed = split_seed(seed, 2)
        rollout = self.rollout(start, rollout_seed)
        judged = rollout if self.indexing.arriving else before_last(rollout)
        reward, metrics = self.model.reward(judged, reward_seed)
        discount = self.model.discount(judged)
        with frozen(self.critic, self.slow):  # the actor's loss trains no critic
            judge = self.slow if self.slow_target else self.critic
            value = self.scalar.mean(judge(rollout.inputs.critic))
        if self.indexing.arriving:
            reward, discount = reward[1:], discount[1:]
            first = tf.ones_like(discount[0]) if goes_on is None else goes_on
            weight = first * discount_weights(discount)
        else:
            if self.indexing.first_discount_from_data and goes_on is not None:
                discount = tf.concat([self.gamma * goes_on[None], discount[1:]], 0)
            weight = discount_weights(discount)
        target = lambda_return(reward, value, discount, self.lambda_)
        divisor = 1.0
        if self.scale is not None:
            averages = self.scale.update(target)
            divisor = self.scale.divisor(averages)
            metrics |= {"return_low": averages[0], "return_high": averages[1]}
        entropy, mean = self.action.entropy(rollout.policy), global_mean(target)
        actor = self._actor_loss(rollout, target, weight, entropy, value, divisor)
        critic, predicted = self._critic_loss(rollout.inputs.critic, target, weight)
        metrics |= {
            "actor_entropy": global_mean(entropy),
            "return": mean,
            "value": global_mean(predicted),
            "imagined_reward": global_mean(reward),
            "return_std": tf.sqrt(global_mean(tf.square(target - mean))),
        }
        return {"actor": actor, "critic": critic}, metrics, tf.stop_gradient(target[0])

    def replay_loss(self, inputs, reward, goes_on, returns) -> tf.Tensor:
        """The critic's loss on stored sequences, time first (DreamerV3, 2025): lambda-returns of
        their rewards `[T, B]`, where the returns imagined from each state stand for its value.

        The gradient reaches what `inputs [T, B, ...]` (the critic's) were made of.
        """
        target = lambda_return(reward[1:], returns, self.gamma * goes_on[1:], self.lambda_)
        return global_mean(self._critic_errors(inputs[:-1], target)[0])

    def _actor_loss(self, rollout, target, weight, entropy, value, divisor):
        shift = self.indexing.shift
        terms = target.shape[0] - shift
        objective = target[shift:] / divisor
        if self.gradient in ("reinforce", "both"):
            baseline = value[:terms]
            if not self.indexing.slow_baseline and self.slow_target:
                baseline = self.scalar.mean(self.critic(rollout.inputs.critic[:terms]))
            policy = {k: v[:terms] for k, v in rollout.policy.items()}
            action = tf.stop_gradient(rollout.action[:terms])
            advantage = tf.stop_gradient(objective - baseline / divisor)
            reinforce = self.action.log_prob(policy, action) * advantage
            mix = {"reinforce": 0.0, "both": self.mix}[self.gradient]
            objective = reinforce if mix == 0.0 else mix * objective + (1 - mix) * reinforce
        return -global_mean(weight[:terms] * (objective + self.entropy * entropy[:terms]))

    def _critic_loss(self, inputs, target, weight):
        error, predicted = self._critic_errors(tf.stop_gradient(inputs[: target.shape[0]]), target)
        return global_mean(weight * error), predicted

    def _critic_errors(self, inputs, target):
        """Loss of the target (no gradient to it), and of what the slow critic says, `[n, N]`; and
        the prediction."""
        outputs = self.critic(inputs)
        error = self.scalar.loss(outputs, target)
        if self.slow_pull:
            slow = self.scalar.mean(self.slow(tf.stop_gradient(inputs)))
            error += self.slow_pull * self.scalar.loss(outputs, slow)
        return error, self.scalar.mean(outputs)


def before_last(rollout: Trajectory) -> Trajectory:
    """The rollout without its last state, and without the action that led there."""
    cut = lambda nest: tf.nest.map_structure(lambda x: x[:-1], nest)
    return Trajectory(
        cut(rollout.state), cut(rollout.inputs), cut(rollout.action), cut(rollout.policy)
    )
