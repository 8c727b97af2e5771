"""Values of a header, taken one by one, each by its type; it runs in a process with limits.

What is of a wrong type, cannot be decoded, or is no finite number, is as absent: whoever needs it
refuses the file. Simple values are decoded here, as pydicom checks each at many times the cost.
"""

import struct
from collections.abc import Iterator
from functools import cache
from math import isfinite
from typing import Any, cast

from pydicom.datadict import dictionary_VR, keyword_for_tag, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag

_EMPTY = Dataset()
_LONGEST = 256  # characters of a text that are kept
_DEEPEST = 6  # sequences in sequences, of which elements are listed
_ASCII = {"AE", "AS", "CS", "DA", "DS", "DT", "IS", "TM", "UI"}
_BINARY = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "FL": "f", "FD": "d"}


def text(found: Dataset, keyword: str) -> str:
    """Return an element's text, its values joined by backslashes; empty where there is none."""
    return "\\".join(str(each) for each in values(found, keyword)).strip()[:_LONGEST]


def words(found: Dataset, keyword: str) -> tuple[str, ...]:
    """Return an element's words, in capitals and without blanks around them."""
    joined = text(found, keyword)
    return tuple(each.strip().upper() for each in joined.split("\\")) if joined else ()


def numbers(found: Dataset, keyword: str | BaseTag) -> tuple[float, ...]:
    """Return an element's numbers; none of them where one is no finite number."""
    try:
        result = tuple(float(each) for each in values(found, keyword) if each not in (None, ""))
    except (TypeError, ValueError, OverflowError):
        return ()
    return result if all(map(isfinite, result)) else ()


def first_number(found: Dataset, keyword: str) -> float | None:
    """Return an element's first number, or None."""
    return next(iter(numbers(found, keyword)), None)


def whole_number(found: Dataset, keyword: str) -> int | None:
    """Return an element's first number without its fraction, or None."""
    value = first_number(found, keyword)
    return None if value is None else int(value)


def items(found: Dataset, keyword: str) -> list[Dataset]:
    """Return a sequence's items; none where there is no sequence."""
    try:
        value = found.get(keyword)
    except RecursionError:
        raise
    except Exception:  # whatever a damaged sequence makes pydicom trip over
        return []
    return list(value) if isinstance(value, Sequence) else []


def first_item(found: Dataset, keyword: str) -> Dataset:
    """Return a sequence's first item; an empty one where there is none."""
    return next(iter(items(found, keyword)), _EMPTY)


def values(found: Dataset, keyword: str | BaseTag) -> list[Any]:
    """Return an element's values, in whatever type each is."""
    tag = _tag(keyword) if isinstance(keyword, str) else keyword
    if tag not in found:
        return []
    raw = found.get_item(tag)
    try:
        if isinstance(raw, RawDataElement) and isinstance(raw.value, bytes):
            quick = _decoded(raw)
            if quick is not None:
                return quick
        value: object = found[tag].value
    except Exception:  # whatever a damaged value makes a decoder trip over
        return []
    if isinstance(value, MultiValue | list | tuple):
        return list(cast("list[Any]", value))
    return [] if value is None or isinstance(value, Dataset | Sequence | bytes) else [value]


def _decoded(raw: RawDataElement) -> list[Any] | None:
    """Return the values of a simple element; None where pydicom must decode it."""
    kind = raw.VR or _kind(raw.tag)
    content = cast("bytes", raw.value)
    if kind in _ASCII:
        whole = content.decode("latin-1").strip(" \0")
        return [each.strip(" \0") for each in whole.split("\\")] if whole else []
    if code := _BINARY.get(kind):
        count = len(content) // struct.calcsize("=" + code)
        order = "<" if raw.is_little_endian else ">"
        return list(struct.unpack_from(f"{order}{count}{code}", content))
    return None


@cache
def _tag(keyword: str) -> BaseTag:
    number = tag_for_keyword(keyword)
    assert number is not None, keyword
    return BaseTag(number)


def _kind(tag: BaseTag) -> str:
    try:
        return dictionary_VR(tag)
    except KeyError:
        return ""


_keyword = cache(keyword_for_tag)


def filled(found: Dataset, skipped: tuple[str, ...], depth: int = 0) -> Iterator[tuple[str, bool]]:
    """Yield each element that holds a value: its keyword, and whether it is private.

    It looks into sequences, but for those that are skipped.
    """
    for tag in found.keys():  # noqa: SIM118 - without it values are parsed
        if tag.is_private:
            yield "", True
            continue
        keyword = _keyword(tag)
        raw = found.get_item(tag)
        if not _holds(raw.value):
            continue
        yield keyword, False
        kind = raw.VR or _kind(tag)  # an implicit syntax writes none
        if kind == "SQ" and depth < _DEEPEST and keyword not in skipped:
            for item in items(found, keyword):
                yield from filled(item, skipped, depth + 1)


def _holds(value: object) -> bool:
    if value is None:
        return False
    return bool(value.strip()) if isinstance(value, str | bytes) else True
