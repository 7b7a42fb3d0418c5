"""DreamerV3's image encoders and decoders (64x64 images): strided convolutions as in 2023, pooling
and upsampling as in 2025. Between image and features stand 4x4 pixels.

Encoders take `[..., 64, 64, 3]` in [-0.5, 0.5] to `[..., size]`, decoders features `[..., F]` to
means in the same range as the encoder's images.
"""

from itertools import pairwise

import tensorflow as tf

from veorl_tf.nets import initial
from veorl_tf.nets.base import Net, flatten_leading, read
from veorl_tf.nets.block_rssm import BlockLinear
from veorl_tf.nets.convolution import convolve, transposed, upsample
from veorl_tf.nets.dense import ACTIVATIONS, Dense, Style
from veorl_tf.nets.norm import centre
from veorl_tf.nets.products import add_bias

SIDE = 4  # pixels of the smallest picture


class Convolution(Net):
    """A convolution `[N, S, S, C]` to `[N, S', S', D]`, then norm and activation of its style.

    Stride 2 halves the picture, or doubles it if `transposed`; `pooled` takes the largest of
    2 x 2 numbers before the norm.
    """

    def __init__(
        self,
        name,
        channels,
        depth,
        size,
        style: Style,
        dtype="float32",
        stride=1,
        transposed=False,
        pooled=False,
    ):
        super().__init__(name, dtype)
        self.channels, self.depth, self.size, self.style = channels, depth, size, style
        self.stride, self.transposed, self.pooled = stride, transposed, pooled
        self.norm = None if style.norm == "none" else style.normalised("norm", depth, dtype)
        self.activation = ACTIVATIONS[style.activation]

    def build(self):
        ends = (self.depth, self.channels) if self.transposed else (self.channels, self.depth)
        shape = (self.size, self.size, *ends)
        self.kernel = self.add_weight(shape, "kernel", self.style.kernel())
        self.bias = (
            self.add_weight((self.depth,), "bias", initial.zeros) if self.style.bias() else None
        )
        if self.norm is not None:
            self.norm.build()

    def call(self, x):
        # A LayerNorm's centring is done to the kernel; its channels come last unless transposed.
        centred = self.style.norm == "layer" and self.bias is None
        x, kernel = self.cast(x), read(self.kernel)
        if centred:
            axes = [0, 1, 3, 2] if self.transposed else [0, 1, 2, 3]
            kernel = tf.transpose(centre(tf.transpose(kernel, axes)), axes)
        kernel = self.cast(kernel)
        if self.transposed and self.bias is not None:
            edge = self.size // 2 - 1
            x = upsample(x, kernel, read(self.bias))[:, edge:-edge, edge:-edge]
        elif self.transposed:
            x = transposed(x, kernel, "SAME")
        else:
            x = convolve(x, kernel, self.stride, "SAME")
            x = x if self.bias is None else add_bias(x, read(self.bias))
        if self.pooled:
            x = tf.nn.max_pool2d(x, 2, 2, "VALID")
        return self.activation(x) if self.norm is None else self.norm(x, centred=centred)


class ConvolutionalEncoder(Net):
    """Four convolutions of `size` x `size` pixels with the given `channels`; `how` they halve the
    picture (see `Convolution`)."""

    def __init__(self, name, channels, size, style: Style, dtype, **how):
        super().__init__(name, dtype)
        self.size = SIDE * SIDE * channels[-1]
        self.convs = [
            Convolution(f"conv{i}", *ends, size, style, dtype, **how)
            for i, ends in enumerate(pairwise((3, *channels)))
        ]

    def build(self):
        for conv in self.convs:
            conv.build()

    def call(self, image):
        x, leading = flatten_leading(image, 3)
        for conv in self.convs:
            x = conv(x)
        return tf.reshape(x, leading + [self.size])


class StridedEncoder(ConvolutionalEncoder):
    """Convolutions of 4x4 pixels and stride 2, `depth` times 1, 2, 4, 8 channels."""

    def __init__(self, name, depth, style: Style, dtype="float32"):
        channels = (depth, 2 * depth, 4 * depth, 8 * depth)
        super().__init__(name, channels, 4, style, dtype, stride=2)


class PooledEncoder(ConvolutionalEncoder):
    """Convolutions of 5x5 pixels, each followed by 2x2 max-pooling, `depth` times 2, 3, 4, 4
    channels."""

    def __init__(self, name, depth, style: Style, dtype="float32"):
        channels = (2 * depth, 3 * depth, 4 * depth, 4 * depth)
        super().__init__(name, channels, 5, style, dtype, pooled=True)


class StridedDecoder(Net):
    """A linear layer to 4x4 pixels, then transposed convolutions; nothing bounds its output."""

    def __init__(self, name, width, depth, style: Style, dtype="float32"):
        super().__init__(name, dtype)
        channels = (8 * depth, 4 * depth, 2 * depth, depth, 3)
        self.dense = Dense("dense", width, SIDE * SIDE * channels[0], style.plain, dtype)
        self.channels = channels[0]
        self.deconvs = [
            Convolution(
                f"deconv{i}",
                channels[i],
                channels[i + 1],
                4,
                style if i < 3 else style.plain,
                dtype if i < 3 else "float32",
                stride=2,
                transposed=True,
            )
            for i in range(4)
        ]

    def build(self):
        for layer in (self.dense, *self.deconvs):
            layer.build()

    def call(self, features):
        x, leading = flatten_leading(features, 1)
        x = tf.reshape(self.dense(x), [-1, SIDE, SIDE, self.channels])
        for deconv in self.deconvs:
            x = deconv(x)
        return tf.reshape(x, leading + [64, 64, 3])


class UpsamplingDecoder(Net):
    """Sample and deterministic state each to 4x4 pixels (the latter in blocks), their sum through
    convolutions of 5x5 pixels on pictures that are doubled before; a sigmoid bounds the output.

    `stoch` and `deter` are the widths of the features' two parts, in this order.
    """

    def __init__(self, name, stoch, deter, depth, units, style, blocks=8, dtype="float32"):
        super().__init__(name, dtype)
        channels = (4 * depth, 4 * depth, 3 * depth, 2 * depth)
        self.parts, self.channels = (stoch, deter), channels[0]
        pixels = SIDE * SIDE * channels[0]
        self.deter_in = BlockLinear("deter_in", deter, pixels, blocks, style, dtype)
        self.stoch_in = Dense("stoch_in", stoch, 2 * units, style, dtype)
        self.stoch_out = Dense("stoch_out", 2 * units, pixels, style.plain, dtype)
        self.norm = style.normalised("norm", channels[0], dtype)
        self.convs = [
            Convolution(f"conv{i}", channels[i], channels[i + 1], 5, style, dtype) for i in range(3)
        ]
        self.out = Convolution("out", channels[3], 3, 5, style.plain)

    def build(self):
        for layer in (
            self.deter_in,
            self.stoch_in,
            self.stoch_out,
            self.norm,
            *self.convs,
            self.out,
        ):
            layer.build()

    def call(self, features):
        x, leading = flatten_leading(features, 1)
        stoch, deter = tf.split(x, self.parts, -1)
        blocks = self.deter_in.blocks
        deter = self.deter_in(tf.reshape(deter, [-1, blocks, self.parts[1] // blocks]))
        # Block g holds pixels' channels g C / G ... (g + 1) C / G.
        deter = tf.reshape(deter, [-1, blocks, SIDE, SIDE, self.channels // blocks])
        deter = tf.reshape(tf.transpose(deter, [0, 2, 3, 1, 4]), [-1, SIDE, SIDE, self.channels])
        stoch = self.stoch_out(self.stoch_in(stoch))
        x = self.norm(deter + tf.reshape(stoch, tf.shape(deter)))
        for conv in (*self.convs, self.out):
            x = conv(doubled(x))
        return tf.reshape(tf.sigmoid(x) - 0.5, leading + [64, 64, 3])


def doubled(x: tf.Tensor) -> tf.Tensor:
    """Every pixel of `[N, S, S, C]` four times: `[N, 2 S, 2 S, C]`."""
    return tf.repeat(tf.repeat(x, 2, 1), 2, 2)
