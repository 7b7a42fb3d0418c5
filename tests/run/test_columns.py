"""What a frozen net says of every frame, computed once, is what it would say in every update."""

import os
import signal

import numpy as np
import pytest
import tensorflow as tf

from veorl_tf.core import files
from veorl_tf.core.errors import Interrupted, MachineError
from veorl_tf.data.episodes import save_episode
from veorl_tf.data.store import FrameStore
from veorl_tf.data.synthetic import random_episode
from veorl_tf.data.windows import WindowSampler
from veorl_tf.run import columns

SEED = tf.constant([5, 6])
LENGTHS = (12, 5, 9, 3)


@pytest.fixture
def stores(tmp_path):
    made = {}
    for kind in ("target", "source"):
        for i, length in enumerate(LENGTHS):
            episode = random_episode(length, seed=i)
            save_episode(
                tmp_path / kind,
                episode if kind == "target" else {"image": episode["image"]},
                name=f"{i}.npz",
            )
        made[kind] = FrameStore.build_or_open(tmp_path / kind, tmp_path / "stores", kind)
    return made


@pytest.fixture
def agent(tiny_config, fresh_agent):
    return fresh_agent(tiny_config("metaworld veorl"))


def stage_of(agent, name):
    return next(stage for stage in agent.stages() if stage.name == name)


@pytest.mark.parametrize("block", [4, 7, 512])
def test_codes_of_every_transition(agent, stores, monkeypatch, block):
    monkeypatch.setattr(columns, "BLOCK", block)
    found = columns.derive(agent, stage_of(agent, "model"), stores)
    assert set(found) == {"target", "source"}
    for kind, store in stores.items():
        code = found[kind]["code"]
        assert set(found[kind]) == {"code"}
        assert code.shape == (sum(LENGTHS),) and code.dtype == np.int32
        for start, length in zip(store.episodes.starts, store.episodes.lengths, strict=True):
            image = store.arrays["image"][start : start + length]
            expected = agent.label(tf.constant(image)).numpy()
            assert len(set(expected)) > 1 or length == 3
            np.testing.assert_array_equal(code[start + 1 : start + length], expected)
            assert code[start] == 0, "no transition leads to an episode's first frame"


@pytest.mark.parametrize("block", [7, 512])
def test_embedded_frames_give_the_losses_of_frames(agent, stores, derived, monkeypatch, block):
    """Losses and gradients of the behaviour stage, with the column and with the encoder."""
    monkeypatch.setattr(columns, "BLOCK", block)
    stage = stage_of(agent, "behavior")
    column = columns.derive(agent, stage, stores)["target"]
    assert column["embed"].dtype == np.float32
    keys = ("image", "embed", "action", "discount")
    store = stores["target"]
    sampler = WindowSampler(store, store.episodes, 4, 3, keys=keys, columns=column)
    batch = sampler.sample(np.random.Generator(np.random.Philox(0)))
    batch = {k: tf.constant(v) for k, v in batch.items()}
    image = batch.pop("image")
    results = []
    for given in (batch, {k: v for k, v in batch.items() if k != "embed"} | {"image": image}):
        with tf.GradientTape() as tape:
            terms, _ = stage.losses({"target": given}, SEED)
            total = tf.add_n(list(terms.values()))
        results.append((terms, tape.gradient(total, stage.variables)))
    for one, two in zip(*results, strict=True):
        for name in one:
            scale = np.abs(two[name]).max()
            np.testing.assert_allclose(one[name], two[name], atol=1e-5 * scale, err_msg=name)


def test_half_precision_loses_nothing(tiny_config, fresh_agent, stores):
    agent = fresh_agent(tiny_config("metaworld dreamerv2", {"precision": "mixed_bfloat16"}))
    stage = stage_of(agent, "behavior")
    embed = columns.derive(agent, stage, stores)["target"]["embed"]
    direct = stage.columns[0].compute(tf.constant(stores["target"].arrays["image"][:12]))
    assert direct.dtype == tf.bfloat16
    np.testing.assert_allclose(embed[:12], tf.cast(direct, tf.float32), rtol=0.02, atol=0.02)
    assert (tf.cast(tf.cast(embed, tf.bfloat16), tf.float32).numpy() == embed).all()


def test_columns_are_kept_for_the_same_weights_and_removed(agent, stores, monkeypatch):
    stage, calls = stage_of(agent, "model"), []
    blocks = columns._blocks
    monkeypatch.setattr(columns, "_blocks", lambda *a: calls.append(a) or blocks(*a))
    columns.derive(agent, stage, stores)
    columns.derive(agent, stage, stores)
    assert len(calls) == 2, "target and source, once"
    folders = [store.directory / "columns" for store in stores.values()]
    assert all(len(list(folder.iterdir())) == 1 for folder in folders)
    bias = agent.weights("ban")["ban/out/kernel"]
    bias.assign(bias + 1)
    columns.derive(agent, stage, stores)
    assert len(calls) == 4
    columns.remove(agent, stage, stores)
    assert all(len(list(folder.iterdir())) == 1 for folder in folders), "the other's stay"


def test_a_signal_leaves_nothing_half_written(agent, stores, monkeypatch):
    monkeypatch.setattr(columns, "BLOCK", 4)
    stage = stage_of(agent, "model")
    calls = []

    class Killing:
        """A bar that stops the run at its second step."""

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def update(self, count):
            calls.append(count)
            if len(calls) == 2:
                os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(columns, "progress", lambda *a: Killing())
    with pytest.raises(Interrupted):
        columns.derive(agent, stage, stores)
    assert len(calls) == 2
    assert not [p for s in stores.values() for p in s.directory.glob("columns/*")]


def test_too_little_disk_is_said_before(agent, stores, monkeypatch):
    monkeypatch.setattr(files, "free_bytes", lambda path: 1000)
    with pytest.raises(MachineError, match=r"code of 29 source frames needs 116 bytes"):
        columns.derive(agent, stage_of(agent, "model"), stores)
