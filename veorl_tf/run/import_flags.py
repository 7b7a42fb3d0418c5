"""The flags of an import, which `inspect` and training (`imports.*`) have, too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from veorl_tf.core.errors import UserError
from veorl_tf.data.importers.base import Options
from veorl_tf.data.importers.pictures import Fit

IMPORT = {
    "format": "auto",
    **asdict(Options()),
    "strict": False,
    "workers": 0,
    "timeout": 600.0,
}
IMPORT_HELP = {
    "format": "of the source; auto: detected",
    "size": "pixels of the episodes' pictures, square",
    "fit": "crop (the middle) | letterbox | stretch | x,y,width,height (a fixed box)",
    "mirror": "swap left and right",
    "flip": "swap top and bottom",
    "fps": "frames per second of clips; 0: as they are",
    "clip": "frames per clip, at most",
    "shortest": "frames per clip or episode, at least; shorter ones are left out",
    "cut": "change of a picture, as a share of its range, that ends a clip; 0: none",
    "still": "change of a picture below which it counts as still; still stretches are left out",
    "camera": "nuscenes: channel (CAM_FRONT); bridge: folder (images0)",
    "split": "nuscenes: folder of tables, where there are several",
    "image_key": "name of the pictures, where the data have several",
    "action_key": "name of the actions",
    "reward_key": "name of the rewards",
    "strict": "stop at the first thing that cannot be imported",
    "workers": "processes; 0: one per core",
    "timeout": "seconds after which an item that gives no result is left out",
}
RANGES = {
    "size": (1, 1024),
    "fps": (0, 1000),
    "clip": (2, 100_000),
    "shortest": (2, 100_000),
    "cut": (0, 1),
    "still": (0, 1),
}


def options_of(flags: Mapping[str, Any], prefix: str = "") -> Options:
    """The import's options among a command's flags, which begin with `prefix`. Raises UserError."""
    options = Options(**{key: flags[key] for key in asdict(Options())})
    for key, (lowest, highest) in RANGES.items():
        if not lowest <= getattr(options, key) <= highest:
            raise UserError(f"--{prefix}{key} {getattr(options, key)}: {lowest} to {highest}")
    if options.shortest > options.clip:
        raise UserError(
            f"--{prefix}shortest {options.shortest} is more than --{prefix}clip {options.clip}: "
            f"nothing would stay"
        )
    Fit(options)
    return options
