"""TensorFlow is loaded as this project wants it, whatever the user has set for other programs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOADS = """
from veorl_tf.core.quiet import load_tensorflow
load_tensorflow()
import keras, numpy as np, tensorflow as tf
from veorl_tf.nets.vision import Encoder
net = Encoder("net", 4)
net.build()
features = net(tf.zeros([2, 64, 64, 3]))
config = keras.config
print(features.shape, features.dtype.name, config.image_data_format(), config.floatx(),
      config.epsilon(), config.backend())
"""


@pytest.mark.parametrize(
    "settings",
    [
        '{"image_data_format": "channels_first", "floatx": "float16", "epsilon": 0.5, '
        '"backend": "jax"}',
        '{"floatx": "float8"}',  # which Keras refuses to be imported with
        "[]",
    ],
)
def test_a_users_own_settings_have_no_effect(settings, tmp_path):
    """Of Keras and of Matplotlib, which Keras imports: files and variables."""
    (tmp_path / ".keras").mkdir()
    file = tmp_path / ".keras" / "keras.json"
    file.write_text(settings)
    (tmp_path / ".config" / "matplotlib").mkdir(parents=True)
    (tmp_path / ".config" / "matplotlib" / "matplotlibrc").write_bytes(b"backend: \xff\n")
    strange = {
        "HOME": str(tmp_path),
        "KERAS_BACKEND": "torch",
        "KERAS_NNX_ENABLED": "true",
        "KERAS_MAX_EPOCHS": "many",
        "TF_USE_LEGACY_KERAS": "1",
        "MPLBACKEND": "nonsense",
    }
    done = subprocess.run(
        [sys.executable, "-c", LOADS],
        cwd=ROOT,
        env={**os.environ, **strange},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "(2, 128) float32 channels_last float32 1e-07 tensorflow\n", done.stderr
    assert done.stderr == ""
    assert file.read_text() == settings


HOST = """
import keras, tensorflow as tf
from veorl_tf.nets.vision import Decoder, Encoder
nets = Encoder("encoder", 4), Decoder("decoder", 128, 4)
for net in nets:
    net.build()
print(keras.config.image_data_format(), nets[1](nets[0](tf.zeros([2, 64, 64, 3]))).shape)
"""


def test_a_program_that_has_set_keras_otherwise(tmp_path):
    """A user's own, which uses our classes: its Keras stays as it is, and they do not mind."""
    (tmp_path / ".keras").mkdir()
    (tmp_path / ".keras" / "keras.json").write_text('{"image_data_format": "channels_first"}')
    environ = {k: v for k, v in os.environ.items() if k != "KERAS_HOME"}  # of a test before
    environ |= {"HOME": str(tmp_path), "KERAS_BACKEND": "tensorflow"}
    script = [sys.executable, "-c", HOST]
    done = subprocess.run(script, cwd=ROOT, env=environ, capture_output=True, text=True)
    assert done.stdout == "channels_first (2, 64, 64, 3)\n", done.stderr


def test_a_program_that_has_loaded_keras_on_something_else():
    script = "import keras\nimport veorl_tf"
    environ = {**os.environ, "KERAS_BACKEND": "numpy"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environ, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "ImportError: veorl_tf needs Keras on TensorFlow, but this program has loaded Keras on "
        "numpy: set KERAS_BACKEND=tensorflow before it imports keras"
    )


def test_without_a_stderr():
    """In a program that is none of our commands."""
    code = "from veorl_tf.core.quiet import load_tensorflow; load_tensorflow()"
    script = ["bash", "-c", 'exec "$@" 2>&-', "bash", sys.executable, "-c", code]
    assert subprocess.run(script, cwd=ROOT).returncode == 0
