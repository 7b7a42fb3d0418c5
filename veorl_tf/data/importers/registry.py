"""Formats by name, in the order in which a source is tried."""

from __future__ import annotations

from pathlib import Path

from veorl_tf.core.errors import UserError
from veorl_tf.data.importers.base import Reader, one_of


def formats() -> dict[str, Reader]:
    """All readers by name: those that recognise a layout before those that take any picture."""
    from veorl_tf.data.importers.lerobot import LeRobot
    from veorl_tf.data.importers.minari import Minari
    from veorl_tf.data.importers.npz import DreamerV3Replay, Episodes
    from veorl_tf.data.importers.rlds import RLDS
    from veorl_tf.data.importers.sequences import BridgeData, ImageFolders, NuScenes
    from veorl_tf.data.importers.vd4rl import VD4RL
    from veorl_tf.data.importers.video import ClipList, Videos

    readers = (
        LeRobot(),
        NuScenes(),
        Minari(),
        RLDS(),
        VD4RL(),
        DreamerV3Replay(),
        Episodes(),
        BridgeData(),
        ClipList(),
        Videos(),
        ImageFolders(),
    )
    return {reader.name: reader for reader in readers}


def find(source: Path, name: str = "auto") -> Reader:
    """The reader of that name, or the first that recognises the source. Raises UserError."""
    known = formats()
    if not source.exists():
        raise UserError(f"{source}: no such file or folder")
    if name != "auto":
        one_of("format", name, ("auto", *known))
        return known[name]
    for reader in known.values():
        if reader.detect(source):
            return reader
    raise UserError(
        f"{source}: none of the known formats ({', '.join(known)}); name one with --format"
    )
