"""What each stage changes and leaves alone (VeoRL's invariants 12 to 17, 23, 25, 31, 32)."""

from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from veorl_tf.agents.stage import Update, weighted_sum
from veorl_tf.core.config import resolve

UPDATES = 3
PRIOR = ("img_out", "img_dist")  # under the free nats the prior has no gradient

# What the spec says each stage changes; the discount head where there is one.
CHANGES = {
    "abstraction": {"encoder_ban", "ban", "plan", "image"},
    "model": {"encoder", "plan", "trunk", "image", "image_latent", "reward", "bc"},
    "behavior": {"actor", "critic", "slow_critic"},
}
DREAMER = {
    "model": {"encoder", "trunk", "image", "reward"},
    "behavior": {"actor", "critic", "slow_critic"},
}


def train(agent, config, random_batches, snapshot):
    """Every stage for a few updates on one batch, with the weights before and after each."""
    records = {}
    for stage in agent.stages():
        record = SimpleNamespace(stage=stage, before=snapshot(agent), metrics=[])
        batches = record.batches = random_batches(stage, config)
        stage.start()
        record.weights = [snapshot(agent)]
        record.update = Update(stage, config.seed)
        for index in range(UPDATES):
            metrics = record.update(batches, index)
            record.metrics.append({k: v.numpy() for k, v in metrics.items()})
            record.weights.append(snapshot(agent))
        records[stage.name] = record
    return records


@pytest.fixture(scope="module")
def config(tiny_config):
    return tiny_config("metaworld veorl", {"model.lr": 3e-3})


@pytest.fixture(scope="module")
def veorl(config, make_agent, random_batches, snapshot):
    """Gaussian latents, continuous actions, compiled updates."""
    return train(make_agent(config), config, random_batches, snapshot)


@pytest.fixture(scope="module")
def minedojo(tiny_config, make_agent, random_batches, snapshot, eager):
    """Categorical latents, discrete actions, discount head, reinforce."""
    config = tiny_config("minedojo veorl", {"model.lr": 3e-3})
    with eager():
        return train(make_agent(config), config, random_batches, snapshot)


@pytest.fixture(scope="module")
def carla(tiny_config, make_agent, random_batches, snapshot, eager):
    """Two continuous actions."""
    config = tiny_config("carla veorl", {"model.lr": 3e-3})
    with eager():
        return train(make_agent(config), config, random_batches, snapshot)


@pytest.fixture(scope="module")
def dreamer(tiny_config, make_agent, random_batches, snapshot, eager):
    config = tiny_config("minedojo dreamerv2", {"model.lr": 3e-3})
    with eager():
        return train(make_agent(config), config, random_batches, snapshot)


@pytest.fixture(params=["veorl", "minedojo", "carla", "dreamer"])
def records(request):
    return request.getfixturevalue(request.param)


def changed(before, after) -> set[str]:
    return {path for path in before if not np.array_equal(before[path], after[path])}


def nets(paths) -> set[str]:
    return {path.split("/")[0] for path in paths}


def test_each_stage_changes_exactly_its_nets(records):
    expected = CHANGES if "abstraction" in records else DREAMER
    assert list(records) == list(expected), "stages in order"
    for name, record in records.items():
        trained = expected[name]
        weights = record.weights[0]
        if name == "model" and "discount" in nets(weights):
            trained = trained | {"discount"}
        moved = changed(weights, record.weights[-1])
        assert nets(moved) == trained, name
        still = {p for p in weights if p.split("/")[0] in trained} - moved
        assert all(path.split("/")[1] in PRIOR for path in still), f"{name}: {still}"
        assert nets(record.stage.variables) == trained - {"slow_critic"}
        if name == "abstraction":
            assert "ban/codebook/codebook" in moved


def test_losses_and_metrics_are_finite_numbers(records):
    for record in records.values():
        for metrics in record.metrics:
            for key, value in metrics.items():
                assert np.shape(value) == () and np.isfinite(value), key


def test_the_boundary_copies_encoder_and_decoder(veorl, minedojo):
    for records in (veorl, minedojo):
        before, after = records["model"].before, records["model"].weights[0]
        for source, target in (("encoder_ban", "encoder"), ("image", "image_latent")):
            paths = [p for p in before if p.split("/")[0] == source]
            assert paths
            for path in paths:
                copy = path.replace(source, target, 1)
                np.testing.assert_array_equal(after[copy], before[path])
        assert nets(changed(before, after)) == {"encoder", "image_latent"}


def test_other_stages_begin_without_changing_a_weight(records):
    for name, record in records.items():
        if name != "model" or "abstraction" not in records:
            assert not changed(record.before, record.weights[0])


def test_the_slow_critic_is_the_critic_before_every_second_update(records):
    start, first, second, third = records["behavior"].weights
    critic = {p: "slow_" + p for p in start if p.startswith("critic/")}
    for path, slow in critic.items():
        np.testing.assert_array_equal(first[slow], start[path])
        np.testing.assert_array_equal(second[slow], start[path])
        np.testing.assert_array_equal(third[slow], second[path])
        assert not np.array_equal(second[path], start[path])


def test_the_slow_critic_is_copied_every_hundred_updates_by_default(
    blocks, tiny_config, make_agent
):
    for domain in ("metaworld", "carla", "minedojo", "dmc_vision"):
        assert resolve(blocks, [domain]).behavior.slow_every == 100
    agent = make_agent(tiny_config("metaworld dreamerv2", {"behavior.slow_every": 100}))
    critic, slow = agent.nets["critic"].weights[0], agent.nets["slow_critic"].weights[0]
    copied = []
    for index in (0, 1, 99, 100, 101, 199, 200):
        critic.assign(tf.fill(critic.shape, float(index)))
        agent.learner.update_slow(tf.constant(index))
        copied.append(slow.numpy().flat[0])
    assert copied == [0, 0, 0, 100, 100, 100, 200]


def test_the_total_is_the_weighted_sum(veorl, minedojo, dreamer):
    """Five on the MMD, one on everything else; MineDojo: 0.1 on the KL, 5 on the discount."""
    for records, kl in ((veorl, 1.0), (minedojo, 0.1), (dreamer, 0.1)):
        for record in records.values():
            for metrics in record.metrics:
                terms = {k.split("/")[1]: v for k, v in metrics.items() if k.startswith("loss/")}
                total = terms.pop("total")
                assert set(terms) == set(record.stage.scales)
                weight = {"mmd": 5.0, "discount": 5.0}
                weight |= {k: kl for k in ("kl", "plan_kl_target", "plan_kl_source")}
                expected = sum(weight.get(k, 1.0) * v for k, v in terms.items())
                assert total == pytest.approx(expected, rel=1e-5)


def test_the_terms_of_each_stage_are_the_specs(veorl, minedojo):
    image = {f"plan_{k}_{d}" for k in ("image", "kl") for d in ("target", "source")}
    cloning = {"bc_target", "bc_source"}
    model = {"image", "reward", "kl", "mmd"} | image | cloning
    for records, extra in ((veorl, set()), (minedojo, {"discount"})):
        assert set(records["abstraction"].stage.scales) == {"image", "kl", "vq", "mmd"}
        assert set(records["model"].stage.scales) == model | extra
        assert set(records["behavior"].stage.scales) == {"actor", "critic"}


def test_streams_are_the_specs(veorl, config):
    lengths = {
        name: {stream: (s.dataset, s.length) for stream, s in record.stage.streams.items()}
        for name, record in veorl.items()
    }
    target = ("target", config.data.length)
    source = ("source", config.data.source_length)
    assert lengths == {
        "abstraction": {"target": target, "source": source},
        "model": {
            "target": target,
            "source": source,
            "target_long": ("target", config.data.long_length),
        },
        "behavior": {"target": target},
    }
    for record in veorl.values():
        for name, stream in record.stage.streams.items():
            assert name == "target" or stream.keys == ("image",), "videos have images alone"
    slots = {name: s.slots for name, s in veorl["model"].stage.streams.items()}
    assert slots == {
        "target": 0,
        "source": config.data.source_length - 1,
        "target_long": min(config.data.length, config.data.long_length - 1),
    }
    assert [record.stage.evaluates for record in veorl.values()] == [False, False, True]


@pytest.fixture(scope="module")
def twins(config, make_agent, random_batches, snapshot, eager):
    """Two fresh agents with the same seed, trained in two goes; nothing compiled."""
    with eager():
        return [train(make_agent(config), config, random_batches, snapshot) for _ in range(2)]


def test_fresh_agents_with_the_same_seed_give_the_same_losses_bitwise(twins):
    """Operation after operation; `tests/run/test_resume.py` shows it of compiled graphs."""
    left, right = twins
    for name, record in left.items():
        for index, metrics in enumerate(record.metrics):
            expected = right[name].metrics[index]
            assert metrics == expected, f"stage {name}, update {index}"
        assert not changed(record.weights[-1], right[name].weights[-1])


def test_compiled_updates_are_those_of_plain_python(veorl, twins):
    for name, record in veorl.items():
        for index, metrics in enumerate(record.metrics):
            for key, value in twins[0][name].metrics[index].items():
                expected = pytest.approx(value, rel=1e-3, abs=1e-6)
                assert metrics[key] == expected, f"stage {name}, update {index}, {key}"


def test_another_seed_gives_other_weights_and_other_noise(
    tiny_config, make_agent, random_batches, snapshot, eager
):
    config = tiny_config("metaworld dreamerv2")
    agents = [make_agent(config), make_agent(config.update({"seed": 1}))]
    left, right = (snapshot(agent) for agent in agents)
    kernels = {p for p in left if p.endswith("kernel")}
    assert changed(left, right) == kernels
    stage = agents[0].stages()[0]
    batches = random_batches(stage, config)
    losses = []
    with eager():
        for seed, index in ((0, 0), (0, 0), (0, 1), (1, 0)):
            losses.append(Update(stage, seed).evaluate(batches, index)["loss/image"].numpy())
    assert losses[0] == losses[1]
    assert len(set(losses)) == 3, "noise differs between updates and between seeds"


def test_evaluation_changes_nothing(veorl, snapshot, eager):
    record = veorl["behavior"]
    learner = record.stage.before_update.__self__
    agent = learner.model
    state = lambda: snapshot(agent) | {p: v.numpy().copy() for p, v in record.stage.state.items()}
    before = state()
    with eager():
        metrics = record.update.evaluate(record.batches, 0)
    assert not changed(before, state())
    assert {"loss/actor", "loss/critic", "loss/total"} <= set(metrics)


def test_one_batch_can_be_learnt_and_codes_do_not_collapse(veorl):
    record = veorl["abstraction"]
    first = record.metrics[0]
    for index in range(40):
        last = record.update(record.batches, index)
    assert last["loss/image"].numpy() < 0.9 * first["loss/image"]
    assert last["codes_target/perplexity"].numpy() > 1
    assert last["model/skipped"].numpy() == 0


def test_starting_a_stage_again_means_fresh_optimisers(
    tiny_config, make_agent, random_batches, eager
):
    config = tiny_config("metaworld dreamerv2")
    stage = make_agent(config).stages()[0]
    batches = random_batches(stage, config)
    with eager():
        Update(stage, 0)(batches, 0)
    steps = stage.state["optimizer/model/model/steps"]
    assert steps.numpy() == 1
    stage.start()
    assert steps.numpy() == 0
    assert not any(v.numpy().any() for p, v in stage.state.items() if p.startswith("optimizer/"))


@pytest.mark.parametrize("size", [4, 8])
def test_the_trunk_may_start_from_the_plan_net(size, tiny_config, make_agent, snapshot):
    """All but the rows that read actions; with 8 actions those have the shape of the codes'."""
    overrides = {"veorl.trunk_from_plan": True, "action.size": size}
    config = tiny_config("metaworld veorl", overrides)
    agent = make_agent(config)
    before = snapshot(agent)
    agent.stages()[1].begin()
    after = snapshot(agent)
    for path in (p for p in before if p.startswith("trunk/")):
        plan = before[path.replace("trunk", "plan", 1)]
        if path == "trunk/img_in/kernel":
            rows = agent.latent.size
            np.testing.assert_array_equal(after[path][:rows], plan[:rows])
            np.testing.assert_array_equal(after[path][rows:], before[path][rows:])
        else:
            np.testing.assert_array_equal(after[path], plan)


# ----- steps that must not be taken ---------------------------------------------------------------


def model_stage(tiny_config, make_agent, random_batches, **overrides):
    config = tiny_config("metaworld dreamerv2", overrides)
    agent = make_agent(config)
    stage = agent.stages()[0]
    stage.start()
    return agent, stage, random_batches(stage, config)


def test_a_loss_that_is_not_finite_skips_the_step(
    tiny_config, make_agent, random_batches, snapshot, eager
):
    agent, stage, batches = model_stage(tiny_config, make_agent, random_batches)
    update, before = Update(stage, 0), snapshot(agent)
    reward = tf.fill(batches["target"]["reward"].shape, np.float32(np.nan))
    with eager():
        metrics = update({"target": batches["target"] | {"reward": reward}}, 0)
        assert metrics["model/skipped"].numpy() == 1
        assert not changed(before, snapshot(agent))
        metrics = update(batches, 1)
    assert metrics["model/skipped"].numpy() == 1
    after = snapshot(agent)
    assert nets(changed(before, after)) == DREAMER["model"]
    assert all(np.isfinite(v).all() for v in after.values())


def test_an_overflow_in_float16_skips_the_step_and_halves_the_scale(
    tiny_config, make_agent, random_batches, snapshot, eager
):
    agent, stage, batches = model_stage(
        tiny_config, make_agent, random_batches, precision="mixed_float16"
    )
    update, before = Update(stage, 0), snapshot(agent)
    stage.loss_scale.scale.assign(2.0**24)
    with eager():
        metrics = update(batches, 0)
        assert np.isfinite(metrics["loss/total"]) and metrics["model/skipped"].numpy() == 1
        assert stage.loss_scale.scale.numpy() == 2.0**23
        assert not changed(before, snapshot(agent))
        stage.loss_scale.scale.assign(2.0**8)
        metrics = update(batches, 0)
        _, plain, _ = model_stage(tiny_config, make_agent, random_batches)
        norm = Update(plain, 0)(batches, 0)["model/grad_norm"].numpy()
    assert metrics["model/skipped"].numpy() == 1 and stage.loss_scale.scale.numpy() == 2.0**8
    assert nets(changed(before, snapshot(agent))) == DREAMER["model"]
    assert metrics["model/grad_norm"].numpy() == pytest.approx(norm, rel=0.02), "unscaled"


def test_terms_and_scales_must_name_the_same_losses():
    one = tf.constant(1.0)
    assert weighted_sum({"a": one, "b": 2 * one}, {"b": 5.0, "a": 0.5}).numpy() == 10.5
    with pytest.raises(ValueError, match="kl"):
        weighted_sum({"a": one, "kl": one}, {"a": 1.0})
