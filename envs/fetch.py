"""Fetch arms (gymnasium-robotics): another robot, another scene, the source of unlabelled video.

`source_clip` makes one clip; `Fetch` is the same world behind gymnasium for `envs.make`.
"""

from __future__ import annotations

import contextlib
import importlib
import io

import numpy as np

from envs import rendering
from envs.base import PixelEnv
from envs.errors import MissingDependency
from envs.options import Options

KINDS = ("reach", "push", "slide", "pick_and_place")
BEHAVIOURS = ("scripted", "random")

# Free cameras of our own; azimuth 0 looks along +x, the way the robot does.
FREE_CAMERAS = {
    "front": dict(lookat=(1.2, 0.75, 0.6), distance=1.45, azimuth=180, elevation=-25),
    "left": dict(lookat=(1.2, 0.75, 0.55), distance=1.35, azimuth=125, elevation=-25),
    "right": dict(lookat=(1.2, 0.75, 0.55), distance=1.35, azimuth=235, elevation=-25),
    "top": dict(lookat=(1.2, 0.75, 0.5), distance=1.2, azimuth=180, elevation=-75),
}
CLIP_CAMERAS = ("front", "left", "right", "top", "external_camera_0")


class Fetch(PixelEnv):
    """One world. The action moves the gripper by (x, y, z) * 5 cm and drives the fingers.

    The reward of a simulator step (1/25 s) is 0 at the goal and -1 elsewhere; success means at the
    goal. `name` is one of KINDS. `view` changes nothing: these cameras are upright and not
    mirrored.
    """

    def __init__(self, name: str, options: Options):
        self._sim = _simulator(name)
        self._mark = self._sim.model.site("target0").id
        camera = "front" if options.camera == "corner" else options.camera
        super().__init__(options, self._sim, FREE_CAMERAS.get(camera, camera), "none")

    def state(self) -> np.ndarray:
        """float64 [9]: gripper, object (in `reach` the gripper again) and goal, in metres."""
        seen = self._seen
        return np.concatenate([seen["observation"][:3], seen["achieved_goal"], self._sim.goal])

    def new_goal(self) -> None:
        """Draws another goal within the episode, from the generator that its seed began."""
        self._sim.goal = self._sim._sample_goal()

    def look_from(self, camera: str) -> None:
        """Goes on with another camera."""
        self._camera.look_from(FREE_CAMERAS.get(camera, camera))

    def _restart(self, seed: int) -> None:
        self._seen, _ = self._sim.reset(seed=seed)

    def _advance(self, action: np.ndarray) -> tuple[float, float]:
        self._seen, reward, _, _, info = self._sim.step(action)
        return float(reward), float(info["is_success"])

    def _before_picture(self) -> None:
        """Puts the red mark where the goal is."""
        import mujoco

        model, data = self._sim.model, self._sim.data
        body = model.site_bodyid[self._mark]
        model.site_pos[self._mark] = self._sim.goal - data.xpos[body]
        mujoco.mj_kinematics(model, data)


def _simulator(name: str):
    """gymnasium-robotics' own environment, without its renderer."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # notes about environments not used here
            module = importlib.import_module(f"gymnasium_robotics.envs.fetch.{name}")
    except ModuleNotFoundError as error:
        raise MissingDependency(
            f"{error.name} is not installed: pip install gymnasium-robotics==1.4.2"
        ) from error
    title = "".join(word.capitalize() for word in name.split("_"))
    return getattr(module, f"MujocoFetch{title}Env")()


def source_clip(
    kind: str, camera: str, behaviour: str, seed: int, length: int, image_size: int
) -> dict[str, np.ndarray]:
    """One clip {"image": uint8 [length, S, S, 3]}, 25 frames per second, without a cut.

    Args:
      kind: one of KINDS.
      camera: one of CLIP_CAMERAS, or any other of `envs.options.FETCH_CAMERAS`.
      behaviour: "scripted" works towards goals, a new one as soon as one is reached;
        "random" drifts about.
      seed: of the world, the goals and the noise: the same arguments give the same bytes.
    """
    if behaviour not in BEHAVIOURS:
        raise ValueError(f"behaviour {behaviour!r}: one of {', '.join(BEHAVIOURS)}")
    env = _world(kind, image_size)
    env.look_from(camera)
    rng = np.random.Generator(np.random.Philox(key=[seed, 0x66657463]))
    policy = Scripted(kind, rng) if behaviour == "scripted" else Drift(rng)
    observation, _ = env.reset(seed=seed)
    frames = [observation["image"]]
    while len(frames) < length:
        if policy.wants_goal(env.state()):
            env.new_goal()
        observation, *_ = env.step(policy.act(env.state()))
        frames.append(observation["image"])
    return {"image": np.stack(frames)}


class Drift:
    """Random motion that goes somewhere: each action is held for a while and then changes."""

    def __init__(self, rng: np.random.Generator):
        self._rng, self._left = rng, 0

    def wants_goal(self, state: np.ndarray) -> bool:
        return False

    def act(self, state: np.ndarray) -> np.ndarray:
        if not self._left:
            self._left = int(self._rng.integers(4, 13))
            self._action = self._rng.uniform(-0.8, 0.8, 4)
            # Homewards on average: the arm would spend the clip at the end of its reach.
            self._action[:3] += 1.5 * (HOME - state[:3])
        self._left -= 1
        noise = self._rng.normal(0, 0.1, 4)
        return np.clip(self._action + noise, -1, 1).astype(np.float32)


HOME = np.array([1.3, 0.75, 0.55])  # above the middle of the table
REACH = 0.3  # how far from there an object may lie to be worked on
PATIENCE = 45  # steps after which a goal is given up


class Scripted:
    """Works on one goal after another; when the object is lost, it waves towards the goals."""

    def __init__(self, kind: str, rng: np.random.Generator):
        self._rng, self._kind = rng, kind
        self._speed = rng.uniform(4.0, 9.0)  # 1/m: action per metre of distance
        self._limit = rng.uniform(0.4, 0.9)
        self._since, self._held = 0, False

    def wants_goal(self, state: np.ndarray) -> bool:
        """Whether the goal is reached (with some dwelling) or given up."""
        self._since += 1
        done = np.linalg.norm(state[3:6] - state[6:]) < 0.03 and self._since > 5
        if done or self._since > PATIENCE:
            self._since, self._held = 0, False
            return True
        return False

    def act(self, state: np.ndarray) -> np.ndarray:
        grip, thing, goal = state[:3], state[3:6], state[6:]
        lost = np.linalg.norm(thing[:2] - HOME[:2]) > REACH or thing[2] < 0.35
        if self._kind == "reach" or lost:
            target, fingers = goal + (self._kind == "slide") * np.array([-0.4, 0, 0.1]), 0.0
        elif self._kind == "pick_and_place":
            target, fingers = self._carry(grip, thing, goal)
        else:
            target, fingers = self._shove(grip, thing, goal), 0.0
        move = np.clip(self._speed * (target - grip), -self._limit, self._limit)
        noise = self._rng.normal(0, 0.05, 4)
        return np.clip(np.append(move, fingers) + noise, -1, 1).astype(np.float32)

    def _carry(self, grip, thing, goal):
        """(where to go, how to move the fingers): over the object, down, close, to the goal."""
        off = thing - grip
        if self._held and np.linalg.norm(off) < 0.06:
            self._grasped += 1
            return (goal if self._grasped > 3 else grip), -1.0
        self._held = False
        if np.linalg.norm(off[:2]) > 0.015 and off[2] < -0.02 or np.linalg.norm(off[:2]) > 0.03:
            return thing + np.array([0, 0, 0.08]), 1.0
        if abs(off[2]) > 0.012:
            return thing, 1.0
        self._held, self._grasped = True, 0
        return grip, -1.0

    def _shove(self, grip, thing, goal):
        """Where to go: over and behind the object, down, then through it towards the goal."""
        way = (goal - thing)[:2]
        way = way / max(np.linalg.norm(way), 1e-6)
        off = (grip - thing)[:2]
        behind = -off @ way  # metres behind the object's centre
        aside = np.linalg.norm(off + behind * way)
        start = np.append(thing[:2] - 0.09 * way, thing[2])
        ready = behind > 0.02 and aside < 0.025
        low = grip[2] < thing[2] + 0.03
        if ready and low:
            through = 0.3 if self._kind == "slide" else 0.0
            return np.append(goal[:2] + through * way - 0.03 * way, thing[2])
        if np.linalg.norm((grip - start)[:2]) < 0.02:
            return start
        clear = np.array([0, 0, 0.1])
        if grip[2] < thing[2] + 0.06:  # up before going round
            return np.append(grip[:2], thing[2] + 0.12)
        return start + clear


_WORLDS: dict = {}


def _world(kind: str, image_size: int) -> Fetch:
    """This process's simulator of a kind; kept, since making one costs as much as a clip."""
    if (kind, image_size) not in _WORLDS:
        rendering.prepare()
        _WORLDS[kind, image_size] = Fetch(kind, Options(image_size=image_size))
    return _WORLDS[kind, image_size]
