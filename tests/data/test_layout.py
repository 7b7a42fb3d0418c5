"""Pictures of every layout become `[n, H, W, 3]`."""

import numpy as np
import pytest

from veorl_tf.data.layout import MAX_ROWS, absurd, channels, picture_size, rgb

LAYOUTS = {
    (5, 64, 48, 3): "last",
    (5, 64, 48, 1): "last",
    (5, 3, 64, 48): "first",
    (5, 1, 64, 48): "first",
    (5, 64, 48): "none",
}


@pytest.mark.parametrize("shape", LAYOUTS)
def test_channels_wherever_they_are(shape):
    expected = np.zeros((5, 64, 48, 3), np.uint8)
    expected[..., :] = np.arange(64, dtype=np.uint8)[:, None, None]
    coloured = 3 in shape
    if coloured:
        expected[..., 1] += 100
    pictures = {
        "last": expected if coloured else expected[..., :1],
        "first": np.moveaxis(expected if coloured else expected[..., :1], -1, 1),
        "none": expected[..., 0],
    }[LAYOUTS[shape]]
    assert pictures.shape == shape and channels(shape) == LAYOUTS[shape]
    assert picture_size(shape) == (64, 48)
    np.testing.assert_array_equal(rgb(pictures), expected)


@pytest.mark.parametrize("shape", [(), (7,), (64, 64), (64, 64, 3), (7, 8, 8), (7, 8, 8, 4)])
def test_what_is_no_array_of_pictures(shape):
    assert channels(shape) is None


def test_absurd_sizes():
    byte = np.dtype(np.uint8)
    assert absurd("image", (MAX_ROWS, 1), byte) is None
    for shape in ((MAX_ROWS + 1,), (1, 1 << 33), (-1, 3)):
        assert str(list(shape)) in absurd("image", shape, byte)
