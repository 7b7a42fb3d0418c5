"""VeoRL's losses of stages 1 and 2, recomputed frame after frame without batches, masks or scans
(sections 2.1 and 2.3 of its spec; invariants 14 and 15)."""

import numpy as np
import pytest
import tensorflow as tf

from veorl_tf.agents.veorl import codebook_picture
from veorl_tf.nets.vision import preprocess

SEED = tf.constant([5, 6])
DOMAINS = ["metaworld", "minedojo"]


@pytest.fixture
def build(tiny_config, fresh_agent, random_windows, silent):
    """`build(domain, stage, **overrides)`: an agent without noise, the stage, stored windows."""

    def make(domain, index, **overrides):
        config = tiny_config(f"{domain} veorl", overrides)
        agent = silent(fresh_agent(config))
        stage = agent.stages()[index]
        stage.start()
        return agent, stage, random_windows(stage, config)

    return make


@pytest.fixture
def losses(derived):
    """`losses(stage, windows)`: terms and metrics, from stored windows on."""
    return lambda stage, windows: stage.losses(derived(stage, windows), SEED)


def codes_of(agent, image):
    """Index and row of the code of every transition of `image [T, ...]`, pair after pair."""
    ban, table = agent.ban, agent.ban.codebook.codebook.numpy()
    embed = agent.encoder_ban(preprocess(image)).numpy()
    after, before, out = (x.kernel.numpy() for x in (ban.after, ban.before, ban.out))
    indices = []
    for j in range(len(embed) - 1):
        y = np.maximum(embed[j + 1] @ after + embed[j] @ before, 0) @ out
        indices.append(int(((y - table) ** 2).sum(-1).argmin()))
    return indices, table[indices]


def filter_plan(agent, encoder, frames, codes):
    """What the plan net makes of `frames [n, ...]` and `codes [n, Dc]`, step after step: features
    `[n, F]` and KLs `[n]`."""
    embed, noise = encoder(preprocess(frames)), agent.latent.noise(None, [1])
    state, states = agent.plan.initial(1), []
    for t in range(len(codes)):
        state = agent.plan.observe_step(state, codes[t : t + 1], embed[t : t + 1], noise)
        states.append(state)
    states = {k: tf.concat([s[k] for s in states], 0) for k in state}
    prior = agent.plan.prior(states["deter"])
    kl = agent.latent.kl({k: states[k] for k in prior}, prior)
    return agent.plan.features(states), kl.numpy()


def image_nll(decoder, features, frames):
    target = frames.numpy() / 255.0 - 0.5
    return 0.5 * ((decoder(features).numpy() - target) ** 2).sum((1, 2, 3))


@pytest.mark.parametrize("domain", DOMAINS)
def test_abstraction_losses_by_hand(domain, build, losses):
    agent, stage, windows = build(domain, 0)
    terms, metrics = losses(stage, windows)
    nll, kls, vq, embeds = [], [], [], []
    for image in windows["target"]["image"]:
        _, codes = codes_of(agent, image)
        embed = agent.encoder_ban(preprocess(image))
        embeds.append(embed)
        y = agent.ban.project(embed[None])[0].numpy()
        vq.append(2 * ((y - codes) ** 2).mean())
        # The first frame is never observed: it only says where the first behaviour starts.
        features, kl = filter_plan(agent, agent.encoder_ban, image[1:], codes)
        kls.append(kl)
        nll.append(image_nll(agent.model.decoder, features, image[1:]))
    source = agent.encoder_ban(preprocess(windows["source"]["image"])).numpy()
    distance = source.mean((0, 1)) - np.mean(embeds, (0, 1))
    assert np.shape(kls) == (3, 3)
    assert terms["image"].numpy() == pytest.approx(np.mean(nll), rel=1e-4)
    assert metrics["kl_nats"].numpy() == pytest.approx(np.mean(kls), rel=1e-3, abs=1e-5)
    assert terms["kl"].numpy() == pytest.approx(max(1, np.mean(kls)), rel=1e-3)
    assert terms["vq"].numpy() == pytest.approx(np.mean(vq), rel=1e-4)
    assert terms["mmd"].numpy() == pytest.approx((distance**2).sum(), rel=1e-3)


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize(("length", "bucket"), [(3, 64), (6, 0), (6, 1), (6, 64)])
def test_plan_losses_by_hand(domain, length, bucket, build, losses):
    """With more runs than slots (3), and with slots that no run fills (6), packed or not."""
    overrides = {"data.length": length, "kl.free": 0.0, "veorl.bucket": bucket}
    agent, stage, windows = build(domain, 1, **overrides)
    terms, metrics = losses(stage, windows)
    embeds, fill = {}, {}
    for stream, slots in (("target_long", length), ("source", 4)):
        name = stream.split("_")[0]
        nll, kls, misses, runs, embeds[name] = [], [], [], [], []
        for image in windows[stream]["image"]:
            index, codes = codes_of(agent, image)
            ends = [j for j in range(len(index)) if index[j + 1 : j + 2] != [index[j]]]
            runs.append(len(ends))
            frames, codes = tf.gather(image, np.array(ends[:slots]) + 1), codes[ends[:slots]]
            features, kl = filter_plan(agent, agent.model.encoder, frames, codes)
            kls += list(kl)
            nll += list(image_nll(agent.plan_decoder, features, frames))
            misses += list(((agent.cloner(features)[:-1] - codes[1:]) ** 2).numpy().mean(-1))
            embeds[name] += list(agent.model.encoder(preprocess(frames)).numpy())
        places = slots * len(runs)
        fill[name] = len(kls) / places
        assert terms[f"plan_image_{name}"].numpy() == pytest.approx(sum(nll) / places, rel=1e-4)
        assert terms[f"plan_kl_{name}"].numpy() == pytest.approx(np.mean(kls), rel=1e-3)
        assert terms[f"bc_{name}"].numpy() == pytest.approx(np.mean(misses), rel=1e-4)
        assert metrics[f"runs_{name}"].numpy() == pytest.approx(np.mean(runs))
    assert fill["target"] == 1 if length == 3 else 0.3 < fill["target"] < 1, "what is tested here"
    distance = np.mean(embeds["source"], 0) - np.mean(embeds["target"], 0)
    assert terms["mmd"].numpy() == pytest.approx((distance**2).sum(), rel=1e-3)


def gradients(agent, measure):
    """{term: {paths of weights whose gradient is not zero}}."""
    weights = agent.weights()
    with tf.GradientTape(persistent=True) as tape:
        terms, _ = measure()
    reached = {}
    for name, term in terms.items():
        grads = tape.gradient(term, weights)
        reached[name] = {
            p for p, g in grads.items() if g is not None and np.any(tf.convert_to_tensor(g))
        }
    return reached


def nets(paths) -> set[str]:
    return {path.split("/")[0] for path in paths}


def test_where_the_gradients_of_stage_1_go(build, losses):
    agent, stage, windows = build("metaworld", 0, **{"kl.free": 0.0})
    reached = gradients(agent, lambda: losses(stage, windows))
    # The reconstruction trains the BAN through the straight-through codes, but not the codebook.
    assert nets(reached["image"]) == {"encoder_ban", "ban", "plan", "image"}
    assert "ban/codebook/codebook" not in reached["image"] | reached["kl"] | reached["mmd"]
    assert nets(reached["kl"]) == {"encoder_ban", "ban", "plan"}
    assert nets(reached["vq"]) == {"encoder_ban", "ban"}
    assert "ban/codebook/codebook" in reached["vq"]
    assert nets(reached["mmd"]) == {"encoder_ban"}


@pytest.mark.parametrize("domain", DOMAINS)
def test_where_the_gradients_of_stage_2_go(domain, build, losses):
    agent, stage, windows = build(domain, 1, **{"kl.free": 0.0})
    reached = gradients(agent, lambda: losses(stage, windows))
    for stream in ("target", "source"):
        assert nets(reached[f"bc_{stream}"]) == {"bc"}, "no gradient to RSSM or encoder"
        assert nets(reached[f"plan_image_{stream}"]) == {"encoder", "plan", "image_latent"}
        assert nets(reached[f"plan_kl_{stream}"]) == {"encoder", "plan"}
    assert nets(reached["mmd"]) == {"encoder"}
    assert nets(reached["image"]) == {"encoder", "trunk", "image"}
    assert nets(reached["reward"]) == {"encoder", "trunk", "reward"}
    assert nets(reached["kl"]) == {"encoder", "trunk"}
    if domain == "minedojo":
        assert nets(reached["discount"]) == {"encoder", "trunk", "discount"}
    everything = set().union(*reached.values())
    assert not {"encoder_ban", "ban"} & nets(everything), "the BAN is frozen"


def test_normalised_embeddings_have_a_mean_distance(tiny_config, fresh_agent, rng):
    """On DreamerV3 parts, whose embeddings are wide and of unit size."""
    left, right = (tf.constant(rng.normal(size=(5, 8)), tf.float32) for _ in range(2))
    distance = ((left.numpy().mean(0) - right.numpy().mean(0)) ** 2).sum()
    for names, share in (("metaworld veorl", 1), ("metaworld veorl_dv3", 1 / 8)):
        agent = fresh_agent(tiny_config(names))
        assert agent.mmd(left, right).numpy() == pytest.approx(share * distance, rel=1e-5)


def test_mmd_vanishes_when_source_and_target_are_the_same(build, losses):
    agent, stage, windows = build("metaworld", 0, **{"data.source_length": 4})
    same = {"target": windows["target"], "source": {"image": windows["target"]["image"]}}
    assert losses(stage, same)[0]["mmd"].numpy() == 0
    assert losses(stage, windows)[0]["mmd"].numpy() > 0
    agent, stage, windows = build("metaworld", 1, **{"data.long_length": 5})
    same = windows | {"target_long": windows["source"]}
    assert losses(stage, same)[0]["mmd"].numpy() == pytest.approx(0, abs=1e-9)
    assert losses(stage, windows)[0]["mmd"].numpy() > 1e-4


def test_windows_of_one_single_run_are_finite(build, losses):
    """A source that never moves: one run, no pair to clone."""
    agent, stage, windows = build("metaworld", 1)
    still = tf.repeat(windows["source"]["image"][:, :1], 5, 1)
    terms, metrics = losses(stage, windows | {"source": {"image": still}})
    assert metrics["runs_source"].numpy() == 1
    assert terms["bc_source"].numpy() == 0
    assert all(np.isfinite(v) for v in terms.values())


def test_jump_rate_counts_changes(build, losses):
    agent, stage, windows = build("metaworld", 1)
    _, metrics = losses(stage, windows)
    for stream, name in (("target_long", "target"), ("source", "source")):
        index = np.stack([agent.label(image) for image in windows[stream]["image"]])
        expected = (np.diff(index, axis=1) != 0).mean()
        assert metrics[f"codes_{name}/jump_rate"].numpy() == pytest.approx(expected)
        assert metrics[f"codes_{name}/used"].numpy() == pytest.approx(len(np.unique(index)) / 8)


def test_the_cloner_may_also_learn_from_trunk_states(build, losses):
    agent, stage, windows = build("metaworld", 1, **{"veorl.bc_on_trunk": True})
    terms, _ = losses(stage, windows)
    _, posterior, _ = agent.model.losses(windows["target"], SEED)
    features = agent.model.rssm.features(posterior)
    misses = []
    for b, image in enumerate(windows["target"]["image"]):
        _, codes = codes_of(agent, image)
        predicted = agent.cloner(features[b]).numpy()
        misses += [((predicted[t] - codes[t]) ** 2).mean() for t in range(len(codes))]
    assert terms["bc_trunk"].numpy() == pytest.approx(np.mean(misses), rel=1e-4)
    reached = gradients(agent, lambda: losses(stage, windows))
    assert nets(reached["bc_trunk"]) == {"bc"}


@pytest.mark.parametrize("stage_name", ["abstraction", "model", "behavior"])
@pytest.mark.parametrize("domain", DOMAINS)
def test_pictures(domain, stage_name, tiny_config, fresh_agent, random_windows, derived):
    config = tiny_config(f"{domain} veorl")
    agent = fresh_agent(config)
    stage = next(s for s in agent.stages() if s.name == stage_name)
    windows = random_windows(stage, config)
    batches = derived(stage, windows)
    batches["target"] = windows["target"] | batches["target"]
    pictures = agent.report(stage_name, batches, SEED)
    length = {"abstraction": 3, "model": 4, "behavior": 4}[stage_name]
    columns = 3 * 64
    expected = {"codebook": (3 * 64 + 4, 8 * 64, 3)}
    if stage_name != "behavior":
        expected["open_loop/plan"] = (length, 192, columns, 3)
    if stage_name != "abstraction":
        expected["open_loop/trunk"] = (4, 192, columns, 3)
    assert {k: tuple(v.shape) for k, v in pictures.items()} == expected
    for name, picture in pictures.items():
        assert np.min(picture) >= 0 and np.max(picture) <= 1, name


def test_the_codebooks_picture_shows_what_each_code_does():
    """Of 12 codes 0, 1 and 5 occur; 5 twice, so it comes first. Ten columns a line."""
    dark, light = np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), 51, np.uint8)
    image = tf.constant(np.stack([dark, light, light, dark, light])[None])
    picture = codebook_picture(tf.constant([[5, 0, 1, 5]]), image, 12).numpy()
    assert picture.shape == (2 * (3 * 2 + 4), 10 * 2, 3)
    column = lambda i: picture[:6, 2 * i : 2 * i + 2].reshape(3, 2, 2, 3)[:, 0, 0, 0]
    np.testing.assert_allclose(column(0), [0.0, 0.2, 1.0], atol=1e-6)
    np.testing.assert_allclose(column(1), [0.2, 0.2, 0.5], atol=1e-6)
    np.testing.assert_allclose(column(2), [0.2, 0.0, 0.0], atol=1e-6)
    assert not picture[:, 6:].any() and not picture[6:].any()


def test_open_loop_shows_truth_model_and_error(tiny_config, make_agent, random_batches):
    config = tiny_config("metaworld dreamerv2", {"data.length": 8})
    agent = make_agent(config)
    batch = random_batches(agent.stages()[0], config)["target"]
    video = agent.report("model", {"target": batch}, SEED)["open_loop/trunk"].numpy()
    truth, model, error = np.split(video, 3, 1)
    frames = np.concatenate(batch["image"].numpy(), 2) / 255.0
    np.testing.assert_allclose(truth, frames, atol=1e-6)
    np.testing.assert_allclose(error, (model - truth + 1) / 2, atol=1e-5)
    later = batch["image"].numpy().copy()
    later[:, 5:] = 255 - later[:, 5:]
    changed = {"target": batch | {"image": tf.constant(later)}}
    again = np.split(agent.report("model", changed, SEED)["open_loop/trunk"].numpy(), 3, 1)[1]
    np.testing.assert_allclose(again, model, atol=1e-5, err_msg="frames from 5 on are not seen")
    action = batch["action"] * tf.reshape(tf.cast(tf.range(8) < 6, tf.float32), [1, 8, 1])
    moved = {"target": batch | {"action": action}}
    moved = np.split(agent.report("model", moved, SEED)["open_loop/trunk"].numpy(), 3, 1)[1]
    np.testing.assert_array_equal(moved[:6], model[:6])
    assert np.abs(moved[6:] - model[6:]).max() > 1e-4, "actions from 5 on are"


def test_how_key_frames_are_packed_changes_no_gradient(build, losses):
    grads = []
    for bucket in (0, 1, 64):
        agent, stage, windows = build("metaworld", 1, **{"veorl.bucket": bucket, "kl.free": 0.0})
        weights = stage.variables
        with tf.GradientTape() as tape:
            terms, _ = losses(stage, windows)
            total = tf.add_n(list(terms.values()))
        grads.append(tape.gradient(total, weights, unconnected_gradients="zero"))
    for path in grads[0]:
        scale = np.abs(grads[0][path]).max()
        for other in grads[1:]:
            np.testing.assert_allclose(other[path], grads[0][path], atol=1e-4 * scale, err_msg=path)
