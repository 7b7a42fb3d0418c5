"""Which windows are drawn, what is in them, and that nothing but the key decides."""

import threading
import time

import numpy as np
import pytest

from veorl_tf.core import seeds
from veorl_tf.core.errors import UserError
from veorl_tf.data.episodes import save_episode
from veorl_tf.data.jumps import compact
from veorl_tf.data.store import FrameStore
from veorl_tf.data.synthetic import random_episode
from veorl_tf.data.windows import Batches, WindowSampler


def episode(length=7, seed=0, actions=4):
    return random_episode(length, seed, actions, image_size=8)


LENGTHS = (5, 9, 3, 12, 6)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    place = tmp_path_factory.mktemp("windows")
    for i, length in enumerate(LENGTHS):
        save_episode(place / "eps", episode(length, i), name=f"{i}.npz")
    return FrameStore.build_or_open(place / "eps", place / "cache")


def draws(sampler, count=4000, seed=0):
    return np.concatenate(
        [
            sampler.indices(np.random.Generator(np.random.Philox(seed * 10**6 + i)))
            for i in range(count // sampler.batch)
        ]
    )


@pytest.mark.parametrize("length", [1, 2, 5, 6, 11])
@pytest.mark.parametrize("oversample", [False, True])
def test_windows_stay_inside_eligible_episodes(store, length, oversample):
    sampler = WindowSampler(store, store.episodes, length, 50, oversample)
    starts = draws(sampler)
    assert starts.dtype == np.int64
    owner = np.searchsorted(store.episodes.starts, starts, "right") - 1
    offset = starts - store.episodes.starts[owner]
    # Episodes with more than `length` frames, none with exactly that; all starts to n - length.
    assert set(owner) == {i for i, n in enumerate(LENGTHS) if n > length}
    for i in set(owner):
        assert set(offset[owner == i]) == set(range(LENGTHS[i] - length + 1))


def test_episodes_and_starts_are_uniform(store):
    starts = draws(WindowSampler(store, store.episodes, 5, 100), 40000)
    # Eligible: 9, 12 and 6 frames, a third each, with 5, 8 and 2 starts.
    for first, count in ((5, 5), (17, 8), (29, 2)):
        share = np.bincount(starts, minlength=40)[first : first + count] / len(starts)
        np.testing.assert_allclose(share, 1 / 3 / count, atol=0.01)


def test_oversampled_ends_have_the_share_length_over_n(store):
    only = store.episodes[[3]]  # 12 frames
    starts = draws(WindowSampler(store, only, 5, 100, oversample_ends=True), 40000) - only.starts[0]
    share = np.bincount(starts, minlength=8) / len(starts)
    np.testing.assert_allclose(share[7], 5 / 12, atol=0.01)
    np.testing.assert_allclose(share[:7], 1 / 12, atol=0.01)


def test_no_episode_long_enough(store):
    with pytest.raises(
        UserError, match=r"eps: .*12 frames: the longest of 5 has 12 frames, 13 are needed"
    ):
        WindowSampler(store, store.episodes, 12, 4)
    with pytest.raises(UserError, match="longest of 0 has 0"):
        WindowSampler(store, store.episodes[[]], 1, 4)
    with pytest.raises(UserError, match="at least 1"):
        WindowSampler(store, store.episodes, 0, 4)


def test_gather(store):
    extra = np.arange(len(store))
    sampler = WindowSampler(
        store, store.episodes, 4, 3, keys=("image", "reward", "row"), columns={"row": extra}
    )
    rows = np.array([[0, 5], [6, 31]])[..., None] + np.arange(4)
    windows = sampler.gather({"rows": rows, "mask": rows > 3})
    assert set(windows) == {"image", "reward", "row", "mask"}
    assert windows["image"].shape == (2, 2, 4, 8, 8, 3)
    np.testing.assert_array_equal(windows["row"], rows)
    np.testing.assert_array_equal(windows["mask"], rows > 3)
    np.testing.assert_array_equal(windows["image"], store.arrays["image"][windows["row"]])
    np.testing.assert_array_equal(windows["reward"], store.arrays["reward"][windows["row"]])
    assert windows["image"].dtype == np.uint8 and windows["reward"].dtype == np.float32
    assert type(windows["image"]) is np.ndarray and windows["image"].flags.writeable


def test_key_frame_windows(store):
    """Only the frames in which a behaviour ends; the code of a row led to it."""
    row = np.arange(len(store))
    codes = np.where((row > 10) & (row < 23), row % 3, 1).astype(np.int32)
    columns = {"code": codes, "row": row}
    keys = ("image", "row")
    sampler = WindowSampler(store, store.episodes, 6, 8, False, keys, columns, slots=4)
    plain = WindowSampler(store, store.episodes, 6, 8, False, keys, columns)
    seen = set()
    for seed in range(20):
        batch, whole = (
            one.sample(np.random.Generator(np.random.Philox(seed))) for one in (sampler, plain)
        )
        assert set(batch) == {"image", "row", "code", "mask", "runs", "index"}
        index = codes[whole["row"]][:, 1:]
        np.testing.assert_array_equal(batch["index"], index)
        jumps = compact(index, 4)
        for key in ("code", "mask", "runs"):
            np.testing.assert_array_equal(batch[key], getattr(jumps, key))
        frames = np.take_along_axis(whole["row"], jumps.frame, 1)
        np.testing.assert_array_equal(batch["row"], frames)
        np.testing.assert_array_equal(batch["image"], store.arrays["image"][frames])
        seen |= set(batch["runs"])
    assert {min(seen), max(seen)} == {1, 5}, "fewer runs than slots, and more"


def streams(store):
    return {
        "target": WindowSampler(store, store.episodes, 4, 6),
        "source": WindowSampler(store, store.episodes, 2, 3),
    }


def assert_equal(one, two):
    assert one.keys() == two.keys()
    for name in one:
        assert one[name].keys() == two[name].keys()
        for key in one[name]:
            np.testing.assert_array_equal(one[name][key], two[name][key])


def test_a_batch_depends_on_its_index_alone(store):
    with Batches(streams(store), 3, "model", prefetch=1) as batches:
        reference = [next(batches) for _ in range(9)]
    sums = {batch["target"]["image"].sum() for batch in reference}
    assert len(sums) == 9
    for start, prefetch in ((0, 5), (4, 1), (7, 3)):
        with Batches(streams(store), 3, "model", start, prefetch=prefetch) as batches:
            for i in range(start, 9):
                assert batches.index == i
                assert_equal(next(batches), reference[i])
            assert batches.index == 9
    with Batches({"target": streams(store)["target"]}, 3, "model", 5) as batches:
        assert_equal(next(batches), {"target": reference[5]["target"]})
        assert_equal(batches.batch(2), {"target": reference[2]["target"]})
    for seed, stage in ((4, "model"), (3, "behavior")):
        with Batches(streams(store), seed, stage) as batches:
            assert not np.array_equal(
                next(batches)["target"]["image"], reference[0]["target"]["image"]
            )
    expected = streams(store)["target"].sample(seeds.generator(3, "model", "target", 2))
    assert_equal({"target": expected}, {"target": reference[2]["target"]})


def test_several_updates_per_call(store):
    with Batches(streams(store), 0, "model", 1, 8) as single:
        reference = list(single)
    assert len(reference) == 7
    with Batches(streams(store), 0, "model", 1, 8, per_call=3) as batches:
        stacked = list(batches)
        assert batches.index == 8
    assert [batch["target"]["image"].shape[0] for batch in stacked] == [3, 3, 3]
    padding = stacked[2]["target"]["image"]
    np.testing.assert_array_equal(padding[1:], padding[[0, 0]])
    for i, expected in enumerate(reference):
        got = {
            name: {key: array[i % 3] for key, array in arrays.items()}
            for name, arrays in stacked[i // 3].items()
        }
        assert_equal(got, expected)


def test_calls_end_where_something_is_due(store):
    """Every call begins where the one before ended, has at most K updates, and crosses no end."""
    ends = lambda index: (index // 4 + 1) * 4
    with Batches(streams(store), 0, "model", 1, 11, per_call=3, ends=ends) as batches:
        indices = [1]
        for stacked in batches:
            first, count = indices[-1], batches.index - indices[-1]
            indices.append(batches.index)
            for k in range(count):
                one = {s: {key: v[k] for key, v in a.items()} for s, a in stacked.items()}
                with Batches(streams(store), 0, "model", first + k) as single:
                    assert_equal(one, next(single))
    assert indices == [1, 4, 7, 8, 11]


def test_rows_without_frames(store):
    with Batches(streams(store), 0, "model", 0, 2, gather=False) as rows:
        for drawn, index in zip(rows, range(2), strict=True):
            with Batches(streams(store), 0, "model", index) as batches:
                batch = next(batches)
            for name, draw in drawn.items():
                assert set(draw) == {"rows"} and draw["rows"].dtype == np.int32
                frames = store.arrays["image"][draw["rows"]]
                np.testing.assert_array_equal(frames, batch[name]["image"])


def alive(name):
    return [thread for thread in threading.enumerate() if thread.name == name]


def test_close_ends_the_thread_whatever_it_does(store):
    for consume in (0, 1, 5):
        batches = Batches(streams(store), 0, f"close{consume}", prefetch=1)
        for _ in range(consume):
            next(batches)
        time.sleep(0.02)  # long enough to fill the queue
        batches.close()
        batches.close()
        assert not alive(f"batches-close{consume}")
        with pytest.raises(StopIteration):
            next(batches)


def test_an_exception_of_the_thread_reaches_the_consumer(store):
    class Failing(WindowSampler):
        def gather(self, starts):
            if self.calls == 2:
                raise OSError("the disk went away")
            self.calls += 1
            return super().gather(starts)

    sampler = Failing(store, store.episodes, 4, 6)
    sampler.calls = 0
    batches = Batches({"target": sampler}, 0, "failing")
    next(batches), next(batches)
    with pytest.raises(OSError, match="went away"):
        next(batches)
    assert not alive("batches-failing")
