"""Any episode that can be written is read back equal."""

import numpy as np
import pytest

from veorl_tf.data.episodes import KEYS, load_episode, save_episode

pytest.importorskip("hypothesis", reason="hypothesis is in requirements-dev.txt")

from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from hypothesis.extra.numpy import arrays  # noqa: E402

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@st.composite
def episodes(draw):
    """Target data or source videos, of any length and size, with keys of their own."""
    n, h, w, a = (draw(st.integers(1, most)) for most in (7, 5, 5, 4))
    episode = {"image": draw(arrays(np.uint8, (n, h, w, 3)))}
    if draw(st.booleans()):
        episode["action"] = draw(arrays(np.float32, (n, a), elements=FLOATS))
        episode["reward"] = draw(arrays(np.float32, n, elements=FLOATS))
        for key in draw(st.sets(st.sampled_from(["discount", "success"]))):
            episode[key] = draw(arrays(np.float32, n, elements=st.sampled_from([0.0, 1.0])))
    if draw(st.booleans()):
        episode["state"] = draw(arrays(np.float32, (n, 2), elements=FLOATS))
    return episode


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(episodes())
def test_written_and_read(tmp_path, episode):
    path = save_episode(tmp_path, episode, "episode.npz")
    kind = "target" if "action" in episode else "source"
    back = load_episode(path, KEYS[kind])
    assert set(back) == set(KEYS[kind])
    for key, array in back.items():
        missing = {"discount": np.ones, "success": np.zeros}.get(key, np.empty)
        expected = episode.get(key, missing(len(episode["image"]), np.float32))
        assert array.dtype == expected.dtype and array.tobytes() == expected.tobytes()
    assert path.read_bytes() == save_episode(tmp_path, episode, "again.npz").read_bytes()
