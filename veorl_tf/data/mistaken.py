"""What a file is that should hold data and does not: told by its first bytes, once reading failed.

Nobody reads by these signs; they turn "damaged" into what happened, and what to do.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

HEAD = 1024  # bytes that are looked at
UNPACK = "; unpack it first"
EMPTY, MISSING = "empty file", "no such file"
SIGNS = {  # what begins so
    rb"version https://git-lfs\.github\.com/spec/": (
        "a Git LFS pointer: fetch the file with `git lfs pull`"
    ),
    rb"\.?\.?/?(\.\./)*(\.git)?/annex/objects/": (
        "a git-annex pointer: fetch the file with `git annex get`"
    ),
    rb"(\xef\xbb\xbf)?\s*<(!doctype html|html|head|body)\b": (
        "an HTML page saved as data: what its address gave was no file; download it anew"
    ),
    rb"(\xef\xbb\xbf)?\s*<(\?xml|error)\b": (
        "an XML text saved as data, as servers tell errors; download it anew"
    ),
    rb"\x1f\x8b\x08": f"gzip-compressed{UNPACK}",
    rb"PK(\x03\x04|\x05\x06)": f"a zip archive{UNPACK}",
    rb"BZh[1-9]1AY&SY": f"bzip2-compressed{UNPACK}",
    rb"\xfd7zXZ\x00": f"xz-compressed{UNPACK}",
    rb"\x28\xb5\x2f\xfd": f"zstd-compressed{UNPACK}",
    rb"7z\xbc\xaf\x27\x1c": f"a 7z archive{UNPACK}",
    rb"Rar!\x1a\x07": f"a RAR archive{UNPACK}",
    rb".{257}ustar": f"a tar archive{UNPACK}",
}
# Names of files which are so by their format's own rules: there it is no cause of anything.
TFRECORD = re.compile(r".*\.tfrecords?(-\d+-of-\d+)?(\.gz)?")
OWN = {"gzip-compressed": TFRECORD, "a zip archive": re.compile(r".*\.npz")}


def no_file(path: Path) -> str | None:
    """Why there is no file to open under a name, and what to do; None for a regular file."""
    if os.path.isfile(path):
        return None
    if os.path.exists(path):
        return "no regular file"
    if not os.path.islink(path):
        return MISSING
    if "annex/objects" in os.readlink(path):
        return "a git-annex link to what is not here: fetch the file with `git annex get`"
    return "a link that leads nowhere"


def mistaken(path: Path) -> str | None:
    """What a file is instead of data, and what to do; None where its head does not tell."""
    if no_file(path):  # a pipe would be waited for
        return None
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD)
    except OSError:
        return None
    if not head:
        return EMPTY
    for sign, what in SIGNS.items():
        if re.match(sign, head, re.IGNORECASE | re.DOTALL):
            own = OWN.get(what.removesuffix(UNPACK))
            return None if own and own.fullmatch(path.name) else what
    return None
