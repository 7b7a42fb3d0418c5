"""A value of a configuration file or of the command line, as the type of its default."""

from __future__ import annotations

import math
from typing import Any

from veorl_tf.core.errors import UserError

Value = bool | int | float | str | tuple


class _Nothing:
    """The value of a flag that was given none: a switch is on, anything else is refused."""

    def __repr__(self) -> str:
        return "nothing"


NOTHING = _Nothing()
_TRUE, _FALSE = ("true", "yes"), ("false", "no")


def convert(value: Any, default: Value, where: str) -> Value:
    """`value` (of YAML, or text of the command line) as the type of `default`.

    An int takes 1e5 but not 0.5; a float takes ints; a bool takes true/false/yes/no; a list takes a
    list or text separated by commas, each element as the type of the default's first. Raises
    UserError naming `where`.
    """
    kind = type(default)
    try:
        if kind is tuple:
            return _to_tuple(value, default, where)
        return {bool: _to_bool, int: _to_int, float: _to_float, str: _to_str}[kind](value)
    except (ValueError, TypeError, OverflowError):
        names = {
            bool: "true or false",
            int: "a whole number",
            float: "a number",
            str: "text",
            tuple: "a list",
        }
        raise UserError(
            f"{where}: {names[kind]} expected (the default is {show(default)}), got {value!r}"
        ) from None


def show(value: Value) -> str:
    """A value the way it is written on the command line."""
    if isinstance(value, tuple):
        return ",".join(show(v) for v in value) or "''"
    if isinstance(value, bool):
        return str(value).lower()
    return (
        f"{value:g}"
        if isinstance(value, float) and float(f"{value:g}") == value
        else str(value) or "''"
    )


def _to_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if value is NOTHING:
        return True
    text = value.lower() if isinstance(value, str) else ""
    if text not in _TRUE + _FALSE:
        raise ValueError(value)
    return text in _TRUE


def _to_int(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise TypeError(value)
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            value = float(value)
    if value != int(value):
        raise ValueError(value)
    return int(value)


def _to_float(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise TypeError(value)
    if math.isnan(float(value)):
        raise ValueError(value)
    return float(value)


def _to_str(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def _to_tuple(value: Any, default: tuple, where: str) -> tuple:
    if isinstance(value, str):
        text = value.strip()
        text = text[1:-1] if text[:1] == "[" and text[-1:] == "]" else text
        value = [part.strip() for part in text.split(",")] if text.strip() else []
    if not isinstance(value, (list, tuple)):
        raise TypeError(value)
    if not default:
        return tuple(value)
    # One float among the defaults makes the list one of floats.
    example = next((v for v in default if isinstance(v, float)), default[0])
    return tuple(convert(v, example, f"{where}, element {i}") for i, v in enumerate(value))
