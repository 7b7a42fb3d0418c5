"""Loading TensorFlow without its start-up chatter, and with sums that can be repeated."""

from __future__ import annotations

import os
import sys
import tempfile

from veorl_tf.core.hardware import configure_devices
from veorl_tf.core.reproducible import order_sums


def load_tensorflow(wake: bool = True) -> None:
    """Imports TensorFlow and wakes its devices while stderr is held back; again: does nothing.
    Without `wake` the devices stay asleep, as training with several processes wants it.

    Its C++ libraries write several lines there before any log level is looked at. Whatever was
    held back is shown when the import fails.
    """
    if "tensorflow" in sys.modules:
        return order_sums()
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            import tensorflow as tf

            configure_devices()
            if wake:
                tf.zeros([1])
        except Exception:
            held.seek(0)
            os.write(stderr, held.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
    order_sums()
