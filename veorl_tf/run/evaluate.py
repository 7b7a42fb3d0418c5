"""Policies in the simulator: returns, success, videos. The simulators run in worker processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from veorl_tf.core import seeds
from veorl_tf.core.errors import MachineError, warn
from veorl_tf.core.progress import progress
from veorl_tf.run.simulators import simulator_errors

# Goal seed of an evaluation's episode 0, above those of any dataset.
FIRST_GOAL = 1_000_000_000  # of the evaluation that ends a run, and of those asked for
TRAINING_GOAL = 1_250_000_000  # of those while training, which choices may be made by
OTHER_GOAL = 1_500_000_000  # of episodes for training on
PATIENCE = 3  # failures of one episode's simulator before the evaluation gives up


Recorder = Callable[[int, Mapping[str, np.ndarray]], None]
"""Is given the index and the arrays of every finished episode."""


class Policy(Protocol):
    """Acts for a fixed number of simulators in lockstep."""

    def __call__(self, image: np.ndarray, is_first: np.ndarray, step: int) -> np.ndarray:
        """`image [W, H, W, 3]` uint8, `is_first [W]` bool, count of calls -> actions `[W, A]`."""


@dataclass
class Scores:
    """What an evaluation saw, one entry an episode, in the order of the goal seeds."""

    returns: list[float] = field(default_factory=list)
    success: list[float] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    videos: list[np.ndarray] = field(default_factory=list)  # uint8 [T, H, W, 3] of the first few
    failures: int = 0  # simulators that had to be replaced

    def summary(self) -> dict[str, float]:
        """Means with their standard errors; success counts an episode that succeeds at any step."""
        count = len(self.returns)
        error = lambda x: float(np.std(x, ddof=1) / np.sqrt(count)) if count > 1 else 0.0
        return {
            "return": float(np.mean(self.returns)),
            "return_error": error(self.returns),
            "success": float(np.mean(self.success)),
            "success_error": error(self.success),
            "length": float(np.mean(self.lengths)),
            "episodes": count,
            "failures": self.failures,
        }


class Evaluator:
    """Keeps a pool of simulators between evaluations; use it in a `with` block.

    `spec` are the keyword arguments of `envs.make`. Goals do not depend on the policy, so that
    policies are compared on the same ones.
    """

    def __init__(self, spec: Mapping, workers: int):
        self.spec, self.workers = dict(spec), workers
        self.pool = None

    def __enter__(self) -> Evaluator:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        if self.pool is not None:
            self.pool.close()
            self.pool = None

    def run(
        self,
        policy: Policy,
        episodes: int,
        videos: int = 0,
        record: Recorder | None = None,
        first_goal: int = FIRST_GOAL,
    ) -> Scores:
        """The scores of `episodes` episodes, the first `videos` of them filmed.

        Episode i has the goal of seed `first_goal + i`. Raises MachineError when an episode's
        simulator fails `PATIENCE` times.
        """
        from envs.workers import SimulatorPool

        if self.pool is None:
            with simulator_errors():
                self.pool = SimulatorPool(self.spec, self.workers)
        finished: dict[int, _Episode] = {}
        failures: dict[int, int] = {}
        step = 0
        with progress(episodes, 0, "evaluating", "episodes") as bar:
            while len(finished) < episodes:
                todo = [i for i in range(episodes) if i not in finished][: self.workers]
                filmed = {i for i in todo if record or i < videos}
                running, step = self._round(policy, todo, filmed, step, first_goal)
                for index, episode in running.items():
                    if episode.failed:
                        self._count(failures, index, episode.failed)
                    else:
                        finished[index] = episode
                        if record:
                            record(index, episode.arrays())
                        if index >= videos:
                            episode.rows = None
                        bar.update()
        replaced = sum(failures.values())
        if replaced:
            warn(f"{replaced} simulators failed during the evaluation and were replaced")
        return _scores([finished[i] for i in range(episodes)], replaced)

    def _round(self, policy, todo, filmed, step, first_goal):
        """One episode on each worker, in lockstep, so that noise does not depend on timing."""
        started = self.pool.reset({w: first_goal + i for w, i in enumerate(todo)})
        size = self.spec["image_size"]
        images = np.zeros((self.workers, size, size, 3), np.uint8)
        is_first = np.ones(self.workers, bool)
        episodes = {w: _Episode(index, index in filmed) for w, index in enumerate(todo)}
        for worker, result in started.items():
            episodes[worker].begin(result, images, worker)
        while any(e.running for e in episodes.values()):
            actions = policy(images, is_first, step)
            is_first, step = np.zeros(self.workers, bool), step + 1
            results = self.pool.step({w: actions[w] for w, e in episodes.items() if e.running})
            for worker, result in results.items():
                episodes[worker].advance(result, actions[worker], images, worker)
        return {e.index: e for e in episodes.values()}, step

    @staticmethod
    def _count(failures: dict[int, int], index: int, reason: str) -> None:
        failures[index] = failures.get(index, 0) + 1
        if failures[index] >= PATIENCE:
            raise MachineError(
                f"the simulator of evaluation episode {index} failed {PATIENCE} "
                f"times, last: {reason}"
            )


class _Episode:
    """One episode while it runs."""

    def __init__(self, index: int, film: bool):
        self.index = index
        self.rows: list[tuple] | None = [] if film else None  # image, action, reward, success
        self.total, self.best, self.length = 0.0, 0.0, 0
        self.running, self.ended, self.failed = True, False, ""

    def begin(self, result, images: np.ndarray, worker: int) -> None:
        from envs.workers import WorkerFailure

        if isinstance(result, WorkerFailure):
            self.running, self.failed = False, result.reason
            return
        self._see(result[0], images, worker, None, 0.0, 0.0)

    def advance(self, result, action: np.ndarray, images: np.ndarray, worker: int) -> None:
        from envs.workers import WorkerFailure

        if isinstance(result, WorkerFailure):
            self.running, self.failed = False, result.reason
            return
        observation, reward, terminated, truncated, info = result
        self.total += float(reward)
        success = float(info.get("success", 0.0))
        self.best = max(self.best, success)
        self.length += 1
        self.running, self.ended = not (terminated or truncated), terminated
        self._see(observation, images, worker, action, float(reward), success)

    def _see(self, observation, images, worker, *came_with) -> None:
        images[worker] = observation["image"]
        if self.rows is not None:
            self.rows.append((observation["image"], *came_with))

    def frames(self) -> np.ndarray:
        """uint8 [n, H, W, 3]."""
        return np.stack([row[0] for row in self.rows])

    def arrays(self) -> dict[str, np.ndarray]:
        """The episode in the exchange format (`data/episodes.py`)."""
        _, actions, rewards, success = zip(*self.rows)
        discount = np.ones(len(self.rows), np.float32)
        discount[-1] = 1.0 - self.ended
        return {
            "image": self.frames(),
            "action": np.stack([np.zeros_like(actions[1]), *actions[1:]]),
            "reward": np.array(rewards, np.float32),
            "success": np.array(success, np.float32),
            "discount": discount,
        }


def _scores(episodes: list[_Episode], failures: int) -> Scores:
    scores = Scores(failures=failures)
    for episode in episodes:
        scores.returns.append(episode.total)
        scores.success.append(float(episode.best > 0))
        scores.lengths.append(episode.length)
        if episode.rows:
            scores.videos.append(episode.frames())
    return scores


def random_policy(action_size: int, discrete: bool, seed: int, workers: int) -> Policy:
    """Uniform actions in [-1, 1], or uniform one-hot vectors."""

    def act(image, is_first, step):
        rng = seeds.generator(seed, "evaluate", "random", step)
        if discrete:
            return np.eye(action_size, dtype=np.float32)[rng.integers(action_size, size=workers)]
        return rng.uniform(-1, 1, (workers, action_size)).astype(np.float32)

    return act


class AgentPolicy:
    """An agent's policy (latents sampled, the actor's mode), compiled once for `workers` rows.

    Its noise derives from (seed, `update`, step), `update` being how many updates made the weights.
    """

    def __init__(self, agent, seed: int, workers: int, update: int = 0):
        import tensorflow as tf

        self.update, self._state = update, agent.initial(workers)
        base = tf.constant(seeds.graph_seed(seed, "evaluate"))

        def graph(image, is_first, state, update, step):
            noise = tf.random.fold_in(tf.random.fold_in(base, update), step)
            return agent.policy(image, is_first, state, noise)

        self._graph = tf.function(graph, autograph=False)

    def __call__(self, image: np.ndarray, is_first: np.ndarray, step: int) -> np.ndarray:
        import tensorflow as tf

        seen = tf.constant(image), tf.constant(is_first), self._state
        index = tf.constant(self.update, tf.int32), tf.constant(step, tf.int32)
        action, self._state = self._graph(*seen, *index)
        return action.numpy()
