"""What a model that travels from site to site forgets: its score everywhere after each turn."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean

from grandrounds.events import SiteMonitored


@dataclass(frozen=True)
class Cycle:
    """One cycle that was watched: `scores` maps each turn, in order, to each site's score.

    Higher is better; a site without validation cases has no score.
    """

    round: int
    scores: Mapping[str, Mapping[str, float]]

    @property
    def turns(self) -> tuple[str, ...]:
        """List the sites in the order of their turns."""
        return tuple(self.scores)

    @property
    def lost(self) -> Mapping[str, float]:
        """Tell what each site lost between its own turn and the end; negative where it gained.

        The last site has had no time to lose anything, and is left out.
        """
        end = self.scores[self.turns[-1]]
        own = {name: self.scores[name] for name in self.turns[:-1]}
        return {name: own[name][name] - end[name] for name in own if name in end}

    @property
    def mean_lost(self) -> float | None:
        """Average the loss over sites; nothing where nobody could lose."""
        return fmean(self.lost.values()) if self.lost else None

    def shade(self, turn: str, site: str) -> float:
        """Place a score between the site's worst (0) and best (1) score in this cycle."""
        column = [row[site] for row in self.scores.values()]
        low, high = min(column), max(column)
        return (self.scores[turn][site] - low) / (high - low) if high > low else 0.0


def cycles_of(monitored: Iterable[SiteMonitored], finished: Iterable[int]) -> tuple[Cycle, ...]:
    """Give every watched cycle that was finished, oldest first."""
    found: dict[int, dict[str, dict[str, float]]] = {number: {} for number in finished}
    for event in monitored:
        if event.round in found:
            row = found[event.round].setdefault(event.after, {})
            row |= {event.site: event.score} if event.cases else {}
    return tuple(Cycle(number, scores) for number, scores in sorted(found.items()) if scores)
