"""Footage to clips: the steady rate, scene changes, still stretches, damage; every frame counts."""

import numpy as np
import pytest

from veorl_tf.data.importers.base import Frame, Options, Unreadable
from veorl_tf.data.importers.clips import HOLD, Counts, clips, difference, steady


def shown(times, fps):
    """Pairs (time, index of the frame shown then) of steady footage."""
    frames = [Frame(time, lambda i=i: i) for i, time in enumerate(times)]
    return [(round(frame.time, 6), frame.picture()) for frame in steady(iter(frames), fps)]


def test_equal_rate_keeps_every_frame():
    assert shown([k / 10 for k in range(30)], 10) == [(k / 10, k) for k in range(30)]
    thirds = [round(k / 30, 3) for k in range(90)]  # as Matroska rounds times
    assert [index for _, index in shown(thirds, 30)] == list(range(90))


def test_fast_footage_leaves_frames_out():
    for count in (28, 29, 30):
        expected = [(k / 10, 3 * k) for k in range(10)]
        assert shown([k / 30 for k in range(count)], 10) == expected
    assert shown([k / 25 for k in range(10)], 10) == [(0, 0), (0.1, 2), (0.2, 5), (0.3, 7)]


def test_slow_footage_repeats_frames():
    assert shown([0, 0.2, 0.4], 10) == [(k / 10, k // 2) for k in range(6)]
    assert [index for _, index in shown([0, 0.25], 10)] == [0, 0, 0, 1, 1]


def test_variable_rate_shows_the_newest_frame():
    times = [0, 0.05, 0.11, 0.3, 0.31, 0.32, 0.49, 0.5]
    assert shown(times, 10) == [(0, 0), (0.1, 1), (0.2, 2), (0.3, 3), (0.4, 5), (0.5, 7)]


def test_footage_that_begins_late():
    assert shown([3.0, 3.1], 10) == [(3.0, 0), (3.1, 1)]
    assert shown([3.05, 3.15], 10) == [(3.1, 0), (3.2, 1)]


def test_one_frame_or_none():
    assert shown([], 10) == []
    assert shown([0.0], 10) == [(0, 0)]
    assert shown([7.0], 10) == [(7, 0)]


def test_gaps_are_filled_for_a_while():
    out = shown([0, 0.1, 100.0, 100.1], 10)
    assert out[0] == (0, 0) and out[-2:] == [(100, 2), (100.1, 3)]
    assert [pair for pair in out if pair[1] == 1] == [
        (round(k / 10, 6), 1) for k in range(1, 1 + int(HOLD * 10))
    ]
    assert len(shown([0, 1e12, 1e300], 10)) <= 3 * HOLD * 10 + 3  # and no time makes it endless


def test_equal_and_falling_times_lose_nothing_else():
    assert shown([0, 0.1, 0.1], 10) == [(0, 0), (0.1, 2)]
    assert [time for time, _ in shown([0, 0.2, 0.1, 0.3], 10)][-1] >= 0.3


def test_every_frame_if_there_is_no_rate():
    times = [0, 0.01, 5, 500]
    assert shown(times, 0) == [(time, i) for i, time in enumerate(times)]


# -- clips


def moving(count, seed=0, low=0, high=60):
    """Pictures that all differ, but not by a cut's size."""
    r = np.random.default_rng(seed)
    return [r.integers(low, high, (8, 8, 3), dtype=np.uint8) for _ in range(count)]


def cut(pictures, **options):
    """Clips as lists of the pictures' indices, and the counts."""
    known = {picture.tobytes(): i for i, picture in reversed(list(enumerate(pictures)))}
    counts = Counts()
    frames = [Frame(k / 10, lambda p=p: p) for k, p in enumerate(pictures)]
    options = Options(**{"size": 8, "fit": "stretch", "clip": 10, "shortest": 3} | options)
    out = [[known[p.tobytes()] for p in clip] for clip in clips(iter(frames), options, counts, [])]
    assert counts.frames == len(pictures) == counts.kept + counts.still + counts.short
    assert counts.clips == len(out) and counts.kept == sum(map(len, out))
    return out, counts


def test_lengths():
    out, counts = cut(moving(25))
    assert out == [list(range(10)), list(range(10, 20)), list(range(20, 25))]
    out, counts = cut(moving(22))
    assert list(map(len, out)) == [10, 10] and counts.short == 2 and counts.cuts == 0
    assert cut([])[0] == [] and cut(moving(2))[1].short == 2


def test_clips_are_arrays_of_their_own():
    frames = [Frame(k / 10, lambda p=p: p) for k, p in enumerate(moving(6))]
    one, two = clips(frames, Options(size=8, clip=3, shortest=3), Counts(), [])
    assert one.shape == two.shape == (3, 8, 8, 3) and one.dtype == np.uint8
    assert not np.shares_memory(one, two)


def test_scene_changes_end_clips():
    pictures = moving(5) + moving(2, 1, 190, 250) + moving(6, 2)
    out, counts = cut(pictures)
    assert out == [[0, 1, 2, 3, 4], [7, 8, 9, 10, 11, 12]]
    assert counts.cuts == 2 and counts.short == 2
    out, counts = cut(pictures, cut=0)
    assert out == [list(range(10)), [10, 11, 12]] and counts.cuts == 0


def test_still_stretches_are_left_out():
    """The first of equal pictures stays: it differs from the one before."""
    before, after = moving(5), moving(4, 1)
    out, counts = cut(before + 30 * before[-1:] + after, clip=20)
    assert out == [[0, 1, 2, 3, 4], [35, 36, 37, 38]] and counts.still == 30
    out, counts = cut(before + 9 * before[-1:] + after, clip=20)  # less than a second
    assert list(map(len, out)) == [18] and counts.still == 0
    out, counts = cut(before + 30 * before[-1:], still=0)
    assert list(map(len, out)) == [10, 10, 10, 5] and counts.still == 0


def test_still_from_the_beginning():
    out, counts = cut(20 * moving(1) + moving(5, 1), clip=20)
    assert out == [[20, 21, 22, 23, 24]]
    assert counts.still == 19 and counts.short == 1


def test_a_full_clip_may_end_still():
    pictures = moving(7)
    out, counts = cut(pictures + 20 * pictures[-1:])
    assert out == [[0, 1, 2, 3, 4, 5, 6, 6, 6, 6]] and counts.still == 17


@pytest.mark.parametrize("seed", range(20))
def test_every_frame_is_counted_once(seed):
    r = np.random.default_rng(seed)
    pictures = []
    for _ in range(r.integers(1, 12)):
        low = int(r.integers(0, 190))
        some = moving(int(r.integers(1, 15)), int(r.integers(1 << 30)), low, low + 60)
        pictures += some if r.random() < 0.6 else some[:1] * int(r.integers(1, 30))
    out, _ = cut(pictures, clip=int(r.integers(4, 12)), fps=float(r.choice([0, 3, 10])))
    assert all(3 <= len(clip) for clip in out)


def test_difference():
    black, white = np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 255, np.uint8)
    assert (
        difference(black, black) == 0 and difference(black, white) == difference(white, black) == 1
    )
    assert difference(black, np.full((4, 4, 3), 51, np.uint8)) == pytest.approx(0.2)


def damaged(name):
    def picture():
        raise Unreadable(name, "damaged")

    return picture


def good(pictures):
    return [Frame(k / 10, lambda p=p: p) for k, p in enumerate(pictures)]


def read(frames, counts, **options):
    """Lengths of clips, and the problems as name and reason."""
    problems = []
    out = clips(frames, Options(size=8, clip=10, shortest=3, **options), counts, problems)
    lengths = [len(clip) for clip in out]
    assert counts.frames == counts.kept + counts.still + counts.short
    return lengths, [(problem.name, problem.reason) for problem in problems]


def test_a_damaged_picture_ends_its_clip_alone():
    frames, counts = good(moving(12)), Counts()
    frames[5] = Frame(0.5, damaged("im_5"))
    lengths, problems = read(frames, counts)
    assert lengths == [5, 6] and counts.frames == 11
    assert problems == [("im_5", "damaged")]
    frames[6] = Frame(0.6, damaged("im_6"))
    lengths, problems = read(frames, Counts())
    assert lengths == [5, 5] and problems == [("im_5", "damaged"), ("im_6", "damaged")]


def test_damaged_footage_gives_what_came_before():
    def frames():
        yield from good(moving(7))
        raise Unreadable("video", "cut")

    for footage in (frames(), steady(frames(), 10)):
        assert read(footage, Counts()) == ([7], [("video", "cut")])


def test_a_picture_that_does_not_fit_ends_the_footage():
    pictures = moving(20)
    pictures[4] = pictures[4][:4]
    lengths, ((name, reason),) = read(good(pictures), Counts(), fit="0,0,8,8")
    assert lengths == [4] and name == "" and "not within 8x4" in reason


def test_repeated_frames_are_made_once():
    made = []

    def frame(k, picture):
        return Frame(k / 2, lambda: made.append(k) or picture)

    frames = [frame(k, picture) for k, picture in enumerate(moving(4))]
    counts = Counts()
    list(clips(steady(frames, 10), Options(size=8, shortest=3), counts, []))
    assert made == [0, 1, 2, 3] and counts.frames == 20
