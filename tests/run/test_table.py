"""The results table: its numbers, its text, and that it goes on where it stopped."""

import json
import math
import os
import signal
import sys
import threading
import time

import pytest

from veorl_tf.core.errors import Interrupted, UserError
from veorl_tf.run import table


def scores(wins: int, episodes: int, **more) -> dict:
    return {"success": wins / episodes, "episodes": episodes, "return": 100.4, **more}


def row(agent: str, seed: int, wins: int, task: str = "metaworld_door_close") -> dict:
    return {
        "task": task,
        "agent": agent,
        "seed": seed,
        "training_seconds": 1234,
        "policy": scores(wins, 20, return_error=8.6),
        "random": scores(1, 100),
        "dataset": scores(66, 100),
        "revision": "abc123",
        "machine": "2 cores of X, Linux",
        "date": "2026-01-02",
    }


def hypergeometric(won: int, of: int, other_won: int, other_of: int) -> float:
    """P(at least `won` of `of` wins | margins), by counting."""
    wins, total = won + other_won, of + other_of
    ways = lambda k: math.comb(wins, k) * math.comb(total - wins, of - k)
    return sum(ways(k) for k in range(won, min(wins, of) + 1)) / math.comb(total, of)


@pytest.mark.parametrize("counts", [(3, 3, 0, 3), (1, 20, 1, 100), (14, 20, 3, 100), (0, 5, 0, 9)])
def test_fisher_counts_all_tables(counts):
    won, of, other_won, other_of = counts
    p = table.fisher(scores(won, of), scores(other_won, other_of))
    assert p == pytest.approx(hypergeometric(*counts))


def test_fisher_by_hand():
    # 3 of 3 against 0 of 3: one table of the 20 that have three wins.
    assert table.fisher(scores(3, 3), scores(0, 3)) == pytest.approx(1 / 20)
    # The bar: 20 episodes against 100 of random without a win.
    assert (
        table.fisher(scores(4, 20), scores(0, 100))
        < 0.001
        < table.fisher(scores(3, 20), scores(0, 100))
    )


def test_render_lines():
    text = table.render(
        [
            row("dreamerv2", 0, 2),
            row("veorl", 0, 19),
            row("veorl", 1, 20),
            row("veorl", 0, 3, "metaworld_reach") | {"algorithm": "veorl_dv3"},
        ]
    )
    assert "| metaworld_reach | veorl_dv3 | 0 |" in text
    lines = text.splitlines()
    assert len(lines) == 2 + (2 + 3) + (2 + 1)
    assert {line.count("|") for line in lines} == {10}
    source = "`abc123` | 2 cores of X, Linux, 2026-01-02 |"
    task = "| metaworld_door_close |"
    assert lines[2] == f"{task} random | | 0.01 (1/100) | 100 | | | {source}"
    assert lines[3] == f"{task} dataset | | 0.66 (66/100) | 100 | | | {source}"
    p = hypergeometric(19, 20, 1, 100)
    assert lines[5] == (f"{task} veorl | 0 | 0.95 (19/20) | 100 ± 9 | {p:.1e} | 21 min | {source}")
    assert lines[7].startswith("| metaworld_reach | random ")


def test_insert_between_the_marks(tmp_path):
    begin, end = table.MARKS
    path = tmp_path / "README.md"
    path.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    for text in ("| new |", "| newer |"):
        table.insert(path, text)
        assert path.read_text() == f"before\n{begin}\n{text}\n{end}\nafter\n"
    for untouched in ("no marks\n", f"only one {begin}\n", f"only one {end}\n"):
        path.write_text(untouched)
        table.insert(path, "| new |")
        assert path.read_text() == untouched
    table.insert(tmp_path / "missing.md", "| new |")
    assert not (tmp_path / "missing.md").exists()


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project of its own whose `train.py` notes how it was called and writes a result."""
    (tmp_path / "train.py").write_text(
        "import json, pathlib, sys\n"
        "flags = dict(zip(sys.argv[1:], sys.argv[2:]))\n"
        "logdir = pathlib.Path(flags['--logdir'])\n"
        "logdir.mkdir(parents=True)\n"
        "with open('calls', 'a') as file: file.write(logdir.name + '\\n')\n"
        "bad, code = pathlib.Path('bad').read_text().split()\n"
        "if logdir.name.endswith(bad): sys.exit(int(code))\n"
        f"row = json.loads('''{json.dumps(row('', 0, 9))}''')\n"
        "row |= {'task': flags['--task'], 'agent': sys.argv[3], 'seed': int(flags['--seed'])}\n"
        "(logdir / 'result.json').write_text(json.dumps(row))\n"
    )
    (tmp_path / "bad").write_text("nothing 0")
    (tmp_path / "README.md").write_text("\n".join(table.MARKS))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(table, "ROOT", tmp_path)
    return tmp_path


def test_only_what_is_missing_is_run(project, capsys):
    argv = ["--tasks", "metaworld_reach", "--agents", "veorl,dreamerv2", "--seeds", "0,1"]
    done = project / "results" / "small-metaworld_reach-veorl-0.json"
    done.parent.mkdir()
    done.write_text(json.dumps(row("veorl", 0, 20, "metaworld_reach")))
    assert table.table(argv) == 0
    names = (project / "calls").read_text().split()
    assert names == [
        f"small-metaworld_reach-{cell}" for cell in ("dreamerv2-0", "veorl-1", "dreamerv2-1")
    ]
    kept = json.loads((project / "results" / f"{names[0]}.json").read_text())
    assert kept["budget"] == "small" and kept["algorithm"] == kept["agent"] == "dreamerv2"
    lines = (project / "README.md").read_text().splitlines()
    assert [lines[0], lines[-1]] == list(table.MARKS)
    assert "\n".join(lines[1:-1]) in capsys.readouterr().out
    assert sum(line.startswith("| metaworld_reach | veorl |") for line in lines) == 2
    assert any("(20/20)" in line for line in lines)
    assert table.table(argv) == 0
    assert len((project / "calls").read_text().split()) == 3


def test_a_failed_cell_stops_the_table(project, refused):
    (project / "bad").write_text("dreamerv2-0 4")
    line = refused(
        table.table, ["--tasks", "metaworld_reach", "--agents", "veorl,dreamerv2"], code=4
    )
    assert "small-metaworld_reach-dreamerv2-0" in line and "exit code 4" in line
    assert [p.name for p in (project / "results").iterdir()] == [
        "small-metaworld_reach-veorl-0.json"
    ]


def test_without_results(project):
    with pytest.raises(UserError, match="no results yet"):
        table.table(["--train", "false"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_child_gets_the_time_to_save(number, tmp_path):
    code = (
        "import pathlib, signal, sys, time\n"
        "def save(*_):\n"
        f"    time.sleep(0.3); pathlib.Path({str(tmp_path / 'saved')!r}).touch()\n"
        f"    sys.exit({128 + number})\n"
        f"signal.signal({int(number)}, save)\n"
        f"pathlib.Path({str(tmp_path / 'ready')!r}).touch()\n"
        "time.sleep(60)\n"
    )

    def stop() -> None:
        while not (tmp_path / "ready").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    threading.Thread(target=stop).start()
    with pytest.raises(Interrupted) as caught:
        table.wait_for([sys.executable, "-c", code])
    assert caught.value.exit_code == 128 + number
    assert (tmp_path / "saved").exists()


def test_interrupted_training_interrupts_the_table(project):
    (project / "bad").write_text("veorl-0 130")
    with pytest.raises(Interrupted) as caught:
        table.table(["--tasks", "metaworld_reach"])
    assert caught.value.exit_code == 130
