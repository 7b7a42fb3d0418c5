"""Several updates in one call, from batches or from frames on the device, are the same updates."""

import numpy as np
import pytest
import tensorflow as tf

from veorl_tf.agents.stage import Update

UPDATES = 5


def values(metrics):
    return {k: float(v) for k, v in metrics.items()}


def assert_same(one, two):
    assert one.keys() == two.keys()
    for key in one:
        np.testing.assert_array_equal(one[key], two[key], err_msg=key)


@pytest.mark.parametrize(
    "names", ["metaworld veorl", "dmc_vision dreamerv2", "metaworld dreamerv3"]
)
def test_the_same_weights_and_metrics(names, tiny_config, fresh_agent, random_batches, snapshot):
    config = tiny_config(names)
    single, several = [], []
    for per_call, records in ((1, single), (3, several)):
        agent = fresh_agent(config)
        for stage in agent.stages():
            batches = [random_batches(stage, config, seed) for seed in range(UPDATES)]
            stage.start()
            update = Update(stage, config.seed, per_call=per_call)
            metrics = []
            if per_call == 1:
                metrics = [values(update(batch, i)) for i, batch in enumerate(batches)]
            else:
                for first, count in ((0, 3), (3, 2)):
                    padded = (batches[first : first + count] + [batches[-1]])[:per_call]
                    stacked = tf.nest.map_structure(lambda *x: tf.stack(x), *padded)
                    found = update(stacked, first, count)
                    assert all(v.shape == (count,) for v in found.values())
                    metrics += [values({k: v[i] for k, v in found.items()}) for i in range(count)]
            records.append((metrics, snapshot(agent)))
    for (metrics, weights), (expected, target) in zip(several, single, strict=True):
        assert_same(weights, target)
        for one, two in zip(metrics, expected, strict=True):
            assert_same(one, two)


def test_frames_that_stay_on_the_device(tiny_config, fresh_agent, random_windows, snapshot):
    """Batches of rows, with the frames gathered in the graph."""
    config = tiny_config("metaworld dreamerv2")
    agent = fresh_agent(config)
    results = []
    for resident in (False, True):
        agent = fresh_agent(config)
        stage = agent.stages()[0]
        window = random_windows(stage, config)["target"]
        frames = {k: tf.reshape(v, [-1, *v.shape[2:]]) for k, v in window.items()}
        rows = tf.reshape(tf.range(len(frames["image"])), window["image"].shape[:2])
        stage.start()
        if resident:
            update = Update(stage, config.seed, resident={"target": frames})
            metrics = update({"target": {"rows": rows}}, 0)
        else:
            metrics = Update(stage, config.seed)({"target": window}, 0)
        results.append((values(metrics), snapshot(agent)))
    for one, two in zip(*results, strict=True):
        assert_same(one, two)
