"""Runs a program of `benchmarks.portable` under JAX, without TensorFlow and without this project.

    python run.py --calls 5 [--state FILE]

Prints the time of every call and the metrics of its last update. `--state` writes the state at the
end; programs of this folder start from `inputs.npz`.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).parent)
    parser.add_argument("--calls", type=int, default=5)
    parser.add_argument("--state", type=Path)
    options = parser.parse_args()
    described = json.loads((options.folder / "program.json").read_text())
    with np.load(options.folder / "inputs.npz") as file:
        inputs = [file[f"arr_{i}"] for i in range(len(file.files))]
    state, metrics, times = run(options.folder, described, inputs, options.calls)
    for name, value in zip(described["metrics"], metrics, strict=True):
        print(f"{name:32} {value:.6g}")
    shown = ", ".join(f"{1e3 * t / described['updates']:.1f}" for t in times)
    print(f"ms per update: {shown}")
    if options.state:
        np.savez(options.state, **dict(zip(described["state"], state, strict=True)))


def run(folder: Path, described: dict, inputs: list, calls: int):
    """State and metrics after `calls` calls, and the seconds of each."""
    import jax
    from jax._src.interpreters import mlir
    from jax._src.lib import xla_client
    from jax._src.lib.mlir import ir
    from jax.extend.backend import get_backend

    backend = get_backend()
    devices = backend.local_devices()[:1]
    began = time.perf_counter()
    with mlir.make_ir_context():
        module = ir.Module.parse((folder / "program.mlir").read_bytes())
        devices_list = xla_client.DeviceList(tuple(devices))
        program = backend.compile_and_load(module, devices_list, xla_client.CompileOptions())
    print(f"{devices[0].device_kind}: compiled in {time.perf_counter() - began:.1f} s")
    arguments = [jax.device_put(x, devices[0]) for x in inputs]
    count, place, times = len(described["state"]), described["index"], []
    for call in range(calls):
        index = np.asarray(call * described["updates"], np.int32)
        arguments[place] = jax.device_put(index, devices[0])
        first = described["captured"]  # the program writes over variables that it was traced with
        arguments[first:] = [jax.device_put(x, devices[0]) for x in inputs[first:]]
        began = time.perf_counter()
        results = program.execute(arguments)
        results[0].block_until_ready()
        times.append(time.perf_counter() - began)
        arguments[:count] = results[:count]
    rest = [np.asarray(x) for x in results[count:]]
    if described["updates"] == 1:
        metrics = [float(x) for x in rest[: len(described["metrics"])]]
    else:
        metrics = rest[0][-1].tolist()
    return [np.asarray(x) for x in results[:count]], metrics, times


if __name__ == "__main__":
    main()
