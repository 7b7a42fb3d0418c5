"""Adam for one group of variables, and the loss scale of float16."""

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

    def apply(
        self, grads: dict[str, tf.Tensor], scale: tf.Tensor | float = 1.0
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """One step with float32 gradients by path, of a loss that was multiplied by `scale`;
        returns whether they were finite, and metrics.

        The clip scales all gradients of the group by `min(1, clip / norm)`; 0 means no clip.
        """
        norm = tf.linalg.global_norm(list(grads.values())) / scale
        finite = tf.math.is_finite(norm)
        factor = (self.clip / tf.maximum(norm, self.clip) if self.clip else 1.0) / scale
        own(self.steps).assign_add(tf.cast(finite, tf.int32))
        own(self.skipped).assign_add(tf.cast(~finite, tf.int32))
        tf.cond(finite, lambda: self._step(grads, factor), lambda: None)
        return finite, {"grad_norm": norm, "skipped": tf.identity(own(self.skipped))}

    def _step(self, grads: dict[str, tf.Tensor], factor: tf.Tensor) -> None:
        """TensorFlow's kernel reads and writes every number once. Its epsilon stands beside the
        uncorrected root of `v`; scaled, it is the paper's beside the corrected one."""
        step = tf.cast(self.steps, tf.float32)
        power1, power2 = self.BETA1**step, self.BETA2**step
        epsilon = self.eps * tf.sqrt(1 - power2)
        for path, grad in grads.items():
            variable = own(self.variables[path])
            if self.decay:
                variable.assign((1 - self.decay) * variable)
            tf.raw_ops.ResourceApplyAdam(
                var=variable.handle,
                m=own(self.m[path]).handle,
                v=own(self.v[path]).handle,
                beta1_power=power1,
                beta2_power=power2,
                lr=self.lr,
                beta1=self.BETA1,
                beta2=self.BETA2,
                epsilon=epsilon,
                grad=grad * factor,
            )
