"""Training from stored data: the stages of an agent one after another, then its evaluation."""

from __future__ import annotations

import time
import zlib

import numpy as np
import tensorflow as tf

from veorl_tf.agents.registry import make_agent
from veorl_tf.agents.stage import Stage, Stream, Update
from veorl_tf.core import checkpoint, hardware, seeds
from veorl_tf.core.config import Config
from veorl_tf.core.errors import Diverged, Interrupted, MachineError, UserError, warn
from veorl_tf.core.interrupt import StopRequest
from veorl_tf.core.metrics import Logger, Silence
from veorl_tf.core.places import expanded
from veorl_tf.core.progress import progress
from veorl_tf.data.store import FrameStore
from veorl_tf.data.windows import Batches, require_length
from veorl_tf.run import datasets
from veorl_tf.run.batches import Samplers, draw_batch, samplers
from veorl_tf.run.columns import Columns, derive, remove
from veorl_tf.run.directory import RunDirectory, load_weights
from veorl_tf.run.evaluate import TRAINING_GOAL, AgentPolicy, Evaluator
from veorl_tf.run.pace import Pace, Stopwatch
from veorl_tf.run.replicas import Replicas
from veorl_tf.run.simulators import env_options

HEADLINES = (
    "loss/total",
    "loss/image",
    "loss/reward",
    "return",
    "evaluation/success",
    "evaluation/return",
)


class OfflineTraining:
    """One run: its data, agent, clock and files. `run()` brings it from where it stands to its end.

    A position in the run is (stage, update in the stage); a checkpoint holds it with the weights
    and the stage's optimisers, and every random number derives from it, so that a run that was
    interrupted goes on as if it had not been.
    """

    def __init__(
        self,
        config: Config,
        directory: RunDirectory,
        strict: bool = False,
        replicas: Replicas | None = None,
    ):
        self.config, self.directory = config, directory
        self.replicas = replicas or Replicas()
        self.rows = self.replicas.rows(config.data.batch)
        self.stores: dict[str, FrameStore] = {}
        if config.target_dataset:  # it says what actions are
            self.stores["target"] = self.open_store("target")
        self.agent = make_agent(config, datasets.action_space(config, self.stores.get("target")))
        self.stages = self.agent.stages()
        self.budgets = [config.stages[stage.name].updates for stage in self.stages]
        self.check_made_lengths()
        read = {s.dataset for stage in self.stages for s in stage.streams.values()}
        for dataset in ("target", "source"):
            if dataset in read and dataset not in self.stores:
                self.stores[dataset] = self.open_store(dataset)
        datasets.check_images(self.stores)
        self.check_lengths()
        self.bounds = datasets.action_bounds(self.stores["target"])
        datasets.check_actions(self.stores["target"], self.bounds, self.agent.action_space)
        self.stage, self.update, self.begun, self.seconds = 0, 0, [], 0.0
        self.owes_evaluation = False  # one that a signal cut short
        self.logged = 0  # bytes of metrics.jsonl
        self.started = time.monotonic()
        self.restore()
        self.require_same_start()
        self.logger, self.evaluator, self.policy = Silence(), None, None
        if self.replicas.chief:
            self.logger = Logger(directory.path, (self.step, self.logged), strict)
            if config.task != "none":
                spec = {"task": config.task, **env_options(config)}
                self.evaluator = Evaluator(spec, config.env.workers)

    def open_store(self, dataset: str) -> FrameStore:
        with self.replicas.chief_first():
            return datasets.open_store(self.config, dataset)

    def streams(self) -> list[Stream]:
        """What the stages that train read."""
        trained = [s for s, budget in zip(self.stages, self.budgets, strict=True) if budget]
        return [stream for stage in trained for stream in stage.streams.values()]

    def check_made_lengths(self) -> None:
        """Of the windows, before data are made of which none would be long enough."""
        for stream in self.streams():
            made = datasets.made_length(self.config, stream.dataset)
            if made and made[1] <= stream.length:
                raise UserError(
                    f"windows of {stream.length} frames need episodes of {stream.length + 1}, but "
                    f"those of {made[0]} have {made[1]} at most"
                )

    def check_lengths(self) -> None:
        """Of the windows of every stage, before the first one takes its hours."""
        for stream in self.streams():
            store = self.stores[stream.dataset]
            require_length(store, store.split(self.config.data.validation)[0], stream.length)

    def require_same_start(self) -> None:
        """Several processes must begin with the same position, data and weights."""
        if self.replicas.processes == 1:
            return
        digest = lambda arrays: zlib.crc32(b"".join(a.tobytes() for a in arrays))
        require = self.replicas.require_same
        require("position (stage, update)", [self.stage, self.update])
        for name, store in self.stores.items():
            require(f"the {name} data", [len(store), digest([store.episodes.lengths])])
        variables = {**self.agent.weights(), **self.stages[self.stage].state}
        require("the weights", [digest(v.numpy() for v in variables.values())])

    def clock(self) -> float:
        """Seconds of this run so far, earlier starts included."""
        return self.seconds + time.monotonic() - self.started

    def close(self) -> None:
        if self.evaluator is not None:
            self.evaluator.close()
        self.logger.close()

    @property
    def step(self) -> int:
        """Updates done so far, over all stages."""
        return sum(self.budgets[: self.stage]) + self.update

    # ----- checkpoints -------------------------------------------------------------------------

    def restore(self) -> None:
        """From the run's newest checkpoint, else from `init_from`, else nothing."""
        name = (
            checkpoint.latest(self.directory.checkpoints)
            if self.directory.checkpoints.is_dir()
            else None
        )
        if name is None:
            if self.config.init_from:
                arrays, _, _ = load_weights(expanded("--init_from", self.config.init_from))
                assign(self.agent.weights(), arrays, self.config.init_from)
            return
        arrays, manifest = checkpoint.load(self.directory.checkpoints, name)
        self.stage, self.update = manifest["stage"], manifest["update"]
        self.begun, self.seconds = list(manifest["begun"]), manifest["seconds"]
        self.owes_evaluation, self.logged = manifest["owes_evaluation"], manifest["logged"]
        stages = [stage.name for stage in self.stages]
        if stages[self.stage : self.stage + 1] != [manifest["stage_name"]]:
            raise UserError(
                f"{self.directory.path}: saved in stage {manifest['stage_name']}, but the stages "
                f"are {', '.join(stages)} now; name another --logdir"
            )
        assign(self.agent.weights(), arrays, name)
        assign(self.stages[self.stage].state, arrays, name)
        if self.update < self.budgets[self.stage]:
            print(
                f"continuing {self.directory.path} at update {self.update} of stage "
                f"{self.stages[self.stage].name}",
                flush=True,
            )

    def save(self, name: str) -> None:
        if not self.replicas.chief:
            return
        variables = {**self.agent.weights(), **self.stages[self.stage].state}
        manifest = {
            "stage": self.stage,
            "update": self.update,
            "begun": self.begun,
            "stage_name": self.stages[self.stage].name,
            "step": self.step,
            "seconds": self.clock(),
            "owes_evaluation": self.owes_evaluation,
            "logged": self.logger.sync(),
            "config": self.config.flat,
            "action": vars(self.agent.action_space),
            "bounds": self.bounds,
        }
        checkpoint.save(
            self.directory.checkpoints,
            name,
            {path: v.numpy() for path, v in variables.items()},
            manifest,
        )
        checkpoint.prune(self.directory.checkpoints)

    # ----- the loop ----------------------------------------------------------------------------

    def run(self) -> None:
        """All stages that are not done yet."""
        while True:
            stage = self.stages[self.stage]
            if self.update < self.budgets[self.stage]:
                self.train_stage(stage)
            elif self.update and not self.kept(stage):  # it was interrupted at its last update
                self.save(checkpoint.stage_name(stage.name))
            remove(self.agent, stage, self.stores)
            if self.stage + 1 == len(self.stages):
                break
            self.stage, self.update = self.stage + 1, 0

    def kept(self, stage: Stage) -> bool:
        """Whether the end of a stage is saved as such."""
        name = checkpoint.stage_name(stage.name)
        try:
            return checkpoint.manifest(self.directory.checkpoints, name)["update"] == self.update
        except checkpoint.DamagedCheckpoint:  # or missing
            return False

    def train_stage(self, stage: Stage) -> None:
        if stage.name not in self.begun:
            stage.start()
            self.begun.append(stage.name)
        log, budget = self.config.log, self.budgets[self.stage]
        with self.replicas.chief_first():
            columns = derive(self.agent, stage, self.stores)
        training, held_out = samplers(self.config, stage, self.stores, columns)
        resident = self.resident(training)
        pace = Pace(self.config.updates_per_call, fixed=self.replicas.processes > 1)
        xla = self.config.compiler == "xla"
        update = Update(stage, self.config.seed, xla, pace.most, resident)
        if not held_out:
            warn(f"no validation losses in stage {stage.name}: no held-out episode is long enough")
        with (
            StopRequest(at_once=self.replicas.processes == 1) as stop,
            Batches(
                training,
                self.config.seed,
                stage.name,
                self.update,
                budget,
                self.config.data.prefetch,
                pace.most,
                lambda index: min(index + pace.now, self.next_due(stage, index)),
                gather=not resident,
                share=self.rows,
            ) as batches,
            progress(budget, self.update, stage.name, "updates") as bar,
        ):
            watch = Stopwatch()
            if self.owes_evaluation:
                self.evaluate(stop, bar)
            if self.replicas.agree(stop):
                stop.raise_if_requested()
            while self.update < budget:
                with watch("data"):
                    batch = self.replicas.tensors(next(batches), axis=int(pace.most > 1))
                    count = batches.index - self.update
                with watch("update"), pace(count):
                    metrics = update(batch, self.update, count)
                    self.update += count
                    watch.updates += count
                    if pace.most > 1:
                        metrics = {k: v[count - 1] for k, v in metrics.items()}
                    if pace.most > 1 or self.due(log.every):
                        metrics = {k: float(v) for k, v in metrics.items()}
                stop.at_once = False  # from now on there is something to save
                bar.update(count)
                self.require_finite(update, metrics)
                if self.due(log.every):
                    self.log(metrics | watch.read() | {"time/total": self.clock()}, bar)
                if held_out and self.due(log.validation_every):
                    self.validate(stage, update, held_out)
                if self.due(log.video_every):
                    self.report(stage, columns)
                if stage.evaluates and self.due(log.eval_every) and self.update < budget:
                    self.evaluate(stop, bar)
                self.keep_or_leave(stage, stop, bar)
            self.save(checkpoint.stage_name(stage.name))

    def require_finite(self, update: Update, metrics: dict) -> None:
        """Raises Diverged when too many updates in a row were skipped."""
        most, row = self.config.max_skipped, int(metrics["skipped_in_a_row"])
        if most and row >= most:
            first = " and ".join(update.first_not_finite()) or "gradients"
            saved = checkpoint.latest(self.directory.checkpoints)
            raise Diverged(
                f"{self.directory.path}: {row} updates in a row were skipped by update "
                f"{self.update} of stage {update.stage.name}: first {first} were not finite; the "
                f"newest checkpoint is {saved or 'none'}; try a lower learning rate, another "
                f"--precision, or look at the data"
            )

    def keep_or_leave(self, stage: Stage, stop: StopRequest, bar) -> None:
        """After an update: a checkpoint when one is due, or when any process was asked to stop, and
        then the end."""
        leave = self.replicas.agree(stop)
        if leave or self.due(self.config.log.checkpoint_every):
            self.save(checkpoint.update_name(self.stage, self.update))
        if leave:
            bar.note(f"saved at update {self.update} of stage {stage.name}")
            stop.raise_if_requested()

    def due(self, every: int) -> bool:
        return every > 0 and (self.update % every == 0 or self.update == self.budgets[self.stage])

    def next_due(self, stage: Stage, index: int) -> int:
        """After which update something else happens: a call of several updates ends there."""
        log, budget = self.config.log, self.budgets[self.stage]
        periods = [log.every, log.validation_every, log.video_every, log.checkpoint_every]
        periods += [log.eval_every] if stage.evaluates else []
        return min([budget] + [(index // every + 1) * every for every in periods if every > 0])

    def resident(self, training: Samplers) -> dict[str, dict[str, tf.Tensor]]:
        """The samplers' arrays on the accelerator, where there is one and they fit, else none."""
        arrays = {id(a): a for s in training.values() for a in s.arrays.values()}
        size = sum(array.nbytes for array in arrays.values())
        if not hardware.accelerated() or size > self.config.data.resident_gib * 2**30:
            return {}
        if self.replicas.count > 1:
            return {}  # a program's constants stand on one device
        tensors = {key: tf.constant(np.asarray(array)) for key, array in arrays.items()}
        return {
            name: {key: tensors[id(array)] for key, array in sampler.arrays.items()}
            for name, sampler in training.items()
        }

    # ----- what is seen of it ------------------------------------------------------------------

    def log(self, metrics: dict[str, float], bar=None) -> None:
        stage = self.stages[self.stage].name
        self.logger.scalars(self.step, metrics, stage)
        headline = [f"{k} {metrics[k]:.3g}" for k in HEADLINES if k in metrics]
        if bar is not None and headline:
            bar.message(", ".join(headline))

    def validate(self, stage: Stage, update: Update, held_out: Samplers) -> None:
        """Losses of a few held-out batches, the same ones every time."""
        sums: dict[str, float] = {}
        count = 4
        for i in range(count):
            batch = self.replicas.tensors(
                draw_batch(held_out, self.config.seed, f"{stage.name}/validation", i, self.rows)
            )
            for key, value in update.evaluate(batch, i).items():
                sums[key] = sums.get(key, 0.0) + float(value) / count
        self.logger.scalars(self.step, {f"validation/{k}": v for k, v in sums.items()}, stage.name)

    def report(self, stage: Stage, columns: Columns) -> None:
        """Videos and pictures of what the model believes, of held-out data where there is some."""
        if not self.replicas.chief:
            return
        training, held_out = samplers(self.config, stage, self.stores, columns, "image")
        batch = draw_batch(held_out or training, self.config.seed, f"{stage.name}/report", 0)
        seed = tf.constant(seeds.graph_seed(self.config.seed, f"{stage.name}/report"))
        batch = tf.nest.map_structure(tf.constant, batch)
        for name, value in self.agent.report(stage.name, batch, seed).items():
            pixels = (np.clip(value.numpy(), 0, 1) * 255).round().astype(np.uint8)
            show = self.logger.video if pixels.ndim == 4 else self.logger.image
            show(self.step, f"{stage.name}/{name}", pixels)

    def evaluate(self, stop: StopRequest, bar=None) -> None:
        """A short evaluation while training; nothing where there is no simulator."""
        if self.evaluator is None:
            return
        began = time.monotonic()
        if self.policy is None:  # compiled once
            self.policy = AgentPolicy(self.agent, self.config.seed, self.config.env.workers)
        self.policy.update = self.step
        self.owes_evaluation = True
        try:
            with stop.immediate():
                count = self.config.log.eval_episodes
                scores = self.evaluator.run(self.policy, count, 1, first_goal=TRAINING_GOAL)
        except Interrupted:
            return
        except MachineError:
            self.save(checkpoint.update_name(self.stage, self.update))
            raise
        self.owes_evaluation = False
        summary = {f"evaluation/{k}": v for k, v in scores.summary().items()}
        self.log(summary | {"time/evaluation": time.monotonic() - began}, bar)
        for frames in scores.videos:
            self.logger.video(self.step, "evaluation/episode", frames)


def assign(variables: dict[str, tf.Variable], arrays: dict[str, np.ndarray], where: str) -> None:
    """Loads arrays into variables by path; all of them must be there, in the right shape."""
    missing = [p for p in variables if p not in arrays]
    if missing:
        raise UserError(
            f"{where}: {len(missing)} arrays are missing, the first is {missing[0]}; "
            f"it was made with another configuration"
        )
    for path, variable in variables.items():
        if tuple(variable.shape) != arrays[path].shape:
            raise UserError(
                f"{where}: {path} is {list(arrays[path].shape)}, the configuration "
                f"wants {list(variable.shape)}"
            )
    for path, variable in variables.items():
        variable.assign(arrays[path])
