"""What replicas compute together gives the numbers of one device."""

import subprocess
import sys
from pathlib import Path


def test_two_replicas():
    result = subprocess.run(
        [sys.executable, "-m", "tests.nets.two_replicas"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-2000:]
