"""The benchmark runs as printed and its numbers are consistent."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_small_update(tmp_path):
    file = tmp_path / "result.json"
    command = [sys.executable, "-m", "benchmarks.update", "--configs", "metaworld", "dreamerv2"]
    command += ["debug", "--stages", "behavior", "--batch", "3", "--length", "4"]
    command += ["--precision", "float32", "--updates", "3", "--json", str(file)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    result = json.loads(file.read_text())
    assert set(result) >= {"machine", "date", "revision", "command", "peak_gflops", "stages"}
    assert set(result["stages"]) == {"behavior"}
    stage = result["stages"]["behavior"]
    assert 0 < stage["executed_gflop"] < stage["nominal_gflop"], "frames are embedded once"
    share = stage["nominal_gflop"] / (stage["ms"] / 1e3) / stage["peak_gflops"]
    assert abs(share - stage["nominal_share"]) < 0.1 * share + 0.001
    assert stage["peak_rss_mb"] > 100 and stage["compile_s"] > 0
