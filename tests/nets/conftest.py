"""TensorFlow comes up once and silently, before the modules of this folder import it."""

import numpy as np
import pytest

from veorl_tf.core.quiet import load_tensorflow

load_tensorflow()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.Generator(np.random.Philox(0))


@pytest.fixture
def built():
    """`built(net, seed=0)`: the net with its weights made and drawn."""
    from veorl_tf.nets.base import initialise

    def make(net, seed: int = 0):
        net.build()
        initialise(net, seed)
        return net

    return make


@pytest.fixture
def zeroed(built):
    """`zeroed(net)`: every weight 0, but for the gains of LayerNorm, which are 1."""

    def make(net):
        built(net)
        for variable in net.weights:
            variable.assign(np.full(variable.shape, float(variable.path.endswith("gamma"))))
        return net

    return make
