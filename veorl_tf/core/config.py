"""Configuration: an immutable nested mapping, and blocks of settings stacked over defaults.

`configs.yaml` holds blocks. The block `defaults` names every key there is, with one trailing
comment each; the other blocks override some. A key of a block or of the command line may be dotted
('rssm.deter'), and a key with a character outside [A-Za-z0-9_.-] is a regular expression that is
matched against whole dotted keys. Every value is checked against the type of its default. Nothing
is ever evaluated as code.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from veorl_tf.core.errors import UserError, nearest, one_line
from veorl_tf.core.values import Value, convert

Overrides = Mapping[str, Any] | Iterable[tuple[str, Any]]

_PLAIN_KEY = re.compile(r"[A-Za-z0-9_.-]+")


class Config(Mapping):
    """Immutable nested mapping whose keys are also attributes: `config.rssm.deter`,
    `config['rssm.deter']`.

    Leaves are bool, int, float, str or tuples of one of these. A key that hides a method raises
    ValueError.
    """

    __slots__ = ("_data",)

    def __init__(self, mapping: Mapping[str, Any]):
        data = {}
        for key, value in _flatten(mapping):
            *groups, leaf = key.split(".")
            node = data
            for group in groups:
                node = node.setdefault(group, {})
                if not isinstance(node, dict):
                    raise ValueError(f"key {key!r}: {group!r} is a value, not a group")
            if leaf in node:
                raise ValueError(f"key {key!r} appears twice")
            node[leaf] = value
        object.__setattr__(self, "_data", {key: _freeze(key, value) for key, value in data.items()})

    def __getitem__(self, key: str) -> Any:
        node = self
        for part in key.split("."):
            if not isinstance(node, Config):
                raise KeyError(key)
            node = node._data[part]
        return node

    def __iter__(self) -> Iterator[str]:
        return iter(self._data)

    def __len__(self) -> int:
        return len(self._data)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        try:
            return self._data[name]
        except KeyError:
            raise AttributeError(
                f"no key {name!r} in the configuration{nearest(name, self._data)}"
            ) from None

    def __setattr__(self, name: str, value: Any) -> None:
        raise TypeError("a Config never changes; update() returns a new one")

    def __delattr__(self, name: str) -> None:
        self.__setattr__(name, None)

    def __hash__(self) -> int:
        return hash(tuple(self.flat.items()))

    def __reduce__(self) -> tuple:
        return Config, (self.to_dict(),)

    def __repr__(self) -> str:
        return f"Config({self.flat})"

    @property
    def flat(self) -> dict[str, Value]:
        """All leaves under their dotted keys, in the order of the defaults."""
        return dict(_flatten(self))

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dictionaries and lists."""
        return {
            k: v.to_dict() if isinstance(v, Config) else list(v) if isinstance(v, tuple) else v
            for k, v in self._data.items()
        }

    def update(self, overrides: Overrides, where: str = "override") -> Config:
        """A new configuration with some values replaced, later entries winning.

        Args:
            overrides: {key or regular expression: value} or pairs of them; nested mappings are
                allowed.
            where: put before the key in error messages, e.g. 'flag --' or 'block small, key'.
        Raises:
            UserError: unknown key, expression that reaches no key, or value of the wrong type.
        """
        flat = self.flat
        for key, value in _flatten(overrides):
            for reached in _reach(key, flat, where):
                flat[reached] = convert(value, self[reached], _label(where, key))
        return Config(flat)

    def to_yaml(self) -> str:
        """YAML text that `from_yaml` turns back into an equal configuration."""
        from io import StringIO

        stream = StringIO()
        yaml = _yaml()
        yaml.default_flow_style = False
        yaml.sort_base_mapping_type_on_output = False
        yaml.dump(self.to_dict(), stream)
        return stream.getvalue()

    @classmethod
    def from_yaml(cls, text: str, where: str = "configuration") -> Config:
        """Read `to_yaml`'s text. Raises UserError naming `where` when it is none."""
        data = _parse(text, where)
        try:
            return cls(data)
        except ValueError as error:
            raise UserError(f"{where}: {error}") from None


def load_blocks(path: str | Path) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Read a file of blocks.

    Returns:
        blocks: {block: {key: value}}, with the block `defaults` first.
        comments: the trailing comments: of a default under its dotted key, of a group under its
            dotted name, of a block under 'block:NAME'.
    Raises:
        UserError: no such file, no YAML, a key twice, no `defaults` block, or a default without a
            type.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    blocks = _parse(text, str(path))
    for name, block in blocks.items():
        if not isinstance(block, Mapping):
            raise UserError(
                f"{path}: block {name!r} is {block!r}; a mapping of keys to values expected"
            )
    if "defaults" not in blocks:
        raise UserError(f"{path}: block `defaults` is missing")
    try:
        flat = Config(blocks["defaults"]).flat
    except ValueError as error:
        raise UserError(f"{path}: block `defaults`: {error}") from None
    for key, value in flat.items():
        if isinstance(value, str) and value.lower() in ("yes", "no", "on", "off"):
            # YAML 1.2 reads these as text, and the key would silently become one.
            raise UserError(
                f"{path}: block `defaults`, key {key!r}: write true or false instead of {value!r}"
            )
    return {"defaults": blocks.pop("defaults"), **blocks}, _comments(text)


def resolve(
    blocks: Mapping[str, Mapping[str, Any]], names: Iterable[str], overrides: Overrides = ()
) -> Config:
    """Stack blocks over the defaults in the order given, then the command line's overrides.

    Raises UserError for an unknown block or key, or a value of the wrong type, saying which block
    or flag.
    """
    config = Config(blocks["defaults"])
    for name in names:
        if name not in blocks or name == "defaults":
            valid = [b for b in blocks if b != "defaults"]
            raise UserError(
                f"unknown block {name!r}{nearest(name, valid) or ';'} "
                f"the blocks are: {', '.join(valid)}"
            )
        config = config.update(blocks[name], f"block {name}, key")
    return config.update(overrides, "flag --")


def _freeze(key: str, value: Any) -> Any:
    if not re.fullmatch(r"[A-Za-z0-9_-]+", key):
        raise ValueError(f'{key!r} is no name: letters, digits, "_" and "-" only')
    if hasattr(Config, key):
        raise ValueError(f"{key!r} cannot be a key: it is a method of the configuration")
    if isinstance(value, dict):
        return Config(value)
    if isinstance(value, (list, tuple)):
        if any(not isinstance(v, (bool, int, float, str)) for v in value):
            raise ValueError(f"{key!r} is {value!r}; a list holds true/false, numbers or text")
        return tuple(value)
    if not isinstance(value, (bool, int, float, str)):
        raise ValueError(
            f"{key!r} is {value!r}; true/false, a number, text or a list expected ('' for none)"
        )
    # Subclasses that a YAML reader may hand out become the plain types that `convert` looks up.
    return next(kind(value) for kind in (bool, int, float, str) if isinstance(value, kind))


def _flatten(entries: Overrides, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Pairs (dotted key, leaf). Below a plain prefix a regular expression stays one."""
    for key, value in entries.items() if isinstance(entries, Mapping) else entries:
        key = str(key)
        if prefix:
            key = (
                f"{prefix}.{key}"
                if _PLAIN_KEY.fullmatch(prefix + key)
                else f"{_pattern(prefix)}\\.{_pattern(key)}"
            )
        if isinstance(value, Mapping):
            yield from _flatten(value, key)
        else:
            yield key, value


def _pattern(key: str) -> str:
    return re.escape(key) if _PLAIN_KEY.fullmatch(key) else f"(?:{key})"


def _reach(key: str, flat: Mapping[str, Value], where: str) -> list[str]:
    """The dotted keys that `key`, plain or an expression, stands for; never empty."""
    label = _label(where, key)
    if _PLAIN_KEY.fullmatch(key):
        if key in flat:
            return [key]
        members = [k for k in flat if k.startswith(f"{key}.")]
        if members:
            raise UserError(f"{label} is a group, not a value; its keys are: {', '.join(members)}")
        raise UserError(
            f"{label}: there is no such key{nearest(key, flat) or '; --help lists all keys'}"
        )
    try:
        pattern = re.compile(key)
    except re.error as error:
        raise UserError(f"{label} is no regular expression: {error}") from None
    reached = [k for k in flat if pattern.fullmatch(k)]
    if not reached:
        raise UserError(f"{label}: the expression matches no key{nearest(key, flat)}")
    return reached


def _label(where: str, key: str) -> str:
    return f"{where}{key}" if where.endswith("--") else f"{where} {key!r}"


def _yaml():
    from ruamel.yaml import YAML

    return YAML(typ="safe", pure=True)


def _parse(text: str, where: str) -> dict[str, Any]:
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        data = _yaml().load(text)
    except MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{where}{line}: {one_line(error.problem)}") from None
    except YAMLError as error:
        raise UserError(f"{where}: {one_line(error)}") from None
    if not isinstance(data, dict):
        raise UserError(f"{where}: a mapping of keys to values expected")
    return data


def _comments(text: str) -> dict[str, str]:
    """Trailing comments as `load_blocks` says, read off the lines where keys and values end."""
    lines, comments = text.splitlines(), {}

    def trailing(mark, pattern: str) -> str:
        line = lines[mark.line] if mark.line < len(lines) else ""
        match = re.match(pattern, line[mark.column :])
        return match[1].strip() if match else ""

    def visit(node, prefix: str) -> None:
        for key, value in node.value:
            name = f"{prefix}.{key.value}" if prefix else key.value
            if hasattr(value, "value") and value.id == "mapping":
                comments[name] = trailing(key.end_mark, r"\s*:\s+#\s*(.*)")
                visit(value, name)
            else:
                comments[name] = trailing(value.end_mark, r"[\s,\]}]*\s#\s*(.*)")

    for key, block in _yaml().compose(text).value:
        if key.value == "defaults":
            visit(block, "")
        comments[f"block:{key.value}"] = trailing(key.end_mark, r"\s*:\s+#\s*(.*)")
    return comments
