"""Adam for one group of variables, and the loss scale of float16."""

import tensorflow as tf


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
        self.scale.assign(tf.clip_by_value(scale, self.SMALLEST, self.LARGEST))
        self.finite_run.assign(tf.where(grow, 0, run))


class Adam:
    """Adam (Kingma & Ba 2015) with a global-norm clip and decoupled weight decay.

    A step whose gradients are not finite changes nothing: neither weights nor moments.
    `variables` is a dict path -> `tf.Variable`; the slots live in `state` under paths of their
    own and are saved with the weights.
    """

    BETA1, BETA2 = 0.9, 0.999

    def __init__(
        self,
        name: str,
        variables: dict[str, tf.Variable],
        lr: float,
        eps: float = 1e-5,
        clip: float = 100.0,
        decay: float = 0.0,
    ):
        self.name, self.variables = name, dict(variables)
        self.lr, self.eps, self.clip, self.decay = lr, eps, clip, decay
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

    def apply(self, grads: dict[str, tf.Tensor]) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """One step with float32 gradients by path; returns whether they were finite, and metrics.

        The clip scales all gradients of the group by `min(1, clip / norm)`; 0 means no clip.
        """
        norm = tf.linalg.global_norm(list(grads.values()))
        finite = tf.math.is_finite(norm)
        factor = self.clip / tf.maximum(norm, self.clip) if self.clip else 1.0
        self.steps.assign_add(tf.cast(finite, tf.int32))
        self.skipped.assign_add(tf.cast(~finite, tf.int32))
        step = tf.cast(tf.maximum(self.steps, 1), tf.float32)
        correction1, correction2 = 1 - self.BETA1**step, tf.sqrt(1 - self.BETA2**step)
        for path, grad in grads.items():
            self._step(path, grad * factor, correction1, correction2, finite)
        return finite, {"grad_norm": norm, "skipped": self.skipped}

    def _step(self, path, grad, correction1, correction2, finite) -> None:
        variable, m, v = self.variables[path], self.m[path], self.v[path]
        keep = lambda new, old: tf.where(finite, new, old)
        new_m = keep(self.BETA1 * m + (1 - self.BETA1) * grad, m)
        new_v = keep(self.BETA2 * v + (1 - self.BETA2) * tf.square(grad), v)
        m.assign(new_m)
        v.assign(new_v)
        change = self.lr * (new_m / correction1) / (tf.sqrt(new_v) / correction2 + self.eps)
        variable.assign(keep((1 - self.decay) * variable - change, variable))
