"""Signals become a flag; the second one leaves at once."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from veorl_tf.core.errors import Interrupted
from veorl_tf.core.interrupt import StopRequest


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_a_flag(number, capfd):
    before = signal.getsignal(number)
    with StopRequest() as stop:
        stop.raise_if_requested()
        assert not stop.requested and stop.signum is None
        os.kill(os.getpid(), number)
        assert stop.requested and stop.signum == number
        with pytest.raises(Interrupted) as caught:
            stop.raise_if_requested()
        assert caught.value.exit_code == 128 + number
    assert signal.getsignal(number) is before
    assert "stopping after this step" in capfd.readouterr().err


def test_a_request_of_another_process():
    """It stops this one as SIGTERM would, and a signal that follows is still a first one."""
    with StopRequest() as stop:
        stop.request()
        assert stop.requested
        with pytest.raises(Interrupted) as caught:
            stop.raise_if_requested()
        assert caught.value.exit_code == 143
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(Interrupted) as caught:
            stop.raise_if_requested()
        assert caught.value.exit_code == 130


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


def test_harmless_in_other_threads():
    seen = []

    def work():
        with StopRequest() as stop:
            seen.append(stop.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]
