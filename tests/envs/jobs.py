"""What the tests ask of worker processes: simulators and TensorFlow do not share a process."""

import os
import sys
import time

import numpy as np


def episode(task, seed, steps, action_seed=0, **options):
    """Frames, rewards, success and end flags of `steps` random decisions."""
    import envs

    env = envs.make(task, **options)
    observation, info = env.reset(seed=seed)
    rng = np.random.default_rng(action_seed)
    frames, rows = [observation["image"]], []
    for _ in range(steps):
        action = rng.uniform(-1, 1, 4).astype(np.float32)
        observation, reward, terminated, truncated, info = env.step(action)
        frames.append(observation["image"])
        rows.append((reward, info["success"], terminated, truncated))
    state = np.array(env.state())
    env.close()
    return np.stack(frames), np.array(rows, float), state


def repeated(task, seed, repeat, decisions):
    """Rewards of `decisions` repeated actions: in one environment that repeats, and summed."""
    import envs

    rng = np.random.default_rng(1)
    actions = rng.uniform(-1, 1, (decisions, 4)).astype(np.float32)
    once = envs.make(task, render=False)
    once.reset(seed=seed)
    many = envs.make(task, render=False, action_repeat=repeat)
    many.reset(seed=seed)
    summed = [sum(once.step(a)[1] for _ in range(repeat)) for a in actions]
    return np.array(summed), np.array([many.step(a)[1] for a in actions])


def refusals():
    """The messages of bad actions and of steps after the end."""
    import envs

    env = envs.make("metaworld_reach", render=False, time_limit=2)
    messages = []
    for action in ([np.nan, 0, 0, 0], [0, 0, 0]):
        env.reset(seed=0)
        try:
            env.step(np.array(action, np.float32))
        except ValueError as error:
            messages.append(str(error))
    env.reset(seed=0)
    ends = [env.step(np.zeros(4))[3] for _ in range(2)]
    try:
        env.step(np.zeros(4))
    except ValueError as error:
        messages.append(str(error))
    return messages, ends


def all_names():
    """Every Meta-World task makes a simulator: how many, and whether TensorFlow was seen."""
    import envs

    names = [name for name in envs.TASKS() if name.startswith("metaworld_")]
    for name in names:
        env = envs.make(name, render=False)
        env.reset(seed=0)
        env.step(np.zeros(4, np.float32))
    return len(names), "tensorflow" in sys.modules


def fails_once(marker):
    """Raises the first time, by a marker file."""
    import pathlib

    path = pathlib.Path(marker)
    if not path.exists():
        path.touch()
        raise RuntimeError("the first time")
    return "done"


class Faulty:
    """A simulator whose third step hangs, has no finite reward, raises, or ends the process."""

    def __init__(self, fault):
        self.fault, self.steps = fault, 0

    def reset(self, seed=None):
        self.steps = 0
        return {"image": np.zeros((2, 2, 3), np.uint8)}, {}

    def step(self, action):
        self.steps += 1
        if self.steps == 3:
            if self.fault == "hang":
                time.sleep(60)
            if self.fault == "exit":
                os._exit(7)
            if self.fault == "raise":
                raise RuntimeError("the door is gone")
        reward = {"nan": np.nan, "inf": np.inf}.get(self.fault, 0.0) if self.steps == 3 else 1.0
        return {"image": np.zeros((2, 2, 3), np.uint8)}, reward, False, False, {}


def always_fails():
    raise RuntimeError("always")


def hangs():
    time.sleep(60)


def streams():
    """Whether this worker's streams are open, its socket is none of them, and it may speak."""
    there = []
    for number in range(3):
        os.fstat(number)
        there.append(not os.path.samestat(os.fstat(number), os.fstat(int(sys.argv[1]))))
    print(end="", flush=True)
    print(end="", file=sys.stderr, flush=True)
    return {"answers": "yes", "socket": int(sys.argv[1]) > 2, "there": there}
