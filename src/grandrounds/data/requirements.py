"""A site's people are held against the common data elements that a study states.

Each sentence says who does not meet an element, in counts, and what would help.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import LiteralString, TypeAlias

from grandrounds.core.sentence import Name, Sentence, phrase
from grandrounds.core.site_statistics import EVERYONE_HERE
from grandrounds.data.elements import Elements
from grandrounds.data.people import AGE, People, Person, ScannedVolume, values_of
from grandrounds.data.remarks import of_all, some

Meets: TypeAlias = Callable[[Person], bool | None]
_TOLERANCE = 0.1  # relative: a scanner that is sold with 3 T may have 2.89
_WIDER = 1e-3  # mm, of a spacing that was rounded when its header was written
_ELEMENTS: Mapping[str, tuple[LiteralString, LiteralString, LiteralString]] = {
    # element: what is wrong, what would help, and what is unknown without what
    "field_strengths": (
        "with a field strength that elements.field_strengths does not name",
        "leave their sessions out, or let the study name it",
        "the field strength is unknown: a sidecar (.json) beside each volume would tell it",
    ),
    "spacing_in_plane": (
        "with rows or columns outside of elements.spacing_in_plane",
        "leave their sessions out, or let the study allow it: preparation resamples rows and "
        "columns to elements.spacing",
        "the spacing of rows and columns is unknown: only volumes (NIfTI) have one",
    ),
    "spacing_through": (
        "with slices outside of elements.spacing_through",
        "resample them with `grandrounds site prepare`, leave their sessions out, or let the "
        "study allow it",
        "the distance of slices is unknown: only volumes (NIfTI) have one",
    ),
    "orientation": (
        "with slices in another plane than elements.orientation",
        "find a series in that plane, resample it with `grandrounds site prepare`, or leave their "
        "sessions out",
        "the plane of the slices is unknown: only volumes (NIfTI) have one",
    ),
    "age": (
        "with an age outside of elements.age",
        "leave them out, or let the study allow it",
        "the age is unknown: a column age of participants.tsv would tell it",
    ),
    "labels": (
        "with values that elements.labels does not name",
        "give the structures the study's values, or let the study name these",
        "the values are unknown: only files of masks (NIfTI) have them",
    ),
}
ELEMENT_NAMES = tuple(_ELEMENTS)


@dataclass(frozen=True)
class Requirement:
    """One element of a study that people of a group meet, or not; None where it is unknown."""

    element: str
    group: str
    meets: Meets

    def unmet(self, people: People) -> frozenset[str]:
        """Return who is known not to meet it."""
        return frozenset(who for who, person in people.items() if self.meets(person) is False)

    def notes(self, people: People) -> tuple[Sentence, ...]:
        """Say how many people do not meet it, or may not, and what would help."""
        group = {who: person for who, person in people.items() if self.group in person.groups}
        wrong, help, unknown = _ELEMENTS[self.element]
        found = [self.meets(person) for person in group.values()]
        name = Name(self.group)
        notes: list[Sentence] = []
        if number := found.count(False):
            told = of_all(number, len(group), "patient")
            words: LiteralString = "{name}: {people} " + wrong + "; " + help
            notes.append(phrase(words, name=name, people=told))
        if number := found.count(None):
            told = of_all(number, len(group), "patient")
            notes.append(phrase("{name}: of {people}, " + unknown, name=name, people=told))
        return tuple(notes)


def requirements_of(elements: Elements) -> tuple[Requirement, ...]:
    """Return what a study's elements ask of people's data, contrast by contrast."""
    found = [
        Requirement(element, contrast, _every_volume(contrast, meets))
        for contrast in elements.contrasts
        for element, meets in _of_volumes(elements).items()
    ]
    if elements.age:
        found.append(Requirement("age", AGE, _in_age(elements.age)))
    for mask, structures in (elements.labels or {}).items():
        found.append(Requirement("labels", mask, _labelled(mask, frozenset(structures.values()))))
    return tuple(found)


def _of_volumes(elements: Elements) -> dict[str, Callable[[ScannedVolume], bool | None]]:
    found: dict[str, Callable[[ScannedVolume], bool | None]] = {}
    if strengths := elements.field_strengths:
        found["field_strengths"] = lambda volume: _near(
            volume.acquisition.field_strength, strengths
        )
    if plane := elements.spacing_in_plane:
        found["spacing_in_plane"] = lambda volume: _within(
            volume, ("spacing_rows", "spacing_columns"), plane
        )
    if through := elements.spacing_through:
        found["spacing_through"] = lambda volume: _within(volume, ("spacing_through",), through)
    if elements.orientation:
        found["orientation"] = lambda volume: _in_plane(volume, str(elements.orientation))
    return found


def _every_volume(contrast: str, meets: Callable[[ScannedVolume], bool | None]) -> Meets:
    def every(person: Person) -> bool | None:
        found = [meets(volume) for volume in person.volumes if volume.contrast == contrast]
        return False if False in found else None if None in found or not found else True

    return every


def _near(strength: float | None, named: Iterable[float]) -> bool | None:
    if strength is None:
        return None
    return any(abs(strength - each) <= _TOLERANCE * each for each in named)


def _within(
    volume: ScannedVolume, names: Sequence[str], limits: tuple[float, float]
) -> bool | None:
    low, high = limits
    found = [volume.numbers.get(name) for name in names]
    if None in found:
        return None
    return all(low - _WIDER <= each <= high + _WIDER for each in found if each is not None)


def _in_plane(volume: ScannedVolume, plane: str) -> bool | None:
    """Tell whether slices lie in a plane; those that are as thin as wide lie in every one."""
    return None if volume.grid is None else volume.kinds.get("orientation", plane) == plane


def _in_age(limits: tuple[float, float]) -> Meets:
    low, high = limits

    def within(person: Person) -> bool | None:
        age = person.numbers.get("value", {}).get(AGE)
        return None if age is None else low <= age <= high

    return within


def _labelled(mask: str, values: frozenset[int]) -> Meets:
    def labelled(person: Person) -> bool | None:
        found = person.labels.get(mask)
        return None if found is None else found <= values

    return labelled


def requirement_notes(people: People, elements: Elements) -> tuple[Sentence, ...]:
    """Say what of the study's elements these people's data do not meet; empty if all is met."""
    notes = [*_doubts(people)]
    notes += [note for each in requirements_of(elements) for note in each.notes(people)]
    for name, least in (elements.minimum or {}).items():
        number = sum(name == EVERYONE_HERE or name in person.groups for person in people.values())
        if number < least:
            words = phrase(
                "{name}: {number} of at least {least} patients that elements.minimum asks for; "
                "find more, let the study ask for fewer, or take the tasks that need them from "
                "this site",
                name=Name(name),
                number=number,
                least=least,
            )
            notes.append(words)
    return tuple(notes)


def _doubts(people: People) -> Iterable[Sentence]:
    """Say which values of sidecars cannot be, and in how many volumes."""
    found: dict[tuple[str, str], list[Sentence]] = {}
    for person in people.values():
        for volume in person.volumes:
            for doubt in volume.doubts:
                found.setdefault((volume.contrast, str(doubt)), []).append(doubt)
    for (contrast, _), doubts in sorted(found.items()):
        volumes = some(len(doubts), "volume")
        yield phrase(
            "{name}: in {volumes}, {doubt}", name=Name(contrast), volumes=volumes, doubt=doubts[0]
        )


def people_in(people: People, names: Iterable[str]) -> dict[str, frozenset[str]]:
    """Return who belongs to each group of these names."""
    return {
        name: frozenset(who for who, person in people.items() if name in person.groups)
        for name in names
    }


def counted_groups(
    variables: Iterable[str], names: Iterable[str], tasks: Iterable[str]
) -> list[str]:
    """Return the names of all groups: data, the values 0 and 1 of variables, and tasks."""
    values = [value for variable in variables for value in values_of(variable)]
    return list(dict.fromkeys([*names, *values, *tasks]))
