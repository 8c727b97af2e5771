"""What several tasks refuse in the same words."""

from collections.abc import Mapping, Sequence

from grandrounds.data.elements import Elements
from grandrounds.errors import BadStudy


def require(holds: bool, sentence: str) -> None:
    """Raise `BadStudy` with the sentence unless something holds."""
    if not holds:
        raise BadStudy(sentence)


def check_counts(options: object, least: Mapping[str, int]) -> None:
    """Refuse options of a task below their least value."""
    for name, low in least.items():
        value = getattr(options, name)
        require(value >= low, f"task.{name} is {value}; it must be {low} or more")


def check_shares(options: object, names: Sequence[str]) -> None:
    """Refuse options of a task that are no probability."""
    for name in names:
        value = getattr(options, name)
        require(0 <= value <= 1, f"task.{name} is {value}; it is a probability, from 0 to 1")


def check_size(elements: Elements, *, least: int, multiple: int) -> None:
    """Refuse slices that a network cannot halve and double as often as it does."""
    for pixels in elements.size:
        require(
            pixels >= least and pixels % multiple == 0,
            f"elements.size is {list(elements.size)}; "
            f"both numbers must be multiples of {multiple}, {least} or more",
        )


def check_contrasts(where: str, names: Sequence[str], elements: Elements) -> None:
    """Refuse contrasts of a task label that the study does not have."""
    known = ", ".join(elements.contrasts)
    for name in names:
        require(
            name in elements.contrasts,
            f"{where}: contrast '{name}' is not in elements.contrasts ({known})",
        )
