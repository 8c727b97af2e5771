"""Frozen dataclasses become plain JSON values and are rebuilt by their fields' annotations."""

import types
from collections.abc import Mapping
from dataclasses import is_dataclass
from functools import cache
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

_T = TypeVar("_T")


def from_plain(kind: type[_T], value: Any) -> _T:
    """Return the object of class `kind` that `dataclasses.asdict` and JSON made plain.

    It may hold nested dataclasses, tuples and mappings. Raises `TypeError` where a value is not of
    its field's type, and `KeyError` for a field that there is not.
    """
    return cast(_T, _rebuild(kind, value))


def _rebuild(hint: Any, value: Any) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if is_dataclass(hint):
        items, hints = _of_type(dict, value).items(), _hints(hint)
        return cast(Any, hint)(**{name: _rebuild(hints[name], item) for name, item in items})
    if origin is tuple:
        return tuple(_rebuild(arguments[0], item) for item in _of_type((list, tuple), value))
    if origin is Mapping:
        items = _of_type(dict, value).items()
        return {_of_type(str, name): _rebuild(arguments[1], item) for name, item in items}
    if origin in (types.UnionType, Union):
        return None if value is None else _rebuild(arguments[0], value)
    return _rebuild_word(hint, value)


@cache
def _hints(kind: Any) -> Mapping[str, Any]:
    return get_type_hints(kind)


def _rebuild_word(hint: Any, value: Any) -> Any:
    if get_origin(hint) is Literal:
        return _one_of(get_args(hint), value)
    if hint is float:  # JSON writes a float without a fraction as an integer
        return float(_of_type((int, float), value))
    return _of_type(hint, value) if hint in (int, str, bool, bytes) else value


def _of_type(kind: Any, value: Any) -> Any:
    """Return a value of this type; a truth value is no number. Raises `TypeError`."""
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"a value is {type(value).__name__}, which is not what its field takes")
    return value


def _one_of(words: tuple[Any, ...], value: Any) -> Any:
    if value not in words:
        raise TypeError("a value is none of the words that its field takes")
    return value
