"""Which form of a strided convolution this machine computes fastest, pass by pass.

    python -m benchmarks.convolutions --frames 512 --depth 32 --precision float32

Every layer of encoder and decoder is timed as TensorFlow's own operation and in the forms that give
the same numbers: the decoder's as a product or as a dense convolution followed by depth-to-space,
the encoder's as space-to-depth followed by a dense convolution.
"""

from __future__ import annotations

import argparse
import sys
import time

import numpy as np


def main() -> int:
    parser = argparse.ArgumentParser("benchmarks.convolutions", description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=512)
    parser.add_argument("--depth", type=int, default=32)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--xla", action="store_true")
    options = parser.parse_args()
    from veorl_tf.core.quiet import load_tensorflow

    load_tensorflow()
    import tensorflow as tf

    from benchmarks.update import matmul_peak

    peak = matmul_peak(options.precision)
    print(f"matrix product peak {peak:.0f} GFLOP/s in {options.precision}")
    depth, frames = options.depth, options.frames
    forms = {"encoder": (tf_conv, s2d_conv), "decoder": (tf_transposed, as_product, d2s_conv)}
    layers = [
        ("encoder", 4, s, a, b)
        for s, a, b in zip(
            (64, 31, 14, 6),
            (3, depth, 2 * depth, 4 * depth),
            (depth, 2 * depth, 4 * depth, 8 * depth),
        )
    ]
    layers += [
        ("decoder", k, s, a, b)
        for k, s, a, b in zip(
            (5, 5, 6, 6),
            (1, 5, 13, 30),
            (32 * depth, 4 * depth, 2 * depth, depth),
            (4 * depth, 2 * depth, depth, 3),
        )
    ]
    for net, kernel, size, cin, cout in layers:
        rng = np.random.Generator(np.random.Philox(0))
        x = tf.cast(rng.normal(size=(frames, size, size, cin)), options.precision)
        shape = (kernel, kernel, cin, cout) if net == "encoder" else (kernel, kernel, cout, cin)
        w = tf.cast(rng.normal(size=shape) / kernel / cin**0.5, options.precision)
        reference = None
        for form in forms[net]:
            if form is as_product and size != 1:
                continue
            out = form(x, w)
            reference = out if reference is None else reference
            error = float(tf.reduce_max(tf.abs(tf.cast(out - reference, tf.float32))))
            cells = out.shape[1] ** 2 if net == "encoder" else size**2
            gflop = 2 * frames * cells * kernel**2 * cin * cout / 1e9
            times = [seconds(form, x, w, out, part, options) for part in ("", "x", "w")]
            shown = [f"{1e3 * t:6.1f} ms ({gflop / t / peak:4.0%})" for t in times]
            print(
                f"{net} {size:2}x{size:<2} {cin:4} -> {cout:<4} {form.__name__:14} "
                f"forward {shown[0]}  input gradient {shown[1]}  kernel gradient {shown[2]}  "
                f"ideal {1e3 * gflop / peak:5.1f} ms  error {error:.1e}",
                flush=True,
            )
    return 0


def seconds(form, x, w, upstream, part: str, options) -> float:
    """Best time of the forward pass, or of the gradient to input (`x`) or kernel (`w`) alone."""
    import tensorflow as tf

    @tf.function(autograph=False, jit_compile=options.xla)
    def run(x, w, upstream):
        with tf.GradientTape() as tape:
            tape.watch([x, w])
            out = form(x, w)
        result = tape.gradient(out, {"x": x, "w": w}[part], upstream) if part else out
        return tf.reduce_sum(tf.cast(result[0], tf.float32)), result

    best = np.inf
    for _ in range(options.repeats + 1):
        began = time.perf_counter()
        run(x, w, upstream)[0].numpy()
        best = min(best, time.perf_counter() - began)
    return best


def tf_conv(x, w):
    import tensorflow as tf

    return tf.nn.conv2d(x, w, 2, "VALID")


def s2d_conv(x, w):
    import tensorflow as tf

    k, _, cin, cout = w.shape
    size = (x.shape[1] - k) // 2 * 2 + k
    x = tf.nn.space_to_depth(x[:, :size, :size], 2)
    w = tf.reshape(w, [k // 2, 2, k // 2, 2, cin, cout])
    w = tf.reshape(tf.transpose(w, [0, 2, 1, 3, 4, 5]), [k // 2, k // 2, 4 * cin, cout])
    return tf.nn.conv2d(x, w, 1, "VALID")


def tf_transposed(x, w):
    import tensorflow as tf

    size = 2 * (x.shape[1] - 1) + w.shape[0]
    return tf.nn.conv2d_transpose(x, w, [x.shape[0], size, size, w.shape[2]], 2, "VALID")


def as_product(x, w):
    import tensorflow as tf

    k, _, cout, cin = w.shape
    out = tf.matmul(tf.reshape(x, [-1, cin]), tf.reshape(w, [-1, cin]), transpose_b=True)
    return tf.reshape(out, [-1, k, k, cout])


def d2s_conv(x, w):
    import tensorflow as tf

    k, _, cout, cin = w.shape
    size, odd = 2 * (x.shape[1] - 1) + k, k % 2
    w = tf.pad(w, [[0, odd], [0, odd], [0, 0], [0, 0]])
    taps = (k + odd) // 2
    w = tf.reverse(tf.reshape(w, [taps, 2, taps, 2, cout, cin]), [0, 2])
    w = tf.reshape(tf.transpose(w, [0, 2, 5, 1, 3, 4]), [taps, taps, cin, 4 * cout])
    edge = [taps - 1, taps - 1]
    x = tf.pad(x, [[0, 0], edge, edge, [0, 0]])
    out = tf.nn.depth_to_space(tf.nn.conv2d(x, w, 1, "VALID"), 2)
    return out[:, :size, :size]


if __name__ == "__main__":
    sys.exit(main())
