"""What `auto` means, and how many processors there are."""

import pytest

from veorl_tf.core import hardware


@pytest.mark.parametrize(
    ("bfloat16", "capability", "expected"),
    [
        (False, None, ("float32", "graph", 1)),
        (True, None, ("mixed_bfloat16", "graph", 1)),
        (True, (6, 1), ("float32", "xla", 16)),
        (False, (7, 5), ("mixed_float16", "xla", 16)),
        (False, (8, 0), ("mixed_bfloat16", "xla", 16)),
        (False, (9, 0), ("mixed_bfloat16", "xla", 16)),
    ],
)
def test_auto_by_device(monkeypatch, bfloat16, capability, expected):
    monkeypatch.setattr(hardware, "_cpu_has_bfloat16", lambda: bfloat16)
    monkeypatch.setattr(hardware, "_gpu_capability", lambda: capability)
    found = hardware.resolve()
    assert (found["precision"], found["compiler"], found["updates_per_call"]) == expected
    assert hardware.accelerated() == (capability is not None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("max 100000", 6), ("200000 100000", 2), ("150000 100000", 2), ("5000 100000", 1), ("?", 6)],
)
def test_cores_are_limited_by_a_quota(monkeypatch, tmp_path, text, expected):
    monkeypatch.setattr(hardware.os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    (tmp_path / "cpu.max").write_text(text)
    assert hardware.cores(tmp_path / "cpu.max") == expected
    assert hardware.cores(tmp_path / "nothing") == 6
