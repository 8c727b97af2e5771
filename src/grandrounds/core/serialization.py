"""Frozen dataclasses become plain JSON values and are rebuilt by their fields' annotations."""

import types
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

_T = TypeVar("_T")


def from_plain(kind: type[_T], value: Any) -> _T:
    """Return the object of class `kind` that `dataclasses.asdict` and JSON made plain.

    It may hold nested dataclasses, tuples and mappings.
    """
    return cast(_T, _rebuild(kind, value))


def _rebuild(hint: Any, value: Any) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if is_dataclass(hint):
        hints = get_type_hints(hint)
        return cast(Any, hint)(
            **{name: _rebuild(hints[name], item) for name, item in value.items()}
        )
    if origin is tuple:
        return tuple(_rebuild(arguments[0], item) for item in value)
    if origin is Mapping:
        return {name: _rebuild(arguments[1], item) for name, item in value.items()}
    if origin in (types.UnionType, Union):
        return None if value is None else _rebuild(arguments[0], value)
    return value
