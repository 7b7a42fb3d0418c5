"""Loading TensorFlow without its start-up chatter, and with sums that can be repeated."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from veorl_tf.core.hardware import configure_devices
from veorl_tf.core.reproducible import order_sums


def load_tensorflow(wake: bool = True) -> None:
    """Imports TensorFlow and wakes its devices while stderr is held back; again: does nothing.
    Without `wake` the devices stay asleep, as training with several processes wants it.

    What a user has set for all programs that use Keras has no effect on this one.
    """
    if "tensorflow" in sys.modules:
        return order_sums()
    _forget_settings()
    with _held_back():
        import tensorflow as tf

        configure_devices()
        if wake:
            tf.zeros([1])
    order_sums()


def _forget_settings() -> None:
    """Keeps the user's own settings of the libraries that TensorFlow loads out of this process:
    ~/.keras/keras.json, in the place of which Keras reads the one beside this file, and
    Matplotlib's, which Keras imports; a strange one would even stop the import."""
    for name in [name for name in os.environ if name.startswith("KERAS_")]:
        del os.environ[name]
    os.environ.pop("TF_USE_LEGACY_KERAS", None)
    os.environ |= {
        "KERAS_HOME": str(Path(__file__).parent),
        "KERAS_BACKEND": "tensorflow",
        "MPLBACKEND": "agg",
        "MATPLOTLIBRC": os.devnull,
    }


@contextmanager
def _held_back() -> Iterator[None]:
    """Keeps stderr quiet: TensorFlow's C++ libraries write several lines there before any log level
    is looked at. Whatever was held back is shown when the block fails."""
    if sys.stderr is None:  # closed: of a program that is none of our commands
        yield
        return
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except Exception:
            held.seek(0)
            with suppress(OSError):  # its reader is gone
                os.write(stderr, held.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
