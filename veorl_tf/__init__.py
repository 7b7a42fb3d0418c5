"""VeoRL and the Dreamer line of video-enhanced world models in TensorFlow 2 and Keras 3.

Rooms, ground floor first: `core`, `data`, `nets`, `agents`, `run`. Imports go down only;
`docs/architecture.md` draws the house.
"""

import os

# Keras reads its backend once, at its first import; a shell that chose another one must not win.
os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

__version__ = "0.1.0"
