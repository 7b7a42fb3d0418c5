"""Scripted behaviour on Meta-World at named qualities, and episodes made with it.

`python -m envs.experts --measure metaworld_door_close --action-repeat 2 --time-limit 200` prints
what the qualities reach (without rendering).
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping

import numpy as np

QUALITIES = ("random", "medium", "expert", "mixed", "misses")
MIXTURE = {"random": 0.2, "medium": 0.6, "expert": 0.2}  # how `mixed` chooses for each episode
MISSES = {"share": 0.6, "metres": 0.15}  # episodes of `misses` that aim beside, and how far


@dataclasses.dataclass(frozen=True)
class Noise:
    """How `medium` spoils the expert.

    An episode draws the scale of its Gaussian action noise uniformly from `scale`. At each decision
    outside a burst, one begins with probability `burst`: for 3 to 11 decisions the actions are then
    one random action with noise instead of the expert's.
    """

    scale: tuple[float, float] = (0.3, 2.0)
    burst: float = 0.06


# Noise in steps from wild to hardly any.
LEVELS = (
    Noise((1.0, 3.0), 0.3),
    Noise((1.0, 3.0), 0.2),
    Noise((0.7, 2.5), 0.15),
    Noise((0.5, 2.5), 0.1),
    Noise((0.4, 2.2), 0.08),
    Noise((0.3, 2.0), 0.06),
    Noise((0.3, 1.5), 0.04),
    Noise((0.2, 1.0), 0.03),
    Noise((0.1, 0.7), 0.02),
    Noise((0.0, 0.4), 0.01),
)

# The level at which 30-70 % of the episodes succeed, at action repeat 2 and 200 simulator steps
# (`short`), and at 1 and 500 (`long`); docs/datasets.md has what was measured.
MEDIUM = {
    "metaworld_door_close": {"short": 4, "long": 0},
    "metaworld_drawer_open": {"short": 7, "long": 5},
    "metaworld_handle_press": {"short": 7, "long": 5},
    "metaworld_handle_pull": {"short": 8, "long": 5},
    "metaworld_plate_slide": {"short": 7, "long": 5},
    "metaworld_coffee_push": {"short": 8, "long": 5},
    "metaworld_button_press": {"short": 7, "long": 5},
    "metaworld_window_close": {"short": 6, "long": 2},
    "metaworld_drawer_close": {"short": 3, "long": 1},
    "metaworld_button_press_topdown": {"short": 5, "long": 2},
}
DEFAULT = {"short": 7, "long": 5}
SHORT = 350  # time limits below this take the level for short episodes


def setting_of(env_options: Mapping) -> str:
    """Which noise applies: 'short' or 'long' episodes."""
    return "short" if env_options.get("time_limit", 500) < SHORT else "long"


def noise_of(task: str, setting: str) -> Noise:
    """The noise of `medium`."""
    return LEVELS[MEDIUM.get(task, DEFAULT)[setting]]


class Behaviour:
    """One episode's policy: `act(state) -> action` in [-1, 1].

    Args:
      task: e.g. 'metaworld_door_close'.
      kind: one of QUALITIES.
      rng: every draw comes from it.
      setting: 'short' or 'long', which noise of MEDIUM applies.
    """

    def __init__(self, task: str, kind: str, rng: np.random.Generator, setting: str = "short"):
        if kind not in QUALITIES:
            raise ValueError(f"quality {kind!r}, but must be one of {', '.join(QUALITIES)}")
        self.beside = np.zeros(3)
        if kind == "mixed":
            kind = str(rng.choice(list(MIXTURE), p=list(MIXTURE.values())))
        elif kind == "misses":
            kind = "medium"
            if rng.random() < MISSES["share"]:
                self.beside = rng.normal(0, MISSES["metres"], 3) * (1, 1, 0.5)
        self.kind, self.rng = kind, rng
        self.holds = task in HOLDING
        self.noise = noise_of(task, setting)
        self.scale = rng.uniform(*self.noise.scale) if kind == "medium" else 0.0
        self.expert = None if kind == "random" else _expert(task)
        self.left, self.wild, self.reached = 0, np.zeros(4), False

    def act(self, state: np.ndarray, success: float) -> np.ndarray:
        """Action float32 [4] for the simulator's state [39]; `success` of the last step."""
        if self.kind == "random":
            return self.rng.uniform(-1, 1, 4).astype(np.float32)
        seen = state.copy()
        seen[4:7] += self.beside  # where the expert believes the object to be
        action = self._hold(state, np.clip(self.expert.get_action(seen), -1, 1), success)
        if self.kind == "medium":
            action = self._spoil(action)
        return np.clip(action, -1, 1).astype(np.float32)

    def _hold(self, state: np.ndarray, action: np.ndarray, success: float) -> np.ndarray:
        """Where the scripted policy presses on past the goal, it is held there once it was reached:
        the hand moves down or up in proportion to how far the object is above the goal."""
        self.reached |= bool(success)
        if not (self.holds and self.reached):
            return action
        above = state[6] - state[38]  # object's height minus the goal's, metres
        return np.array([0.0, 0.0, np.clip(-20 * above, -1, 1), -1.0])

    def _spoil(self, action: np.ndarray) -> np.ndarray:
        if self.left == 0 and self.rng.random() < self.noise.burst:
            self.left = int(self.rng.integers(3, 12))
            self.wild = self.rng.uniform(-1, 1, 4)
        if self.left:
            self.left -= 1
            action = self.wild + self.rng.normal(0, 0.5, 4)
        return np.clip(action, -1, 1) + self.rng.normal(0, self.scale, 4)


# Tasks whose scripted policy does not stay at the goal: it presses the handle to the bottom.
HOLDING = ("metaworld_handle_press",)


def rollout(task: str, quality: str, seed: int, **env_options) -> dict[str, np.ndarray]:
    """One episode, in the exchange format: row t of `action` led to row t of `image`.

    `env_options` are keyword arguments of `envs.make`. Returns image uint8 [n, S, S, 3], action
    float32 [n, 4] (row 0 zeros), reward, discount (1: Meta-World never ends early) and success
    float32 [n] (row 0 of reward and success 0), the same for the same arguments.
    """
    rng = np.random.Generator(np.random.Philox(key=[seed, 0x6570]))
    env = _environment(task, tuple(sorted(env_options.items())))
    behaviour = Behaviour(task, quality, rng, setting_of(env_options))
    observation, info = env.reset(seed=seed)
    rows = [(observation["image"], np.zeros(4, np.float32), 0.0, 0.0)]
    done = False
    while not done:
        action = behaviour.act(env.state(), info["success"])
        observation, reward, terminated, truncated, info = env.step(action)
        rows.append((observation["image"], action, reward, info["success"]))
        done = terminated or truncated
    images, actions, rewards, success = zip(*rows)
    return {
        "image": np.stack(images),
        "action": np.stack(actions),
        "reward": np.array(rewards, np.float32),
        "success": np.array(success, np.float32),
        "discount": np.ones(len(rows), np.float32),
    }


_OPEN: dict = {}


def _environment(task: str, options: tuple):
    """The simulator of this process for these options; kept, since making one takes a second."""
    import envs

    key = (task, options)
    if key not in _OPEN:
        for old in _OPEN.values():
            old.close()
        _OPEN.clear()
        _OPEN[key] = envs.make(task, **dict(options))
    return _OPEN[key]


def _expert(task: str):
    import warnings

    from metaworld.policies import ENV_POLICY_MAP

    warnings.filterwarnings("ignore", message="Constant")  # of actions that we clip anyway
    return ENV_POLICY_MAP[task.removeprefix("metaworld_").replace("_", "-") + "-v3"]()


def measure(task: str, quality: str, episodes: int, **env_options) -> tuple[float, float, float]:
    """Share of episodes with success, mean return, mean first success (in decisions)."""
    results = []
    for seed in range(episodes):
        episode = rollout(task, quality, seed, render=False, **env_options)
        hits = np.flatnonzero(episode["success"])
        results.append((len(hits) > 0, episode["reward"].sum(), hits[0] if len(hits) else np.nan))
    table = np.array(results, float)
    first = table[:, 2][~np.isnan(table[:, 2])]
    return table[:, 0].mean(), table[:, 1].mean(), float(first.mean()) if len(first) else np.nan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", nargs="+", required=True, metavar="TASK")
    parser.add_argument("--qualities", nargs="+", default=["medium"], choices=QUALITIES)
    parser.add_argument("--episodes", type=int, default=40)
    parser.add_argument("--action-repeat", type=int, default=2)
    parser.add_argument("--time-limit", type=int, default=200)
    options = parser.parse_args()
    print("| task | quality | repeat, limit | success | return | first success |")
    print("|---|---|---|---|---|---|")
    for task in options.measure:
        for quality in options.qualities:
            success, total, first = measure(
                task,
                quality,
                options.episodes,
                action_repeat=options.action_repeat,
                time_limit=options.time_limit,
            )
            print(
                f"| {task} | {quality} | {options.action_repeat}, {options.time_limit} | "
                f"{success:.2f} | {total:.0f} | {first:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
