"""The command line: `--configs a b c --any.nested.key value`, typed by the configuration."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from veorl_tf.core.config import Config, resolve
from veorl_tf.core.errors import UserError
from veorl_tf.core.values import NOTHING, show

_NUMBER = re.compile(r"-(\d|\.\d|inf)")


@dataclass(frozen=True)
class Flags:
    """What a command line says, before any type is known."""

    positional: tuple[str, ...]  # arguments before the first flag, and after `--`
    configs: tuple[str, ...]  # blocks named by --configs
    overrides: tuple[tuple[str, Any], ...]  # (key, text or NOTHING) in the order given
    help: bool


@dataclass(frozen=True)
class Request:
    """A command line resolved against the blocks."""

    config: Config
    names: tuple[str, ...]  # blocks in the order they were stacked
    overrides: tuple[tuple[str, Any], ...]
    given: Mapping[str, str]  # positional arguments by name


def split_flags(argv: Sequence[str]) -> Flags:
    """Sort the arguments: positional ones first, then `--key value`, `--key=value`, `--configs a b
    c`, `--help`; after `--` positional ones again, whatever they begin with.

    The value of a flag without one is NOTHING, which means something to switches alone. A negative
    number is a value; text that begins with two dashes must be written `--key=--text`.
    """
    positional, configs, overrides, wants_help = [], [], [], False
    rest = list(argv)
    end = rest.index("--") if "--" in rest else len(rest)
    rest, last = rest[:end], rest[end + 1 :]
    while rest and (not rest[0].startswith("-") or _NUMBER.match(rest[0])):
        positional.append(rest.pop(0))
    while rest:
        flag = rest.pop(0)
        if flag in ("-h", "--help"):
            wants_help = True
            continue
        if not flag.startswith("--"):
            raise UserError(f"unexpected argument {flag!r}; settings are written --key value")
        key, equals, value = flag[2:].partition("=")
        values = [value] if equals else []
        while not equals and rest and (not rest[0].startswith("-") or _NUMBER.match(rest[0])):
            if values and key != "configs":
                break
            values.append(rest.pop(0))
        if key == "configs":
            configs += [name for value in values for name in value.split(",") if name]
        else:
            overrides.append((key, values[0] if values else NOTHING))
    return Flags((*positional, *last), tuple(configs), tuple(overrides), wants_help)


def parse_flags(
    argv: Sequence[str],
    blocks: Mapping[str, Mapping[str, Any]],
    comments: Mapping[str, str],
    usage: str = "python train.py --configs BLOCK [BLOCK ...] [--key value ...]",
    positional: Sequence[str] = (),
) -> Request:
    """Resolve a command line with `--configs`.

    Args:
        positional: names of the arguments that must be given.
    Raises:
        UserError: no --configs, an unknown block or key, a value of the wrong type, a stray
            argument.
        SystemExit: with code 0 after `--help` was printed.
    """
    flags = split_flags(argv)
    if flags.help:
        print(help_text(blocks, comments, usage))
        raise SystemExit(0)
    given = _given(flags, positional, usage)
    names = [name for name in blocks if name != "defaults"]
    if not flags.configs:
        raise UserError(f"--configs is missing: name the blocks to stack, of: {', '.join(names)}")
    config = resolve(blocks, flags.configs, flags.overrides)
    return Request(config, flags.configs, flags.overrides, given)


def parse_options(
    argv: Sequence[str],
    defaults: Config,
    comments: Mapping[str, str],
    usage: str,
    positional: Sequence[str] = (),
) -> tuple[dict[str, str], Config]:
    """The command line of a subcommand: `evaluate LOGDIR --episodes 20`.

    Args:
        defaults: every key that the command knows, with its default.
        positional: names of the arguments that must be given.
    Returns:
        ({name: argument}, configuration). Raises as `parse_flags` does.
    """
    flags = split_flags(argv)
    if flags.help:
        print(help_text({"defaults": defaults.to_dict()}, comments, usage))
        raise SystemExit(0)
    given = _given(flags, positional, usage)
    if flags.configs:
        raise UserError(
            "--configs means nothing to this command: the blocks were chosen when the run began"
        )
    return given, defaults.update(flags.overrides, "flag --")


def _given(flags: Flags, names: Sequence[str], usage: str) -> dict[str, str]:
    """The positional arguments by name. Raises UserError unless they are as many."""
    found = len(flags.positional)
    if found < len(names):
        raise UserError(f"{names[found]} is missing; usage: {usage}")
    if found > len(names):
        raise UserError(f"unexpected argument {flags.positional[len(names)]!r}; usage: {usage}")
    return dict(zip(names, flags.positional, strict=True))


def help_text(
    blocks: Mapping[str, Mapping[str, Any]], comments: Mapping[str, str], usage: str
) -> str:
    """Usage, all blocks, and all keys with default and comment, wrapped to the terminal."""
    width = max(72, min(shutil.get_terminal_size((100, 24)).columns, 120))
    lines = [f"usage: {usage}", ""]
    names = [name for name in blocks if name != "defaults"]
    if names:
        lines.append("Blocks for --configs, stacked in the order given:")
        lines += _table([(name, comments.get(f"block:{name}", "")) for name in names], width)
        lines.append("")
    lines.append("Keys, with their defaults:")
    flat = Config(blocks["defaults"]).flat
    lines += _table(
        [(f"--{key} {show(value)}", comments.get(key, "")) for key, value in flat.items()], width
    )
    lines += [
        "",
        *textwrap.wrap(
            "Lists are separated by commas. A key with a character outside [A-Za-z0-9_.-] is a "
            "regular expression over whole keys and may reach many: --stages.*.updates 5",
            width,
        ),
    ]
    return "\n".join(lines)


def _table(rows: Sequence[tuple[str, str]], width: int) -> list[str]:
    """Two columns; a left entry that is too wide gets a line of its own."""
    left = min(max(len(a) for a, _ in rows), 38) + 4
    lines = []
    for name, text in rows:
        wrapped = textwrap.wrap(text, width - left) or [""]
        if len(name) + 4 > left:
            lines.append(f"  {name}")
            name = ""
        lines.append(f"  {name:<{left - 2}}{wrapped[0]}".rstrip())
        lines += [f"{'':<{left}}{line}" for line in wrapped[1:]]
    return lines
