"""VeoRL and the Dreamer line of video-enhanced world models in TensorFlow 2 and Keras 3.

Rooms, ground floor first: `core`, `data`, `nets`, `agents`, `run`. Imports go down only;
`docs/architecture.md` draws the house.
"""

import os
import sys

_keras = sys.modules.get("keras")
if _keras is not None and _keras.backend.backend() != "tensorflow":
    raise ImportError(
        f"veorl_tf needs Keras on TensorFlow, but this program has loaded Keras on "
        f"{_keras.backend.backend()}: set KERAS_BACKEND=tensorflow before it imports keras"
    )
# Keras reads its backend once, at its first import; a shell that chose another one must not win.
os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

__version__ = "0.1.0"
