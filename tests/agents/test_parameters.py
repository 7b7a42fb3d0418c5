"""Exact numbers of parameters (table 1.10 of VeoRL's spec, and DreamerV2's dmc_vision)."""

import math

import keras
import pytest

from veorl_tf.agents import agent as agents
from veorl_tf.core.config import resolve

VEORL = {
    "metaworld": {
        "encoder": 690_144,
        "encoder_ban": 690_144,
        "image": 3_816_035,
        "image_latent": 3_816_035,
        "trunk": 578_200,
        "plan": 579_000,
        "ban": 263_832,
        "bc": 32_383,
        "reward": 261_201,
        "critic": 424_801,
        "slow_critic": 424_801,
        "actor": 588_008,
    },
    "minedojo": {
        "encoder": 6_199_200,
        "encoder_ban": 6_199_200,
        "image": 47_740_707,
        "image_latent": 47_740_707,
        "trunk": 77_648_896,
        "plan": 77_644_800,
        "ban": 788_120,
        "bc": 13_130_248,
        "reward": 2_690_401,
        "discount": 2_690_401,
        "critic": 2_693_601,
        "slow_critic": 2_693_601,
        "actor": 2_698_012,
    },
}
VEORL["carla"] = VEORL["metaworld"] | {"trunk": 577_800, "actor": 586_404}


@pytest.fixture
def counts(blocks, make_agent, monkeypatch):
    """Parameters of each net by name; the weights themselves (1.2 GB for MineDojo) never exist."""
    monkeypatch.setattr(agents, "initialise", lambda net, seed: None)

    def make(*names: str) -> dict[str, int]:
        config = resolve(blocks, names, {"precision": "float32"})
        with keras.StatelessScope(initialize_variables=False):
            agent = make_agent(config)
        return {
            name: sum(math.prod(v.shape) for v in net.weights) for name, net in agent.nets.items()
        }

    return make


@pytest.mark.parametrize("domain", VEORL)
def test_veorl(domain, counts):
    assert counts(domain, "veorl") == VEORL[domain]


def test_dreamerv2_with_veorls_sizes_has_veorls_trunk(counts):
    """The baseline differs in what it lacks, and in the code that actor and critic do not see."""
    extra = {"encoder_ban", "image_latent", "plan", "ban", "bc"}
    expected = {k: v for k, v in VEORL["metaworld"].items() if k not in extra}
    code = 8 * 400
    expected |= {k: expected[k] - code for k in ("actor", "critic", "slow_critic")}
    assert counts("metaworld", "dreamerv2") == expected


SIZES = {
    "dreamerv3": {"xs": 8.3, "s": 17.9, "m": 36.9, "l": 76.8, "xl": 200.7},
    "dreamerv3_nature": {
        "12m": 10.5,
        "25m": 23.5,
        "50m": 41.7,
        "100m": 93.5,
        "200m": 165.9,
        "400m": 372.9,
    },
}


@pytest.mark.parametrize(
    ("agent", "size"), [(agent, size) for agent in SIZES for size in SIZES[agent]]
)
def test_sizes_of_dreamerv3(agent, size, counts):
    """Millions as computed from the code of its authors: 64x64x3, 6 actions, no slow critic."""
    nets = counts("dmc_vision", agent, f"size_{size}")
    assert set(nets) == {
        *("encoder", "trunk", "image", "reward", "discount", "actor", "critic"),
        *("slow_critic", "return_scale"),
    }
    count = sum(nets.values()) - nets["slow_critic"] - nets["return_scale"]
    assert count / 1e6 == pytest.approx(SIZES[agent][size], abs=0.05)


def test_dreamerv2_for_dmc_vision(counts):
    nets = counts("dmc_vision", "dreamerv2")
    assert sum(nets.values()) == 16_575_986
    assert sum(nets.values()) - nets["slow_critic"] == 15_604_385
