from dataclasses import FrozenInstanceError, fields, is_dataclass
from typing import get_args

import pytest

from grandrounds.core.events import EVENT_KINDS, Event, Interrupted


def test_every_event_is_known_by_its_name():
    assert set(EVENT_KINDS.values()) == set(get_args(Event))
    assert all(name == kind.__name__ for name, kind in EVENT_KINDS.items())


def test_events_are_frozen():
    assert all(is_dataclass(kind) for kind in EVENT_KINDS.values())
    with pytest.raises(FrozenInstanceError):
        Interrupted(1).round = 2  # pyright: ignore[reportAttributeAccessIssue]


def test_no_event_has_a_field_that_the_journal_uses_itself():
    for kind in EVENT_KINDS.values():
        assert not {"event", "time"} & {field.name for field in fields(kind)}
