"""What this machine computes best, decided once when a run begins and saved with it."""

from __future__ import annotations

import math
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

# What `auto` means, by device (docs/speed.md has the measurements behind it):
# kind -> precision, compiler, updates_per_call.
TABLE = {
    "cpu": ("float32", "graph", 1),
    "cpu with bfloat16": ("mixed_bfloat16", "graph", 1),
    "gpu": ("float32", "xla", 16),
    "gpu with float16": ("mixed_float16", "xla", 16),
    "gpu with bfloat16": ("mixed_bfloat16", "xla", 16),
}
AUTO = {"precision": "auto", "compiler": "auto", "updates_per_call": 0}


def resolve(distribute: str = "none") -> dict[str, Any]:
    """What each key of `AUTO` becomes on this machine. Devices that share batches exchange tensors
    in the midst of a program, where XLA's programs stay on one device."""
    settings = dict(zip(AUTO, TABLE[device_kind()], strict=True))
    return settings if distribute == "none" else settings | {"compiler": "graph"}


def device_kind() -> str:
    """A row of `TABLE`: matrix units for bfloat16 (AVX512-BF16 or AMX; compute capability 8.0 or
    later), or for float16 (7.0), or none."""
    capability = _gpu_capability()
    if capability is None:
        return "cpu with bfloat16" if _cpu_has_bfloat16() else "cpu"
    if capability >= (8, 0):
        return "gpu with bfloat16"
    return "gpu with float16" if capability >= (7, 0) else "gpu"


def multiplies(dtype: str) -> bool:
    """Whether this machine has units that multiply numbers of a type (and add up in float32)."""
    if dtype == "float32" or accelerated():
        return True
    return dtype == "bfloat16" and _cpu_has_bfloat16()


@lru_cache
def _cpu_has_bfloat16() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return False
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    flags = next((line for line in lines if line.startswith("flags")), "")
    return bool({"avx512_bf16", "amx_bf16"} & set(flags.split()))


def _gpu_capability() -> tuple[int, int] | None:
    """Compute capability of the first GPU; None without one."""
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return None
    return tf.config.experimental.get_device_details(gpus[0]).get("compute_capability", (0, 0))


def accelerated() -> bool:
    """Whether TensorFlow computes on something else than the CPU."""
    return _gpu_capability() is not None


def cores(cgroup: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Processors that this process may use: its affinity, and a container's quota rounded up."""
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = cgroup.read_text().split()
        return max(1, min(own, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no such file, or "max": no quota
        return own


def configure_devices() -> None:
    """As many threads as there are processors, and GPU memory taken as it is needed. Before
    TensorFlow's first operation."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(cores())
    tf.config.threading.set_inter_op_parallelism_threads(cores())
    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, True)
