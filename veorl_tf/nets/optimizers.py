"""Optimisers for one group of variables, and the loss scale of float16."""

import tensorflow as tf

from veorl_tf.nets.parallel import own


class LossScale:
    """The factor on the loss that keeps float16 gradients from vanishing; 1 for other types.

    A step whose gradients overflow halves it, `GROW` finite steps in a row double it.
    """

    GROW, FIRST, LARGEST, SMALLEST = 1000, 2.0**15, 2.0**24, 1.0

    def __init__(self, name: str, active: bool):
        self.name, self.active = name, active
        self.scale = tf.Variable(1.0, trainable=False, dtype=tf.float32)
        self.finite_run = tf.Variable(0, trainable=False, dtype=tf.int32)
        self.reset()

    @property
    def state(self) -> dict[str, tf.Variable]:
        return {
            f"loss_scale/{self.name}/scale": self.scale,
            f"loss_scale/{self.name}/finite_run": self.finite_run,
        }

    def reset(self) -> None:
        self.scale.assign(self.FIRST if self.active else 1.0)
        self.finite_run.assign(0)

    def adapt(self, finite: tf.Tensor) -> None:
        """After a step: `finite` says whether every gradient was."""
        if not self.active:
            return
        run = tf.where(finite, self.finite_run + 1, 0)
        grow = run >= self.GROW
        scale = tf.where(finite, tf.where(grow, self.scale * 2, self.scale), self.scale / 2)
        own(self.scale).assign(tf.clip_by_value(scale, self.SMALLEST, self.LARGEST))
        own(self.finite_run).assign(tf.where(grow, 0, run))


class Skips:
    """Counts updates in a row that were skipped, since numbers were not finite.

    An overflow of float16 gradients does not count while a smaller loss scale may mend it. `terms`
    are the losses that were not finite when it began, one bit each.
    """

    def __init__(self, name: str):
        self.name = name
        self.run = tf.Variable(0, trainable=False, dtype=tf.int32)
        self.terms = tf.Variable(0, trainable=False, dtype=tf.int32)

    @property
    def state(self) -> dict[str, tf.Variable]:
        return {f"skips/{self.name}/run": self.run, f"skips/{self.name}/terms": self.terms}

    def reset(self) -> None:
        self.run.assign(0)
        self.terms.assign(0)

    def count(self, losses: list[tf.Tensor], finite: tf.Tensor, scale: LossScale) -> tf.Tensor:
        """After an update: its losses, and whether they and all gradients were finite. Returns the
        count."""
        bad = tf.stack([~tf.math.is_finite(loss) for loss in losses])
        bits = tf.reduce_sum(tf.where(bad, 2 ** tf.range(len(losses)), 0))
        smaller = scale.scale > scale.SMALLEST if scale.active else tf.constant(False)
        counts = ~finite & ((bits > 0) | ~smaller)
        run = tf.where(counts, self.run + 1, tf.where(finite, 0, self.run))
        own(self.terms).assign(tf.where(counts & (self.run == 0), bits, self.terms))
        own(self.run).assign(run)
        return run


class Optimizer:
    """What the optimisers share: clipping, warm-up, weight decay, moments by path.

    A step whose gradients are not finite changes nothing: neither weights nor moments.
    `variables` is a dict path -> `tf.Variable`; the slots live in `state` under paths of their
    own and are saved with the weights.

    Args:
        lr: learning rate, reached after `warmup` steps, to which it grows linearly.
        eps: epsilon of the optimiser.
        clip: largest global norm of the gradients; 0: any.
        decay: decoupled weight decay per step.
        agc: largest norm of a variable's gradient as a share of the variable's norm, or of 1e-3
            where that is less (adaptive gradient clipping, Brock et al. 2021); 0: any.
    """

    BETA1, BETA2 = 0.9, 0.999
    SMALLEST_NORM = 1e-3

    def __init__(
        self,
        name: str,
        variables: dict[str, tf.Variable],
        lr: float,
        eps: float = 1e-5,
        clip: float = 100.0,
        decay: float = 0.0,
        agc: float = 0.0,
        warmup: int = 0,
    ):
        self.name, self.variables = name, dict(variables)
        self.lr, self.eps, self.clip, self.decay = lr, eps, clip, decay
        self.agc, self.warmup = agc, warmup
        zeros = lambda v: tf.Variable(tf.zeros(v.shape, tf.float32), trainable=False)
        self.m = {path: zeros(v) for path, v in self.variables.items()}
        self.v = {path: zeros(v) for path, v in self.variables.items()}
        self.steps = tf.Variable(0, trainable=False, dtype=tf.int32)
        self.skipped = tf.Variable(0, trainable=False, dtype=tf.int32)

    @property
    def state(self) -> dict[str, tf.Variable]:
        """Everything that a checkpoint must hold, by path."""
        slots = {
            f"{slot}/{path}": v
            for slot, table in (("m", self.m), ("v", self.v))
            for path, v in table.items()
        }
        state = {"steps": self.steps, "skipped": self.skipped, **slots}
        return {f"optimizer/{self.name}/{k}": v for k, v in state.items()}

    def reset(self) -> None:
        """Back to the moment before the first step."""
        for variable in self.state.values():
            variable.assign(tf.zeros_like(variable))

    def apply(
        self,
        grads: dict[str, tf.Tensor],
        scale: tf.Tensor | float = 1.0,
        allowed: tf.Tensor | bool = True,
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """One step with float32 gradients by path, of a loss that was multiplied by `scale`, if it
        is `allowed`; returns whether it was made, and metrics.

        The clip scales all gradients of the group by `min(1, clip / norm)`.
        """
        norm = tf.linalg.global_norm(list(grads.values())) / scale
        finite = tf.math.is_finite(norm) & allowed
        factor = (self.clip / tf.maximum(norm, self.clip) if self.clip else 1.0) / scale
        own(self.steps).assign_add(tf.cast(finite, tf.int32))
        own(self.skipped).assign_add(tf.cast(~finite, tf.int32))
        tf.cond(finite, lambda: self._step(grads, factor), lambda: None)
        return finite, {"grad_norm": norm, "skipped": tf.identity(own(self.skipped))}

    def _step(self, grads: dict[str, tf.Tensor], factor: tf.Tensor) -> None:
        step = tf.cast(self.steps, tf.float32)
        lr = self.lr * tf.minimum(1.0, step / self.warmup) if self.warmup else self.lr
        for path, grad in grads.items():
            variable = own(self.variables[path])
            grad = self._limited(variable, grad * factor)
            if self.decay:
                variable.assign((1 - self.decay) * variable)
            self._descend(variable, own(self.m[path]), own(self.v[path]), grad, lr, step)

    def _limited(self, variable: tf.Variable, grad: tf.Tensor) -> tf.Tensor:
        if not self.agc:
            return grad
        norm, size = tf.norm(grad), tf.maximum(self.SMALLEST_NORM, tf.norm(variable))
        return grad * (self.agc * size / tf.maximum(norm, self.agc * size))

    def _descend(self, variable, m, v, grad: tf.Tensor, lr, step: tf.Tensor) -> None:
        """Step number `step` of one variable."""
        raise NotImplementedError("_descend(variable, m, v, grad, lr, step)")


class Adam(Optimizer):
    """Adam (Kingma & Ba 2015)."""

    def _descend(self, variable, m, v, grad, lr, step):
        """TensorFlow's kernel reads and writes every number once. Its epsilon stands beside the
        uncorrected root of `v`; scaled, it is the paper's beside the corrected one."""
        power1, power2 = self.BETA1**step, self.BETA2**step
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=m.handle,
            v=v.handle,
            beta1_power=power1,
            beta2_power=power2,
            lr=lr,
            beta1=self.BETA1,
            beta2=self.BETA2,
            epsilon=self.eps * tf.sqrt(1 - power2),
            grad=grad,
        )


class LaProp(Optimizer):
    """LaProp (Ziyin et al. 2020): the momentum is of gradients that are normalised already. Both
    moments are bias-corrected."""

    def _descend(self, variable, m, v, grad, lr, step):
        v.assign(self.BETA2 * v + (1 - self.BETA2) * tf.square(grad))
        grad = grad / (tf.sqrt(v / (1 - self.BETA2**step)) + self.eps)
        m.assign(self.BETA1 * m + (1 - self.BETA1) * grad)
        variable.assign_sub(lr * m / (1 - self.BETA1**step))


OPTIMIZERS = {"adam": Adam, "laprop": LaProp}
