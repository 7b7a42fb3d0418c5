"""Which headless OpenGL to use, decided by trying it in a child process.

The order: $MUJOCO_GL when set; EGL; the system's OSMesa; an OSMesa unpacked without root under
`sys.prefix/rendering` (there the loader needs LD_LIBRARY_PATH, which counts only at exec: that is
why the answer is a set of environment variables for a child process).
`python -m envs.rendering` says what works here and exits 0, or what is missing and exits 4.
"""

from __future__ import annotations

import functools
import os
import pathlib
import subprocess
import sys

from envs import streams
from envs.errors import RenderingError

INSTALL = "apt-get install libosmesa6"
_PROBE_SECONDS = 120  # a cold file cache on a busy machine; a working probe takes about a second
_PROBE = """
import os, sys
try:
    import mujoco
    model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><light pos='0 0 3'/>"
        "<geom size='.5' rgba='1 0 0 1'/><camera name='c' pos='0 -3 0' xyaxes='1 0 0 0 0 1'/>"
        "</worldbody></mujoco>")
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    renderer = mujoco.Renderer(model, 32, 32)
    renderer.update_scene(data, 'c')
    red, green, blue = renderer.render()[16, 16]
    text = 'ok' if red > 50 > blue else f'wrong colours: {red} {green} {blue}'
except BaseException as error:
    text = f'{type(error).__name__}: {error}'
print('PROBE', ' '.join(text.split()), flush=True)
os._exit(0)
"""


def environment() -> dict[str, str]:
    """The variables a rendering child process needs (MUJOCO_GL, perhaps LD_LIBRARY_PATH).

    Tries the candidates once per process (about a second for the first that works).
    Raises RenderingError with the missing library and the command that installs it.
    """
    variables, reason = _choose(_wanted())
    if variables is None:
        raise RenderingError(reason)
    return dict(variables)


def check() -> tuple[bool, str]:
    """Renders one real frame in a child process: (it worked, one line that says how or why not)."""
    variables, reason = _choose(_wanted())
    return variables is not None, reason


def prepare() -> None:
    """Makes rendering work in *this* process, before MuJoCo's first import.

    Raises RenderingError when TensorFlow is loaded here (the two crash each other), or when the
    only working library lies where this process's loader does not look.
    """
    if "tensorflow" in sys.modules:
        raise RenderingError(
            "TensorFlow is loaded in this process and would crash with the "
            "software renderer: step simulators through "
            "envs.workers.SimulatorPool"
        )
    if "mujoco" in sys.modules or _wanted():
        return
    variables = environment()
    libraries = variables.pop("LD_LIBRARY_PATH", None)
    if libraries not in (None, os.environ.get("LD_LIBRARY_PATH")):
        raise RenderingError(
            f"start this process with LD_LIBRARY_PATH={libraries} "
            "MUJOCO_GL=osmesa, or use envs.workers.SimulatorPool, which does"
        )
    os.environ.update(variables)


def _wanted() -> str:
    """The renderer that the user's shell asks for. Here, and for the processes that follow, it is
    written as libraries know it: MuJoCo takes any case and spaces, PyOpenGL does not."""
    for name in ("MUJOCO_GL", "PYOPENGL_PLATFORM"):
        if name in os.environ:
            os.environ[name] = os.environ[name].strip().lower()
    return os.environ.get("MUJOCO_GL", "")


@functools.cache
def _choose(wanted: str) -> tuple[dict[str, str] | None, str]:
    failures = []
    for variables in _candidates(wanted):
        text = _probe(variables)
        where = variables["MUJOCO_GL"]
        if "LD_LIBRARY_PATH" in variables:
            where += f" from {_unpacked()}"
        if text == "ok":
            return variables, f"headless rendering works ({where})"
        failures.append(f"{where}: {_explain(variables['MUJOCO_GL'], text)}")
    asked = " (MUJOCO_GL is set; unset it to try the others)" if wanted else ""
    return None, (
        f"headless rendering does not work{asked}: {'; '.join(failures)}. "
        f"Install the library: {INSTALL}"
    )


def _candidates(wanted: str) -> list[dict[str, str]]:
    folder = _unpacked()
    path = os.environ.get("LD_LIBRARY_PATH", "")
    # PyOpenGL's own choice is named too: one left in the caller's shell would contradict it.
    found = [
        {"MUJOCO_GL": name, "PYOPENGL_PLATFORM": name}
        for name in ([wanted] if wanted else ["egl", "osmesa"])
    ]
    if wanted in ("", "osmesa") and folder.is_dir():
        libraries = os.pathsep.join(filter(None, [str(folder), path]))
        found.append(
            {"MUJOCO_GL": "osmesa", "PYOPENGL_PLATFORM": "osmesa", "LD_LIBRARY_PATH": libraries}
        )
    return found


def _unpacked() -> pathlib.Path:
    return pathlib.Path(sys.prefix, "rendering", "usr", "lib", "x86_64-linux-gnu")


def _probe(variables: dict[str, str]) -> str:
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE],
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            timeout=_PROBE_SECONDS,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return f"no frame within {_PROBE_SECONDS} s"
    for line in done.stdout.splitlines():
        if line.startswith("PROBE "):
            return line.removeprefix("PROBE ")
    return f"the test process ended with {done.returncode}"


def _explain(backend: str, text: str) -> str:
    """Names the missing library when the loader does not find it; else the error's own words."""
    import ctypes.util

    library = {"egl": "EGL", "osmesa": "OSMesa"}.get(backend)
    if "No module named" not in text and library and not ctypes.util.find_library(library):
        return f"lib{library} is missing"
    return text[:160]


def main() -> int:
    """Prints one line; 0 when a frame was rendered, 4 when not."""
    streams.settle()
    ok, reason = check()
    print(reason)
    return 0 if ok else 4


if __name__ == "__main__":
    sys.exit(main())
