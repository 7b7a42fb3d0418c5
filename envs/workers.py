"""Worker processes for simulators and other CPU jobs: spawned, without TensorFlow, replaceable.

A worker is a fresh Python that imports this module and serves one request at a time over a socket.
It lives in its own session, so that Ctrl-C reaches the parent alone, and it leaves when its socket
closes, whichever way the parent ends.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import inspect
import math
import os
import pathlib
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing import connection as mp_connection
from typing import Any

from envs import streams

_BOOT = (
    "import sys; sys.path.insert(0, sys.argv[2]); import envs.workers as w; w.serve(sys.argv[1])"
)
_ROOT = str(pathlib.Path(__file__).resolve().parent.parent)


@dataclasses.dataclass(frozen=True)
class WorkerFailure:
    """What stands in the place of a result that a worker did not deliver."""

    index: int  # of the simulator, or of the job
    reason: str  # one line
    details: str = ""  # the worker's traceback, where it raised


class SimulatorPool:
    """Several simulators of one kind, each in its own process, stepping in parallel.

    Args:
      spec: the keyword arguments of `envs.make`.
      workers: how many simulators; they are named 0 .. workers - 1.
      timeout: seconds after which an answer counts as a hang.
      factory: 'module:function' that builds the simulator from `spec`.

    A worker that dies, raises, hangs or returns a reward that is not finite yields a
    `WorkerFailure` as its result; a fresh process takes its place (reset it before the next step)
    and `failures` counts it. Raises UnknownTask, BadOption (of `spec`), RenderingError.
    """

    def __init__(
        self, spec: dict[str, Any], workers: int, timeout: float = 120.0, factory: str = "envs:make"
    ):
        if workers < 1:
            raise ValueError(f"workers is {workers}, but a pool needs at least 1")
        if factory == "envs:make":
            import envs

            envs.check(**spec)
        self.failures = 0
        self._timeout = timeout
        self._start = ("make", factory, dict(spec))
        self._environ = _environment(spec.get("render", True))
        self._workers: list[_Worker] = []
        self._begun = set()  # simulators that were reset since their process started
        self._workers = [_Worker(self._environ, self._start) for _ in range(workers)]

    def __len__(self) -> int:
        return len(self._workers)

    def reset(self, seeds: dict[int, int | None]) -> dict[int, Any]:
        """{simulator: seed} -> {simulator: (observation, info) or WorkerFailure}."""
        results = self._exchange({i: ("reset", seed) for i, seed in seeds.items()})
        self._begun |= {i for i, r in results.items() if not isinstance(r, WorkerFailure)}
        return results

    def step(self, actions: dict[int, Any]) -> dict[int, Any]:
        """{simulator: action} -> {simulator: gymnasium's five or WorkerFailure}.

        Raises ValueError for a simulator that was not reset since it (re)started.
        """
        missing = sorted(set(actions) - self._begun)
        if missing:
            raise ValueError(f"simulators {missing} need a reset before their first step")
        return self._exchange({i: ("step", action) for i, action in actions.items()})

    def pids(self) -> list[int]:
        """The process id of each simulator."""
        return [worker.process.pid for worker in self._workers]

    def close(self) -> None:
        """Ends all processes and waits for them; harmless twice."""
        for worker in self._workers:
            worker.hang_up()
        for worker in self._workers:
            worker.end()
        self._workers, self._begun = [], set()

    def __enter__(self) -> SimulatorPool:
        return self

    def __exit__(self, *unused) -> None:
        self.close()

    def _exchange(self, requests: dict[int, tuple]) -> dict[int, Any]:
        """Sends all requests, then gathers the answers; replaces whoever fails."""
        results, waiting = {}, {}
        deadline = time.monotonic() + self._timeout
        for i, request in requests.items():
            self._workers[i].send(request)
            waiting[self._workers[i].connection] = i
        while waiting:
            ready = mp_connection.wait(list(waiting), max(0.0, deadline - time.monotonic()))
            if not ready:
                reason = f"no answer within {self._timeout:g} s"
                for i in waiting.values():
                    results[i] = WorkerFailure(i, reason)
                break
            for one in ready:
                i = waiting.pop(one)
                results[i] = self._workers[i].receive(i)
        for i, result in results.items():
            if isinstance(result, WorkerFailure):
                self.failures += 1
                self._begun.discard(i)
                self._workers[i].end(at_once=True)
                self._workers[i] = _Worker(self._environ, self._start)
        return {i: results[i] for i in requests}


def run_jobs(
    target: str,
    jobs: list[dict[str, Any]],
    workers: int,
    timeout: float = 600.0,
    rendering: bool = True,
    tries: int = 2,
    failed: Callable[[WorkerFailure], None] = lambda failure: None,
) -> Iterator[tuple[int, Any]]:
    """Calls 'module:function' with each job's keyword arguments in persistent worker processes.

    Yields (index of the job, result) in the order of completion. A job whose worker raises, dies
    or is silent for `timeout` seconds is tried again in a fresh process; after `tries` its result
    is a `WorkerFailure`, and `failed` is told of those before. `rendering=False` skips the search
    for a headless renderer. Closing the iterator early ends the workers. Raises RenderingError.
    """
    if workers < 1:
        raise ValueError(f"workers is {workers}, but jobs need at least 1")
    # (job, tries left), the next one last
    todo = [(index, tries) for index in reversed(range(len(jobs)))]
    environ = _environment(rendering) if jobs else {}
    busy: dict[_Worker, tuple[int, int, float]] = {}  # worker -> job, tries left, deadline
    idle: list[_Worker] = []
    try:
        while todo or busy:
            while todo and len(busy) < workers:
                index, left = todo.pop()
                worker = idle.pop() if idle else _Worker(environ)
                worker.send(("call", target, jobs[index]))
                busy[worker] = (index, left, time.monotonic() + timeout)
            for worker, result in _answers(busy, timeout):
                index, left, _ = busy.pop(worker)
                if not isinstance(result, WorkerFailure):
                    idle.append(worker)
                    yield index, result
                    continue
                worker.end(at_once=True)
                if left > 1:
                    failed(result)
                    todo.append((index, left - 1))
                else:
                    yield index, result
    finally:
        for worker in [*idle, *busy]:
            worker.end(at_once=worker in busy)


def _answers(busy: dict, timeout: float) -> list[tuple[_Worker, Any]]:
    """Waits until at least one busy worker answers, dies or passes its deadline."""
    by_connection = {worker.connection: worker for worker in busy}
    soonest = min(deadline for _, _, deadline in busy.values())
    ready = mp_connection.wait(list(by_connection), max(0.0, soonest - time.monotonic()))
    if ready:
        return [
            (by_connection[one], by_connection[one].receive(busy[by_connection[one]][0]))
            for one in ready
        ]
    now = time.monotonic()
    return [
        (worker, WorkerFailure(index, f"no answer within {timeout:g} s"))
        for worker, (index, _, deadline) in busy.items()
        if deadline <= now
    ]


def _environment(rendering: bool) -> dict[str, str]:
    if not rendering:
        return {"MUJOCO_GL": "disable"}
    from envs import rendering as headless

    return headless.environment()


class _Worker:
    """The parent's end of one process."""

    def __init__(self, environ: dict[str, str], first: tuple | None = None):
        streams.fill()
        ours, theirs = socket.socketpair()
        with theirs:
            # llvmpipe draws 64 x 64 pixels no faster with more threads, and workers share cores.
            self.process = subprocess.Popen(
                [sys.executable, "-c", _BOOT, str(theirs.fileno()), _ROOT],
                env={"LP_NUM_THREADS": "0", **os.environ, **environ},
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        self.connection = mp_connection.Connection(ours.detach())
        self.send(("path", list(sys.path)))
        if first is not None:
            self.send(first)

    def send(self, request: tuple) -> None:
        """A worker that is gone shows at `receive`."""
        with contextlib.suppress(OSError):
            self.connection.send(request)

    def receive(self, index: int) -> Any:
        """The answer, or a WorkerFailure with how the worker failed."""
        try:
            kind, value, details = self.connection.recv()
        except (EOFError, OSError):
            return WorkerFailure(index, f"the worker process died ({self._last_words()})")
        return value if kind == "ok" else WorkerFailure(index, value, details)

    def hang_up(self) -> None:
        self.connection.close()

    def end(self, at_once: bool = False) -> None:
        """Closes the socket, waits for the process and leaves no zombie."""
        if not self.connection.closed:
            self.connection.close()
        if at_once:
            self.process.kill()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _last_words(self) -> str:
        try:
            code = self.process.wait(5)
        except subprocess.TimeoutExpired:
            return "its socket closed"
        return f"signal {-code}" if code < 0 else f"exit code {code}"


def serve(descriptor: str) -> None:
    """A worker's life: answers requests until the socket closes, then leaves without a word."""
    streams.settle()
    connection = mp_connection.Connection(int(descriptor))
    state = _Simulator()
    try:
        while True:
            request = connection.recv()
            try:
                answer = state.handle(*request)
            except BaseException as error:  # reported to the parent, which replaces this process
                text = " ".join(f"{type(error).__name__}: {error}".split())
                answer = ("error", text, traceback.format_exc())
            if answer is not None:
                connection.send(answer)
    except (EOFError, OSError):
        sys.stdout.flush()
    # Not sys.exit: freeing OpenGL contexts at interpreter exit prints harmless, alarming errors.
    os._exit(0)


class _Simulator:
    """The requests a worker understands. `path` and `make` have no answer of their own."""

    def __init__(self) -> None:
        self._recipe: tuple | None = None
        self._env = None

    def handle(self, kind: str, *arguments) -> tuple | None:
        return getattr(self, "_" + kind)(*arguments)

    def _path(self, path: list[str]) -> None:
        sys.path[:] = path if _ROOT in path else [_ROOT, *path]

    def _make(self, factory: str, spec: dict) -> None:
        # Built at the first reset, so that its errors are that reset's answer.
        self._recipe = (factory, spec)

    def _reset(self, seed: int | None) -> tuple:
        if self._env is None:
            factory, spec = self._recipe
            self._env = _resolve(factory)(**spec)
        return "ok", self._env.reset(seed=seed), ""

    def _step(self, action) -> tuple:
        result = self._env.step(action)
        if not math.isfinite(result[1]):
            raise ValueError(f"the reward is {result[1]}")
        return "ok", result, ""

    def _call(self, target: str, job: dict) -> tuple:
        result = _resolve(target)(**job)
        if inspect.isgenerator(result):
            raise TypeError(f"{target} is a generator; a job returns one value")
        return "ok", result, ""


def _resolve(target: str):
    """The object named 'module:function'."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)
