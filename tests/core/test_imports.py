"""Workers and the command line start fast: these rooms do not import TensorFlow."""

import pkgutil
import subprocess
import sys
from pathlib import Path

import veorl_tf.core
import veorl_tf.data


def test_no_tensorflow_at_import():
    modules = [
        f"{package.__name__}.{module.name}"
        for package in (veorl_tf.core, veorl_tf.data)
        for module in pkgutil.iter_modules(package.__path__)
    ]
    assert len(modules) > 12
    code = (
        f"import importlib, sys\nfor name in {modules}: importlib.import_module(name)\n"
        'heavy = {"tensorflow", "keras", "tensorboard", "av", "PIL", "tqdm", "ruamel.yaml"}\n'
        "heavy &= set(sys.modules)\n"
        'sys.exit(f"imported: {heavy}" if heavy else 0)'
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
