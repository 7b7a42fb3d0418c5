"""Random episodes look like episodes."""

import numpy as np

from veorl_tf.data.episodes import load_episode, save_episode
from veorl_tf.data.synthetic import random_episode


def test_layout_and_repeatability(tmp_path):
    for discrete in (False, True):
        one, two = (random_episode(20, 3, 5, 16, discrete) for _ in range(2))
        read = load_episode(save_episode(tmp_path, one))
        for key in one:
            np.testing.assert_array_equal(one[key], two[key])
            np.testing.assert_array_equal(one[key], read[key])
        assert (
            one["image"].shape == (20, 16, 16, 3)
            and not one["action"][0].any()
            and one["reward"][0] == 0
        )
        assert abs(one["action"]).max() <= 1
    assert set(one["action"][1:].sum(1)) == {1.0} and set(one["action"].ravel()) == {0.0, 1.0}
    assert (random_episode(20, 4, 5, 16)["image"] != one["image"]).any()
