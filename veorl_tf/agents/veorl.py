"""VeoRL: offline reinforcement learning from pixels, helped by unlabelled video (ICML 2025).

Three stages. `abstraction`: the behaviour abstraction network (BAN) turns pairs of frames into
discrete codes that drive a first world model, the plan net. `model`: the frozen BAN labels target
and source sequences, which are compacted to the frames where a behaviour ends; the plan net learns
to jump between those, the trunk net learns the true actions, and a behaviour cloner learns which
code comes next. `behavior`: actor and critic imagine in the trunk, see the cloned code, and are
rewarded for staying close to what the plan net predicts.
"""

from dataclasses import replace

import tensorflow as tf

from veorl_tf.agents.behavior import Inputs, Trajectory
from veorl_tf.agents.dreamerv2 import DreamerV2
from veorl_tf.agents.objectives import global_mean, linear_mmd, safe_norm
from veorl_tf.agents.packing import Packing
from veorl_tf.agents.stage import Column, Stage, Stream, split_seed
from veorl_tf.nets.dense import MLP, RELU
from veorl_tf.nets.quantizer import BehaviorAbstraction, usage
from veorl_tf.nets.rssm import State
from veorl_tf.nets.vision import preprocess


class VeoRL(DreamerV2):
    # ----- nets --------------------------------------------------------------------------------

    def create(self) -> None:
        keys, precision = self.config.veorl, self.config.precision
        super().create()
        embed, width = self.model.encoder.size, self.model.rssm.feature_size
        self.encoder_ban = self.add(self.parts.encoder("encoder_ban"))
        self.ban = self.add(
            BehaviorAbstraction(
                "ban", embed, keys.ban_units, keys.codes, keys.code_size, keys.commitment, precision
            )
        )
        self.plan = self.add(self.parts.rssm("plan", keys.code_size, embed, codes=True))
        self.plan_decoder = self.add(self.parts.decoder("image_latent"))
        self.cloner = self.add(MLP("bc", width, width // 2, 1, keys.code_size, RELU, precision))

    def create_behavior(self, width: int) -> None:
        """Actor and critic see the state and a behaviour code."""
        super().create_behavior(width + self.config.veorl.code_size)

    # ----- stages ------------------------------------------------------------------------------

    def stages(self) -> list[Stage]:
        return [self.abstraction_stage(), self.model_stage(), self.behavior_stage()]

    def abstraction_stage(self) -> Stage:
        data, keys = self.config.data, self.config.veorl
        nets = ("encoder_ban", "ban", "plan", "image")
        return Stage(
            name="abstraction",
            losses=self.abstraction_losses,
            streams={
                "target": self.target_stream(),
                "source": Stream("source", data.source_length, ("image",)),
            },
            scales={
                "image": self.config.scale.image,
                **self.parts.kl_scales,
                "vq": keys.vq_scale,
                "mmd": keys.mmd_scale,
            },
            groups={"model": self.group("abstraction", "model", *nets)},
            loss_scale=self.loss_scale("abstraction"),
        )

    def model_stage(self) -> Stage:
        data, keys = self.config.data, self.config.veorl
        trunk = super().model_stage()
        nets = [*self.model_nets(), "plan", "image_latent", "bc"]
        kl = {k: keys.plan_kl_scale * v for k, v in self.parts.kl_scales.items()}
        scales = {"mmd": keys.mmd_scale}
        for domain in ("target", "source"):
            scales |= {
                f"plan_image_{domain}": keys.plan_image_scale,
                **{f"plan_{k}_{domain}": v for k, v in kl.items()},
                f"bc_{domain}": keys.bc_scale,
            }
        streams = {
            **trunk.streams,
            "target_long": Stream(
                "target", data.long_length, ("image",), min(data.length, data.long_length - 1)
            ),
            "source": Stream("source", data.source_length, ("image",), data.source_length - 1),
        }
        if keys.bc_on_trunk:
            scales["bc_trunk"] = keys.bc_scale
            streams["target"] = replace(streams["target"], keys=(*streams["target"].keys, "code"))
        return Stage(
            name="model",
            losses=self.model_losses,
            begin=self.begin_model,
            streams=streams,
            columns=(Column("code", ("encoder_ban", "ban"), self.label, context=1),),
            scales={**trunk.scales, **scales},
            groups={"model": self.group("model", "model", *nets)},
            loss_scale=trunk.loss_scale,
        )

    def begin_model(self) -> None:
        """Encoder and plan decoder start from what stage 1 learnt; the BAN is frozen from here."""
        self.copy("encoder_ban", "encoder")
        self.copy("image", "image_latent")
        if self.config.veorl.trunk_from_plan:
            self.trunk_from_plan()

    def trunk_from_plan(self) -> None:
        """Starts the trunk from the plan net, but for the rows of weights that read actions."""
        for plan, trunk in zip(self.plan.weights, self.model.rssm.weights, strict=True):
            rows = self.plan.without_action(plan.path, plan.shape[0])
            trunk.assign(tf.concat([plan.value[:rows], trunk.value[rows:]], 0))

    # ----- stage 1 -----------------------------------------------------------------------------

    def abstraction_losses(self, batches, seed: tf.Tensor):
        """Reconstruct target frames from a world model that is driven by codes alone."""
        image = preprocess(batches["target"]["image"])
        target = self.encoder_ban(image)
        source = self.encoder_ban(preprocess(batches["source"]["image"]))
        codes = self.ban(target)
        posterior, prior = self.plan.observe(target[:, 1:], codes.code, seed)
        reconstruction = self.model.decoder(self.plan.features(posterior))
        kl, nats = self.parts.kl(posterior, prior)
        terms = {
            "image": global_mean(self.parts.image_error(reconstruction, image[:, 1:])),
            **kl,
            "vq": global_mean(codes.loss),
            "mmd": self.mmd(source, target),
        }
        metrics = {"kl_nats": nats}
        for domain, index in (("target", codes.index), ("source", self.ban(source).index)):
            metrics |= self.code_metrics(domain, index)
        return terms, metrics

    def mmd(self, source, target, source_mask=None, target_mask=None) -> tf.Tensor:
        """The distance of the domains' embeddings. Normalised ones (DreamerV3's) are of a size that
        grows with their width, so that their distance is divided by it."""
        distance = linear_mmd(source, target, source_mask, target_mask)
        return distance / source.shape[-1] if self.config.veorl.mmd_mean else distance

    def code_metrics(self, domain: str, index: tf.Tensor) -> dict[str, tf.Tensor]:
        """Codebook use and the share of transitions at which the code changes."""
        changes = tf.cast(tf.not_equal(index[:, 1:], index[:, :-1]), tf.float32)
        named = usage(index, self.config.veorl.codes) | {"jump_rate": global_mean(changes)}
        return {f"codes_{domain}/{k}": v for k, v in named.items()}

    # ----- stage 2 -----------------------------------------------------------------------------

    def label(self, image: tf.Tensor) -> tf.Tensor:
        """Codes `[L - 1]` of the transitions between frames `[L, ...]`, by the frozen BAN."""
        return self.ban(self.encoder_ban(preprocess(image[None]))).index[0]

    def model_losses(self, batches, seed: tf.Tensor):
        trunk_seed, target_seed, source_seed = split_seed(seed, 3)
        terms, posterior, metrics = self.model.losses(batches["target"], trunk_seed)
        embeds = {}
        for stream, stream_seed in (("target_long", target_seed), ("source", source_seed)):
            domain, batch = stream.split("_")[0], batches[stream]
            plan_terms, plan_metrics, embeds[domain] = self.plan_losses(batch, stream_seed)
            terms |= {f"{k}_{domain}": v for k, v in plan_terms.items()}
            metrics |= {f"{k}_{domain}": v for k, v in plan_metrics.items()}
            metrics |= self.code_metrics(domain, batch["index"])
        (source, source_mask), (target, target_mask) = embeds["source"], embeds["target"]
        terms["mmd"] = self.mmd(source, target, source_mask, target_mask)
        if self.config.veorl.bc_on_trunk:
            terms["bc_trunk"] = self.trunk_cloning_loss(batches["target"]["code"], posterior)
        return terms, metrics

    def plan_losses(self, batch, seed: tf.Tensor):
        """The plan net on key frames: from where one behaviour ends to where the next one does.

        Means are over valid slots; the image loss keeps VeoRL's weight, the sum over valid slots
        divided by all of them.
        """
        mask = batch["mask"]
        packing = Packing(mask, 0 if self.config.compiler == "xla" else self.config.veorl.bucket)
        frames = preprocess(packing.pack(batch["image"]))
        codes = tf.stop_gradient(self.ban.codebook.lookup(batch["code"])) * mask[..., None]
        embed = packing.unpack(self.model.encoder(frames))
        posterior, prior = self.plan.observe(embed, codes, seed)
        features = self.plan.features(posterior)
        kl, nats = self.parts.kl(posterior, prior, mask)
        predicted = self.plan_decoder(packing.pack(features))
        error = packing.unpack(self.parts.image_error(predicted, frames))
        cloned = self.cloner(tf.stop_gradient(features[:, :-1]))
        miss = tf.reduce_mean(tf.square(cloned - codes[:, 1:]), -1)
        terms = {
            "plan_image": global_mean(mask * error),
            **{f"plan_{k}": v for k, v in kl.items()},
            "bc": global_mean(miss, mask[:, 1:]),
        }
        metrics = {
            "plan_kl_nats": nats,
            "plan_image_per_frame": global_mean(error, mask),
            "runs": global_mean(batch["runs"]),
        }
        return terms, metrics, (embed, mask)

    def trunk_cloning_loss(self, code: tf.Tensor, posterior: State) -> tf.Tensor:
        """Optional: the cloner also predicts the next transition's code from trunk states;
        `code [B, T]` are those of the transitions that led to the frames."""
        codes = tf.stop_gradient(self.ban.codebook.lookup(code[:, 1:]))
        features = tf.stop_gradient(self.model.rssm.features(posterior))[:, :-1]
        return global_mean(tf.square(self.cloner(features) - codes))

    # ----- what is shown -----------------------------------------------------------------------

    def report(self, stage: str, batches, seed: tf.Tensor) -> dict[str, tf.Tensor]:
        """The trunk's open-loop video, the plan net's, and a picture of the codebook."""
        image = batches["target"]["image"]
        embed = self.encoder_ban(preprocess(image))
        codes = self.ban(embed)
        pictures = {"codebook": codebook_picture(codes.index, image, self.config.veorl.codes)}
        if stage == "abstraction":
            return pictures | {
                "open_loop/plan": self.open_loop(
                    self.plan, self.model.decoder, embed[:, 1:], codes.code, image[:, 1:], seed
                )
            }
        if stage == "model":
            long = batches["target_long"]
            frames = long["image"]
            frames *= tf.cast(long["mask"], frames.dtype)[..., None, None, None]
            code = self.ban.codebook.lookup(long["code"]) * long["mask"][..., None]
            pictures["open_loop/plan"] = self.open_loop(
                self.plan,
                self.plan_decoder,
                self.model.encoder(preprocess(frames)),
                code,
                frames,
                seed,
            )
        return pictures | super().report(stage, batches, seed)

    # ----- stage 3: hooks of the behaviour learner ---------------------------------------------

    def features(self, carry, state: State, seed: tf.Tensor) -> Inputs:
        """x = [f, q]: the state's features and the code that the cloner proposes there."""
        features = self.model.rssm.features(state)
        code = self.ban.codebook.snap(self.cloner(features))
        x = tf.concat([tf.cast(features, tf.float32), code], -1)
        return Inputs(x, x, carry, {"code": code})

    def reward(self, rollout: Trajectory, seed: tf.Tensor) -> tuple[tf.Tensor, dict]:
        """Extrinsic plus intrinsic reward of the states 0 ... n-1.

        The plan net takes one step from the trunk state s_{t-1} under its code; the intrinsic
        reward of s_t is minus the distance to where that step leads (0 for t = 0).
        """
        extrinsic, metrics = super().reward(rollout, seed)
        before = {k: v[:-1] for k, v in rollout.state.items()}
        reached = {k: v[1:] for k, v in rollout.state.items()}
        planned = self.plan_step(before, rollout.inputs.extras["code"][:-1], seed)
        stoch = self.sample_of(reached) - self.sample_of(planned)
        deter = tf.cast(reached["deter"], tf.float32) - tf.cast(planned["deter"], tf.float32)
        distance = safe_norm(tf.concat([stoch, deter], -1))
        intrinsic = tf.pad(-distance, [[1, 0], [0, 0]])
        metrics |= {
            "intrinsic_reward": global_mean(intrinsic),
            "plan_distance_stoch": global_mean(safe_norm(stoch)),
            "plan_distance_deter": global_mean(safe_norm(deter)),
        }
        return extrinsic + self.config.veorl.intrinsic_scale * intrinsic, metrics

    def plan_step(self, state: State, code: tf.Tensor, seed: tf.Tensor) -> State:
        """One plan step from trunk states `[n, N, ...]`."""
        leading, flatten = code.shape[:2], lambda x: tf.reshape(x, [-1, *x.shape[2:]])
        noise = flatten(self.latent.noise(seed, list(leading)))
        step = self.plan.imagine_step(tf.nest.map_structure(flatten, state), flatten(code), noise)
        return {k: tf.reshape(v, [*leading, *v.shape[1:]]) for k, v in step.items()}

    def sample_of(self, state: State) -> tf.Tensor:
        """The stochastic part that distances compare: the sample, or optionally its mean."""
        if not self.config.veorl.intrinsic_mean:
            return tf.cast(state["stoch"], tf.float32)
        if "mean" in state:
            return state["mean"]
        probs = tf.nn.softmax(state["logit"])
        return tf.reshape(probs, tf.shape(state["stoch"]))


def codebook_picture(index: tf.Tensor, image: tf.Tensor, entries: int, shown: int = 20):
    """What codes do: mean frame before, mean frame after, and their difference (grey = none,
    amplified), one column per code, the most used first, ten a line; unused codes are black.

    `index [B, T - 1]` labels the transitions of `image [B, T, H, W, 3]`; returns `[H', W', 3]`.
    """
    frames = preprocess(image) + 0.5
    shape, label, columns = frames.shape[2:], tf.reshape(index, [-1]), min(10, entries)
    counts = tf.math.unsorted_segment_sum(tf.ones_like(label), label, entries)
    order = tf.argsort(counts, direction="DESCENDING", stable=True)[:shown]
    mean = lambda x: tf.gather(
        tf.math.unsorted_segment_mean(tf.reshape(x, [-1, *shape]), label, entries), order
    )
    before, after = mean(frames[:, :-1]), mean(frames[:, 1:])
    change = tf.clip_by_value(0.5 + 4 * (after - before), 0, 1)
    change = tf.where(tf.gather(counts, order)[:, None, None, None] > 0, change, 0)
    cells = tf.pad(
        tf.concat([before, after, change], 1),
        [[0, -min(shown, entries) % columns], [0, 4], [0, 0], [0, 0]],
    )
    lines = tf.reshape(cells, [-1, columns, *cells.shape[1:]])
    return tf.reshape(tf.transpose(lines, [0, 2, 1, 3, 4]), [-1, columns * shape[1], 3])
