"""Signals become a flag; the second one leaves at once."""

import os
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from types import FunctionType

import pytest

from veorl_tf.core.errors import Interrupted
from veorl_tf.core.interrupt import StopRequest


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_is_a_flag(number, capfd):
    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as caught:
        with StopRequest() as stop:
            stop.raise_if_requested()
            assert not stop.requested and stop.signum is None
            os.kill(os.getpid(), number)
            assert stop.requested and stop.signum == number
            stop.raise_if_requested()
            raise AssertionError("not raised")
    assert caught.value.exit_code == 128 + number
    assert signal.getsignal(number) is before
    assert "stopping after this step" in capfd.readouterr().err


def test_a_request_of_another_process():
    """It stops this one as SIGTERM would, and a signal that follows is still a first one."""
    with pytest.raises(Interrupted) as last:
        with StopRequest() as stop:
            stop.request()
            assert stop.requested
            with pytest.raises(Interrupted) as caught:
                stop.raise_if_requested()
            assert caught.value.exit_code == 143
            os.kill(os.getpid(), signal.SIGINT)
            stop.raise_if_requested()
    assert last.value.exit_code == 130


def test_a_signal_after_the_last_look_is_not_lost():
    with pytest.raises(Interrupted):
        with StopRequest():
            os.kill(os.getpid(), signal.SIGTERM)


def test_at_once():
    """Where nothing is at stake the signal is an exception; afterwards it is a flag again."""
    with pytest.raises(Interrupted):
        with StopRequest(at_once=True):
            os.kill(os.getpid(), signal.SIGINT)
            raise AssertionError("too late")
    reached = []
    with pytest.raises(Interrupted):
        with StopRequest() as stop:
            with pytest.raises(Interrupted):
                with stop.immediate():
                    os.kill(os.getpid(), signal.SIGINT)
                    raise AssertionError("too late")
            assert stop.requested and not stop.at_once
            reached.append("what has to be saved")
            with pytest.raises(Interrupted):
                with stop.immediate():
                    raise AssertionError("asked before")
    assert reached


def test_no_exception_handler_of_a_library_swallows_it():
    with pytest.raises(Interrupted):
        with StopRequest(at_once=True):
            try:
                os.kill(os.getpid(), signal.SIGINT)
            except Exception:
                raise AssertionError("swallowed") from None


def moved(function, module: str, folder: str):
    """The function, as if it stood in a module of that name in that folder."""
    code = function.__code__.replace(co_filename=f"/python/{folder}/x.py")
    return FunctionType(code, {**globals(), "__name__": module})


def call(g):
    g()


def kill(g):
    os.kill(os.getpid(), signal.SIGINT)
    g()


@pytest.fixture
def library():
    """`library(g)`: a signal comes while an installed package runs, which then calls g."""
    calls = moved(call, "tensorflow.python.nest", "site-packages")
    kills = moved(kill, "importlib._bootstrap", "lib")
    return lambda g: calls(partial(kills, g))


def test_nothing_is_raised_in_a_library(library):
    """TensorFlow's C++ calls Python, and takes what that raises for an error of its own."""
    reached = []
    with pytest.raises(Interrupted) as caught:
        with StopRequest(at_once=True):
            try:
                library(partial(reached.append, "library"))
                reached.append("after it")
            finally:
                reached.append("cleaned")
    assert reached == ["library", "cleaned"] and caught.value.exit_code == 130
    assert sys.getprofile() is None


def test_a_library_that_calls_back(library):
    """A traced function of ours ends the tracing."""
    reached = []
    with pytest.raises(Interrupted):
        with StopRequest(at_once=True):
            library(lambda: reached.append("ours"))
    assert not reached


def test_who_profiles_goes_on():
    profile = lambda *_: None
    sys.setprofile(profile)
    try:
        with StopRequest(at_once=True):
            pass
        assert sys.getprofile() is profile
    finally:
        sys.setprofile(None)


def test_handlers_come_back_after_an_exception():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(RuntimeError):
        with StopRequest():
            raise RuntimeError
    assert signal.getsignal(signal.SIGINT) is before


def test_the_second_signal_leaves_at_once():
    code = (
        "import os, signal, time\n"
        "from veorl_tf.core.interrupt import StopRequest\n"
        "with StopRequest():\n"
        "    os.kill(os.getpid(), signal.SIGINT); os.kill(os.getpid(), signal.SIGINT)\n"
        "    time.sleep(60)"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=Path(__file__).parents[2],
            capture_output=True,
            timeout=30,
        ).returncode
        == 130
    )


@pytest.mark.parametrize(
    "numbers, code",
    [("HUP HUP", 129), ("TERM HUP", 143), ("HUP TERM", 143), ("HUP TERM INT", 130)],
)
def test_a_terminal_that_closes_hurries_nobody(numbers, code):
    """It sends several SIGHUP, and whoever closes it sends others: what there is is saved, unless
    somebody asks twice."""
    program = (
        "import os, signal, sys\n"
        "from veorl_tf.core.command import run_main\n"
        "from veorl_tf.core.interrupt import StopRequest\n"
        "def command(argv):\n"
        "    with StopRequest() as stop:\n"
        "        for name in argv: os.kill(os.getpid(), signal.Signals['SIG' + name])\n"
        "        print('saved', flush=True)\n"
        "sys.exit(run_main(command, sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *numbers.split()],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == code
    assert done.stdout == ("" if numbers.endswith("INT") else "saved\n")


def test_nohup():
    """A SIGHUP that is ignored from the start stays so; that is asked for."""
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest(at_once=True) as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.requested
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, former)


def test_harmless_in_other_threads():
    seen = []

    def work():
        with StopRequest() as stop:
            seen.append(stop.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]
