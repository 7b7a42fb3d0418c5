"""What this machine computes best, decided once when a run begins and saved with it."""

from __future__ import annotations

from pathlib import Path


def resolve_precision(choice: str) -> str:
    """`auto` becomes `mixed_bfloat16` where matrix units for bfloat16 exist, else `float32`."""
    if choice != "auto":
        return choice
    return "mixed_bfloat16" if _cpu_has_bfloat16() or _gpu_has_bfloat16() else "float32"


def _cpu_has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 in hardware (AVX512-BF16 or AMX)."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return False
    lines = cpuinfo.read_text().splitlines()
    flags = next((line for line in lines if line.startswith("flags")), "")
    return bool({"avx512_bf16", "amx_bf16"} & set(flags.split()))


def _gpu_has_bfloat16() -> bool:
    """Whether the first GPU is of compute capability 8.0 or later."""
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return False
    capability = tf.config.experimental.get_device_details(gpus[0]).get("compute_capability")
    return capability is not None and capability >= (8, 0)
