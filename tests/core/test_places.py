"""What the operating system says of a place that the user named is one line, and no bug."""

import errno
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from veorl_tf.core.command import run_main
from veorl_tf.core.errors import MachineError, UserError
from veorl_tf.core.files import atomic_directory, atomic_write
from veorl_tf.core.lock import locked
from veorl_tf.core.places import expanded, explained, named_folder, new_folder
from veorl_tf.data.episodes import save_episode
from veorl_tf.data.synthetic import random_episode

ROOT = Path(__file__).parents[2]


@pytest.fixture
def broken(tmp_path) -> Path:
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("pool")
    (tmp_path / "pool").symlink_to("loop")
    (tmp_path / "file").touch()
    return tmp_path


# Places at which everybody fails, root too; code, and words of the line.
PLACES = [
    ("{}/dangling", 2, "dangling is a link that leads nowhere (nowhere)"),
    ("{}/dangling/x", 2, "dangling is a link that leads nowhere (nowhere)"),
    ("{}/loop", 2, "loop is a link that leads nowhere (pool)"),
    ("{}/file", 2, "File exists"),
    ("{}/file/x", 2, "Not a directory"),
    ("{}/" + 300 * "x", 2, "File name too long"),
    ("/proc/nothing/x", 2, "No such file or directory: /proc/nothing"),
    ("/proc/self/x", 2, "No such file or directory"),
    ("/sys", 4, ""),
    ("/sys/x", 4, ""),  # not permitted, or a read-only file system
]


@pytest.mark.parametrize("path, code, words", PLACES)
def test_broken_places(path, code, words, broken, capsys):
    """A file, a folder and a lock in each."""
    path = path.format(broken)

    def write(argv):
        with atomic_write(expanded("--place", path) / "file"):
            raise AssertionError("written")

    def build(argv):
        with atomic_directory(expanded("--place", path) / "folder"):
            raise AssertionError("built")

    def lock(argv):
        with locked(expanded("--place", path) / "lock", "tests"):
            raise AssertionError("locked")

    for command in (write, build, lock):
        assert run_main(command, []) == code
        line = capsys.readouterr().err
        assert line.startswith(f"error: --place {path}: ") and line.count("\n") == 1
        assert words in line and ".tmp" not in line, line


READ_ONLY = """
mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" || exit 9
exec "$2" -m veorl_tf inspect "$1" --sheet "$1/sheet.png"
"""


def test_a_read_only_disk(tmp_path):
    save_episode(tmp_path, random_episode(5, 0))
    unshare = [shutil.which("unshare") or "unshare", "-rm"]
    if subprocess.run([*unshare, "true"], capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    done = subprocess.run(
        [*unshare, "bash", "-c", READ_ONLY, "bash", str(tmp_path), sys.executable],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    line = f"error: --sheet {tmp_path}/sheet.png: Read-only file system\n"
    assert (done.returncode, done.stderr) == (4, line)


def test_only_named_places_are_the_users(tmp_path):
    missing = FileNotFoundError(errno.ENOENT, "No such file or directory", str(tmp_path / "a/b/c"))
    assert explained(missing) is None
    expanded("--deep", str(tmp_path / "a/b/c/d"))  # it leads there
    assert str(explained(missing)).startswith(f"--deep {tmp_path}/a/b/c/d: No such file")
    expanded("--near", str(tmp_path / "a"))
    assert str(explained(missing)).startswith(f"--near {tmp_path}/a: No such file")
    missing.filename = str(tmp_path / "aa")
    assert explained(missing) is None
    assert explained(OSError("of a library")) is None
    renamed = OSError(errno.EXDEV, "Invalid cross-device link", "/x", None, str(tmp_path / "a/x"))
    assert isinstance(explained(renamed), MachineError)
    assert isinstance(explained(OSError(errno.EIO, "Input/output error")), MachineError)


def test_a_folder_that_may_be_made(broken):
    for name, words in [
        ("dangling", "is a link that leads nowhere; name a new folder"),
        ("loop/x", "is a link that leads nowhere"),
        ("file/x", "file is a file; name a new folder"),
    ]:
        with pytest.raises(UserError, match=words):
            named_folder("OUT", str(broken / name))
    assert named_folder("OUT", str(broken)) == broken
    with pytest.raises(UserError, match="exists; name a new folder"):
        new_folder("OUT", str(broken / "dangling").replace("dangling", ""))


def test_a_name_as_long_as_names_may_be(tmp_path):
    """Temporary names, which hold the final one, do not exceed what the system takes."""
    name = 250 * "x"
    with atomic_write(tmp_path / name, "w") as file:
        file.write("text")
    with atomic_directory(tmp_path / f"{name}y") as folder:
        (folder / "file").touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == [name, f"{name}y"]


def limited(code: str, path: Path, size: int) -> str:
    """What a program prints whose files may have `size` bytes."""
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    return subprocess.run(
        [sys.executable, "-c", code, str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=limit,
    ).stderr


LIMITED = """
import sys
import numpy as np
from veorl_tf.core.command import run_main
from veorl_tf.core.lock import locked
from veorl_tf.core.media import write_png
from veorl_tf.core.metrics import Logger
from veorl_tf.core.places import expanded
out = expanded("OUT", sys.argv[1])
def lock(argv):
    with locked(out / "lock", "tests"): pass
def picture(argv):
    write_png(out / "picture.png", np.zeros((99, 99, 3), np.uint8))
def log(argv):
    with Logger(out / "log") as logger: logger.scalars(1, {"loss/total": 1.0})
sys.exit(sum(run_main(command, []) for command in (lock, picture, log)))
"""


def test_a_limit_of_the_size_of_files(tmp_path):
    """Each is named in its line: what could not be written fails again when it is closed."""
    for size, names in [(0, ["lock", "picture.png", "log/"]), (40, ["picture.png", "log/"])]:
        lines = limited(LIMITED, tmp_path, size).splitlines()
        for line, name in zip(lines, names, strict=True):
            assert line.startswith(f"error: OUT {tmp_path}: File too large: {tmp_path}/{name}")


HOMELESS = """
import os, pwd, sys
import veorl_tf.core.interrupt
from veorl_tf.core.command import run_main
from veorl_tf.core.places import expanded
if "HOME" not in os.environ:
    os.setuid(54321)
sys.exit(run_main(lambda argv: expanded("--logdir", "~/x") and None, []))
"""


@pytest.mark.parametrize("home", [None, "", "relative"])
def test_a_user_without_a_home(home):
    """Nobody's number is in no list of users, where this test may become nobody."""
    if home is None and os.getuid():
        pytest.skip("only root can become a user that is in no list")
    environ = {key: value for key, value in os.environ.items() if key != "HOME"}
    done = subprocess.run(
        [sys.executable, "-c", HOMELESS],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=environ if home is None else environ | {"HOME": home},
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: --logdir ~/x: HOME does not name this user's home; set")


GONE = """
import os, sys
from veorl_tf.core.command import run_main
from veorl_tf.core.places import expanded
os.mkdir(sys.argv[1])
os.chdir(sys.argv[1])
os.rmdir(sys.argv[1])
run_main(lambda argv: expanded("--logdir", "run") and None, [])
"""


def test_a_current_folder_that_is_gone(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", GONE, str(tmp_path / "gone")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.stderr == "error: the current folder: No such file or directory\n"
