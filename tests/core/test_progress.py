"""Progress where nobody watches."""

import pytest

from veorl_tf.core import progress as module
from veorl_tf.core.progress import duration, progress


def test_quiet_lines(capsys, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    with progress(1000, 400, "model") as bar:
        for _ in range(20):
            clock[0] += 5
            bar.update(10)
        bar.note("loss 3")
    lines = capsys.readouterr().err.splitlines()
    # 100 s in steps of 5: a line at 30, 60 and 90 s, the note, and one at the end.
    # 2 updates/s, since the 400 done earlier do not count.
    assert lines[0] == "model: 460/1000 updates, 2.00 updates/s, 4 min left"
    assert len(lines) == 5 and lines[3] == "loss 3"
    assert lines[4] == "model: 600/1000 updates, 2.00 updates/s, 3 min left"
    assert bar.rate == pytest.approx(2.0)


def test_slow_and_finished(capsys, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    with progress(2, desc="collect", unit="episodes") as bar:
        clock[0] = 40
        bar.update(2)
    assert capsys.readouterr().err.splitlines()[0] == "collect: 2/2 episodes, 20.0 s/episodes"
    with progress(5, 5):
        pass
    assert capsys.readouterr().err == ""


def test_bar_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with progress(10, 2, "model", "updates") as bar:
        bar.update(3)
        bar.note("a line")
    text = capsys.readouterr().err
    assert "a line" in text and "5/10" in text and "model" in text


@pytest.mark.parametrize(
    "seconds, text",
    [(0, "0 s"), (89, "89 s"), (100, "2 min"), (3599, "1 h 0 min"), (12000, "3 h 20 min")],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_a_message_goes_with_the_quiet_lines(capsys):
    with progress(4, 0, "model", "updates") as bar:
        bar.message("loss/image 12.5")
        bar.update(4)
    assert "model: 4/4 updates" in capsys.readouterr().err.split("|")[0]
    with progress(4, 0, "model", "updates") as bar:
        bar.update(2)
        bar.message("loss/image 12.5")
        bar.update(2)
    assert capsys.readouterr().err.endswith("| loss/image 12.5\n")
