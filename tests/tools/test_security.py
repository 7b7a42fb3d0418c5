"""What the code never does, looked up in the code itself. (ruff, in `make lint`, refuses eval,
exec, pickle, unsafe YAML and shells.)"""

import ast
import json
import pathlib
import zipfile

import numpy as np
import pytest

from veorl_tf.core import checkpoint
from veorl_tf.core.checkpoint import DamagedCheckpoint
from veorl_tf.data.episodes import DamagedEpisode, load_episode

ROOT = pathlib.Path(__file__).resolve().parents[2]
CODE = [ROOT / "train.py", *(ROOT / "envs").rglob("*.py"), *(ROOT / "veorl_tf").rglob("*.py")]
FORBIDDEN = {
    "eval": "runs text",
    "exec": "runs text",
    "compile": "makes code of text",
    "os.system": "a shell",
    "os.popen": "a shell",
    "pickle.load": "a pickle runs code",
    "pickle.loads": "a pickle runs code",
    "yaml.load": "may make any object",
    "marshal.loads": "makes code",
    "shelve.open": "pickles",
    "joblib.load": "pickles",
    "torch.load": "pickles",
    "tf.saved_model.load": "runs a stranger's graph",
    "tf.keras.models.load_model": "runs a stranger's code",
    "tarfile.open": "may write anywhere",
    "shutil.unpack_archive": "may write anywhere",
    "zipfile.ZipFile.extractall": "may write anywhere",
    "socket.create_server": "listens",
}
METHODS = {"listen", "bind", "extractall", "extract"}


def dotted(node) -> str:
    """'os.system' of the expression os.system; '' of others."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and dotted(node.value):
        return f"{dotted(node.value)}.{node.attr}"
    return ""


def calls():
    for path in CODE:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                yield path.relative_to(ROOT), node


def test_nothing_dangerous_is_called():
    found = [
        f"{path}:{node.lineno}: {dotted(node.func)} {FORBIDDEN[dotted(node.func)]}"
        for path, node in calls()
        if dotted(node.func) in FORBIDDEN
    ]
    found += [
        f"{path}:{node.lineno}: .{node.func.attr}()"
        for path, node in calls()
        if isinstance(node.func, ast.Attribute) and node.func.attr in METHODS
    ]
    assert not found


def test_arrays_are_loaded_without_pickles():
    loads = [(path, node) for path, node in calls() if dotted(node.func).endswith("np.load")]
    assert loads
    for path, node in loads:
        flags = {keyword.arg: keyword.value for keyword in node.keywords}
        assert isinstance(flags.get("allow_pickle"), ast.Constant), f"{path}:{node.lineno}"
        assert flags["allow_pickle"].value is False, f"{path}:{node.lineno}"


def test_no_shell_and_no_command_from_data():
    """No child process is a line of text."""
    runs = [
        (path, node)
        for path, node in calls()
        if dotted(node.func).startswith("subprocess.") and node.args
    ]
    assert runs
    for path, node in runs:
        text = isinstance(node.args[0], (ast.Constant, ast.JoinedStr, ast.BinOp))
        assert not text, f"{path}:{node.lineno}: no list of arguments"
        assert not any(keyword.arg == "shell" for keyword in node.keywords), f"{path}:{node.lineno}"


class Bomb:
    """What a pickle would run."""

    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path("exploded"),)


@pytest.mark.filterwarnings("ignore")
def test_a_pickle_in_an_episode_is_not_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image = np.zeros((3, 64, 64, 3), np.uint8)
    np.savez(tmp_path / "bad.npz", image=image, reward=np.array([Bomb()] * 3, object))
    with pytest.raises(DamagedEpisode):
        load_episode(tmp_path / "bad.npz", ("image", "reward"))
    assert not (tmp_path / "exploded").exists()


def test_a_checkpoint_of_somebody_else(tmp_path, monkeypatch):
    """A pickle within, with the right checksum, and a member whose name climbs out."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "checkpoints"
    checkpoint.save(folder, "update-0-000000001", {"w": np.ones(2, np.float32)}, {})
    archive, manifest = (folder / f"update-0-000000001.{end}" for end in ("npz", "json"))

    def reseal() -> None:
        from veorl_tf.core.files import sha256

        header = json.loads(manifest.read_text())
        header |= {"sha256": sha256(archive), "bytes": archive.stat().st_size}
        manifest.write_text(json.dumps(header))

    np.savez(archive, w=np.array([Bomb()], object))
    reseal()
    with pytest.raises(DamagedCheckpoint):
        checkpoint.load(folder, "update-0-000000001")
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("../../climbed.npy", b"no array")
    reseal()
    with pytest.raises(DamagedCheckpoint):
        checkpoint.load(folder, "update-0-000000001")
    assert not (tmp_path / "exploded").exists() and not list(tmp_path.rglob("climbed*"))
