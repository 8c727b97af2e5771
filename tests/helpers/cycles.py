"""A cycle of a travelling model, scored everywhere after each turn."""

from grandrounds.core.events import Event, SiteMonitored

SCORES = {  # after whose turn -> at which site
    "alder": {"alder": 24.0, "birch": 20.0, "cedar": 19.0, "dogwood": 21.0},
    "birch": {"alder": 23.0, "birch": 23.5, "cedar": 19.5, "dogwood": 21.5},
    "cedar": {"alder": 22.0, "birch": 23.0, "cedar": 24.5, "dogwood": 22.0},
    "dogwood": {"alder": 21.5, "birch": 23.5, "cedar": 25.0, "dogwood": 25.5},
}


def cycle(round: int, *, lift: float = 0.0, blind: str = "") -> list[Event]:
    return [
        SiteMonitored(round, after, site, 0.1, 0 if site == blind else 8, score + lift, 100)
        for after, row in SCORES.items()
        for site, score in row.items()
    ]
