"""Frozen dataclasses to plain JSON values and back; the fields' annotations say what to rebuild."""

import types
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

_T = TypeVar("_T")


def from_plain(kind: type[_T], value: Any) -> _T:
    """Rebuild `kind` from what `dataclasses.asdict` and JSON made of it.

    Understands nested dataclasses, tuples and mappings.
    """
    return cast(_T, _revive(kind, value))


def _revive(hint: Any, value: Any) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if is_dataclass(hint):
        hints = get_type_hints(hint)
        return cast(Any, hint)(**{name: _revive(hints[name], item) for name, item in value.items()})
    if origin is tuple:
        return tuple(_revive(arguments[0], item) for item in value)
    if origin is Mapping:
        return {name: _revive(arguments[1], item) for name, item in value.items()}
    if origin in (types.UnionType, Union):
        return None if value is None else _revive(arguments[0], value)
    return value
