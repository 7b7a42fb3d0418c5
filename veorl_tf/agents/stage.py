"""What an agent tells the loop about its training, and the compiled update that the loop calls."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import tensorflow as tf

from veorl_tf.core import seeds
from veorl_tf.nets.optimizers import LossScale, Optimizer, Skips
from veorl_tf.nets.parallel import add_up

Batches = Mapping[str, Mapping[str, tf.Tensor]]


@dataclass(frozen=True)
class Stream:
    """A named stream of windows: from which dataset, how long, and which arrays."""

    dataset: str  # "target" or "source"
    length: int  # frames per window
    keys: tuple[str, ...]  # "image", "action", "reward", "discount", or the stage's columns
    slots: int = 0  # K > 0: compacted by the column `code` to at most K key frames

    @property
    def reads(self) -> set[str]:
        """Arrays that its windows are made from."""
        return {*self.keys, "code"} if self.slots else set(self.keys)


@dataclass(frozen=True)
class Column:
    """A row per frame that a frozen part of the agent gives, computed once when a stage begins.

    `compute` maps `[context + n, H, W, 3]` uint8 images, consecutive frames, to the rows `[n, ...]`
    of all but the first `context`; rows for which an episode has no such frames before are 0.
    """

    name: str  # its key in batches
    nets: tuple[str, ...]  # whose weights it is made with
    compute: Callable[[tf.Tensor], tf.Tensor]
    context: int = 0


@dataclass(frozen=True)
class Stage:
    """One stage of training.

    `losses(batches, seed)` returns the terms (scalars by name, whose names must equal those of
    `scales`) and metrics. `groups` are the optimiser groups, disjoint sets of variables, that one
    gradient of the weighted sum trains (what a term must not train, its losses hold `frozen`).
    `columns` are computed before the first update from what the stage leaves as it is. `begin` runs
    once before the first update, `before_update` before each, inside the graph, with the update's
    index, `after_update` after each with its metrics and whether all of it was made.
    """

    name: str
    streams: Mapping[str, Stream]
    losses: Callable[[Batches, tf.Tensor], tuple[dict, dict]]
    scales: Mapping[str, float]
    groups: Mapping[str, Optimizer]
    loss_scale: LossScale
    columns: tuple[Column, ...] = ()
    evaluates: bool = False
    begin: Callable[[], None] = field(default=lambda: None)
    before_update: Callable[[tf.Tensor], None] = field(default=lambda index: None)
    after_update: Callable[[Mapping[str, tf.Tensor], tf.Tensor], None] = field(
        default=lambda metrics, made: None
    )
    skips: Skips = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "skips", Skips(self.name))

    def start(self) -> None:
        """What happens once before the first update: `begin`, and fresh optimisers."""
        self.begin()
        for group in self.groups.values():
            group.reset()
        self.loss_scale.reset()
        self.skips.reset()

    @property
    def state(self) -> dict[str, tf.Variable]:
        """The optimisers' variables, by path."""
        parts = [*self.groups.values(), self.loss_scale, self.skips]
        return {path: v for part in parts for path, v in part.state.items()}

    @property
    def variables(self) -> dict[str, tf.Variable]:
        """Everything that this stage trains, by path."""
        return {p: v for group in self.groups.values() for p, v in group.variables.items()}


class Update:
    """A stage's update, compiled: tensors in and out.

    Randomness derives from (seed, stage, index) alone, so update `index` gives the same numbers
    after a resume, and however many updates a call makes. `evaluate` computes the same losses on a
    held-out batch and changes nothing. Under a `tf.distribute` strategy batches are its per-replica
    values, every replica holding an equal share of the rows, and the numbers are, up to rounding,
    those of one device.

    Args:
        stage: what to train.
        seed: of the run.
        jit: compile with XLA.
        per_call: K. For K > 1 batches have a leading axis K, of which a call uses the first
            `count` entries, one an update.
        resident: arrays `[N, ...]` by stream and key, kept on the device; batches of such a stream
            hold their `rows` in place of these keys.
    """

    def __init__(
        self,
        stage: Stage,
        seed: int,
        jit: bool = False,
        per_call: int = 1,
        resident: Mapping[str, Mapping[str, tf.Tensor]] | None = None,
    ):
        self.stage, self.per_call, self._resident = stage, per_call, resident or {}
        self._seed = tf.constant(seeds.graph_seed(seed, stage.name))
        self._held_out_seed = tf.constant(seeds.graph_seed(seed, f"{stage.name}/validation"))
        self._update = tf.function(self._train, jit_compile=jit, autograph=False)
        self._updates = tf.function(self._train_several, jit_compile=jit, autograph=False)
        self._losses = tf.function(self._measure, jit_compile=jit, autograph=False)
        self._strategy = tf.distribute.get_strategy()

    def __call__(self, batches: Batches, index: int, count: int = 1) -> dict[str, tf.Tensor]:
        """Updates `index` ... `index + count - 1`; metrics by name, `[count]` for K > 1."""
        first = tf.constant(index, tf.int32)
        if self.per_call == 1:
            return self._update(batches, first)
        table = self._updates(batches, first, tf.constant(count, tf.int32))
        return dict(zip(self._names, tf.unstack(table, axis=1), strict=True))

    def evaluate(self, batches: Batches, index: int) -> dict[str, tf.Tensor]:
        """Losses and metrics of a batch under update `index`'s validation noise."""
        return self._losses(batches, tf.constant(index, tf.int32))

    def _train_several(self, batches: Batches, index: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
        """`_train` in a loop: a row of metrics per update, in the order of `_names`."""

        def one(i):
            metrics = self._train(batches, index + i, i)
            self._names = list(metrics)
            return tf.stack([tf.cast(value, tf.float32) for value in metrics.values()])

        rows = tf.range(count)
        return tf.map_fn(one, rows, fn_output_signature=tf.float32, parallel_iterations=1)

    def _with_frames(self, batches: Batches) -> Batches:
        """Resident arrays in place of rows."""

        def read(name, batch):
            if name not in self._resident:
                return batch
            rest = {key: value for key, value in batch.items() if key != "rows"}
            arrays = self._resident[name].items()
            return rest | {key: tf.gather(array, batch["rows"]) for key, array in arrays}

        return {name: read(name, batch) for name, batch in batches.items()}

    def _everywhere(self, function: Callable, *args) -> dict[str, tf.Tensor]:
        """`function(*args)` in every replica; what it returns is the same in all of them."""
        if self._strategy.num_replicas_in_sync == 1:
            return function(*args)
        results = self._strategy.run(function, args)
        return {k: self._strategy.experimental_local_results(v)[0] for k, v in results.items()}

    def _train(
        self, batches: Batches, index: tf.Tensor, entry: tf.Tensor | None = None
    ) -> dict[str, tf.Tensor]:
        """One update in every replica, from the batches themselves or from entry `[entry]`."""
        return self._everywhere(self._train_replica, batches, index, entry)

    def _train_replica(self, batches: Batches, index: tf.Tensor, entry: tf.Tensor | None):
        if entry is not None:
            batches = tf.nest.map_structure(lambda x: x[entry], batches)
        stage, batches = self.stage, self._with_frames(batches)
        stage.before_update(index)
        variables = stage.variables
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(list(variables.values()))
            terms, metrics = stage.losses(batches, _fold(self._seed, index))
            self._terms = list(terms)
            total = weighted_sum(terms, stage.scales)
            scaled = total * stage.loss_scale.scale
        grads = tape.gradient(scaled, variables, unconnected_gradients="zero")
        grads = add_up({path: tf.convert_to_tensor(grad) for path, grad in grads.items()})
        finite = all_finite = tf.math.is_finite(total)
        for name, group in stage.groups.items():
            own = {path: grads[path] for path in group.variables}
            made, applied = group.apply(own, stage.loss_scale.scale, finite)
            all_finite &= made
            metrics.update({f"{name}/{k}": v for k, v in applied.items()})
        metrics["skipped_in_a_row"] = stage.skips.count(
            list(terms.values()), all_finite, stage.loss_scale
        )
        if stage.loss_scale.active:
            metrics["loss_scale"] = tf.identity(stage.loss_scale.scale)
        stage.loss_scale.adapt(all_finite)
        stage.after_update(metrics, all_finite)
        return {**_named(terms), **metrics, "loss/total": total}

    def first_not_finite(self) -> list[str]:
        """The losses that were not finite when updates began to be skipped; none if it was the
        gradients alone."""
        bits = int(self.stage.skips.terms.numpy())
        return [f"loss/{name}" for i, name in enumerate(self._terms) if bits >> i & 1]

    def _measure(self, batches: Batches, index: tf.Tensor) -> dict[str, tf.Tensor]:
        return self._everywhere(self._measure_replica, batches, index)

    def _measure_replica(self, batches: Batches, index: tf.Tensor) -> dict[str, tf.Tensor]:
        terms, metrics = self.stage.losses(batches, _fold(self._held_out_seed, index))
        total = weighted_sum(terms, self.stage.scales)
        return {**_named(terms), **metrics, "loss/total": total}


def weighted_sum(terms: Mapping[str, tf.Tensor], scales: Mapping[str, float]) -> tf.Tensor:
    """The sum of `terms` times `scales`; the two must name the same losses."""
    if set(terms) != set(scales):
        raise ValueError(f"losses {sorted(terms)} but scales {sorted(scales)}")
    return tf.add_n([scales[name] * tf.cast(term, tf.float32) for name, term in terms.items()])


def split_seed(seed: tf.Tensor, count: int) -> list[tf.Tensor]:
    """`count` independent seeds for stateless operations."""
    return tf.unstack(tf.random.split(seed, count))


def _fold(seed: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
    return tf.random.fold_in(seed, index)


def _named(terms: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    return {f"loss/{name}": term for name, term in terms.items()}
