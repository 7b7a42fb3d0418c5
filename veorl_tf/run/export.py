"""Taking the policy home: a SavedModel that acts without this code base."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import tensorflow as tf

from veorl_tf.core.config import Config
from veorl_tf.core.files import atomic_directory, atomic_write

METADATA = "policy.json"


class PolicyModule(tf.Module):
    """The signatures of an exported policy; all tensors are float32 unless said otherwise.

    `initial_state(batch: int32 []) -> {state...}` before the first frame of every row.
    `act(image: uint8 [B, 64, 64, 3], is_first: bool [B], seed: int32 [2], state...)
        -> {action: [B, A], state...}`; rows where `is_first` start afresh, `seed` drives the
    latent's sampling (the same seed and inputs give the same action). Feed the returned state
    back, unchanged, with the next frame. State tensors are named `state_<part>`.
    """

    def __init__(self, agent):
        super().__init__()
        self.agent_variables = list(agent.weights().values())
        self._agent = agent
        self.act = tf.function(self._act, autograph=False)
        self.initial_state = tf.function(self._initial_state, autograph=False)

    def concrete(self) -> dict:
        """The signatures, for any batch size."""
        specs = {
            f"state_{k}": tf.TensorSpec([None, *v.shape[1:]], v.dtype, f"state_{k}")
            for k, v in self._agent.initial(1).items()
        }
        return {
            "act": self.act.get_concrete_function(
                image=tf.TensorSpec([None, 64, 64, 3], tf.uint8, "image"),
                is_first=tf.TensorSpec([None], tf.bool, "is_first"),
                seed=tf.TensorSpec([2], tf.int32, "seed"),
                **specs,
            ),
            "initial_state": self.initial_state.get_concrete_function(
                batch=tf.TensorSpec([], tf.int32, "batch")
            ),
        }

    def _act(self, image, is_first, seed, **state):
        latent = {name.removeprefix("state_"): value for name, value in state.items()}
        action, latent = self._agent.policy(image, is_first, latent, seed)
        return {"action": action, **{f"state_{k}": v for k, v in latent.items()}}

    def _initial_state(self, batch):
        return {f"state_{k}": v for k, v in self._agent.initial(batch).items()}


def export(agent, config: Config, out: Path, bounds: dict | None = None) -> Path:
    """Writes the SavedModel of `agent`'s policy to the folder `out`, in place of what is there.

    `policy.json` beside the model says what it expects: image size, camera and orientation,
    action bounds of the data, simulator steps per decision.
    """
    module = PolicyModule(agent)
    with atomic_directory(out) as temporary:
        with _errors_of_the_system(out), _utf8(temporary) as place:
            tf.saved_model.save(module, str(place), signatures=module.concrete())
        with atomic_write(Path(temporary) / METADATA, "w") as file:
            json.dump(describe(agent, config, bounds), file, indent=1)
    return out


@contextmanager
def _errors_of_the_system(out: Path) -> Iterator[None]:
    """TensorFlow's errors, which quote those of the operating system, as these."""
    try:
        yield
    except tf.errors.OpError as error:
        for number in errno.errorcode:
            if os.strerror(number) in error.message:
                raise OSError(number, os.strerror(number), str(out)) from None
        raise


@contextmanager
def _utf8(folder: Path) -> Iterator[Path]:
    """`folder`, or, since TensorFlow takes no name that is not UTF-8, another one whose files are
    brought there."""
    if not re.search("[\ud800-\udfff]", str(folder)):
        yield folder
        return
    with tempfile.TemporaryDirectory() as other:
        yield Path(other)
        shutil.copytree(other, folder, dirs_exist_ok=True)


def describe(agent, config: Config, bounds: dict | None) -> dict:
    """What somebody needs to know to feed the policy; how frames of foreign data were taken
    (`--task none`) is not known here."""
    env, foreign = config.env, config.task == "none"
    return {
        "agent": config.agent,
        "backbone": config.backbone,
        "task": config.task,
        "seed": config.seed,
        "image": {
            "shape": [64, 64, 3],
            "dtype": "uint8",
            "order": "RGB, top row first",
            **{key: None if foreign else env[key] for key in ("camera", "view", "render_quality")},
        },
        "action": {
            "size": agent.action_space.size,
            "discrete": agent.action_space.discrete,
            "range": [-1.0, 1.0],
            "data_bounds": bounds,
        },
        "action_repeat": None if foreign else env.action_repeat,
        "state": {k: [int(n) for n in v.shape[1:]] for k, v in agent.initial(1).items()},
        "signatures": ["initial_state", "act"],
    }
