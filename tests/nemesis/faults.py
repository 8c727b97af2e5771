"""What can befall a run, and a schedule of it; nothing of the product is loaded for these words."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

World: TypeAlias = Literal["remote", "workers", "federation"]
Deed: TypeAlias = Literal["kill", "stop", "full disk", "clock"]
Moment: TypeAlias = Literal["training", "writing", "written", "named", "journal"]
SERVER = "server"
SILENCE = 4.0  # seconds after which a site is dead
HOUR = 3600.0


@dataclass(frozen=True)
class Harm:
    """What a process does to itself, at a moment of a round: of the server's or a site's work.

    A site trains; a file is half written, written whole, or has its name; the journal has the line
    of a round's end.
    """

    party: str
    round: int
    moment: Moment
    deed: Deed
    seconds: float = 0.0  # it stands still, or its clock is off by so much

    def __str__(self) -> str:
        """Return it in words."""
        off = f" {self.seconds:g} s" if self.seconds else ""
        return f"{self.deed}{off} of {self.party} at {self.moment} {self.round}"

    @property
    def mark(self) -> str:
        """Return the name of the file that says that it happened."""
        return f"struck {self}"


@dataclass(frozen=True)
class Trouble:
    """What happens on the line when a letter of this number first comes, `times` times.

    Letters are counted by receiver and topic: "ask" from the server, "mail" from another site. The
    attempt is 1, or 2 for the first that resumes.
    """

    to: str
    topic: Literal["ask", "mail"]
    number: int
    what: str
    times: int = 1
    seconds: float = 0.0
    attempt: int = 1

    def __str__(self) -> str:
        """Return it in words."""
        many = f" x{self.times}" if self.times > 1 else ""
        off = f" {self.seconds:g} s" if self.seconds else ""
        later = f" of attempt {self.attempt}" if self.attempt > 1 else ""
        return f"{self.what}{many}{off} at {self.topic} {self.number} to {self.to}{later}"


@dataclass(frozen=True)
class Damage:
    """What is done to a file between a run and its resumption; `place` is a part of its length."""

    what: Literal["flip", "cut", "delete"]
    file: str  # a name below, or a path in the run folder
    place: float = 0.5

    def __str__(self) -> str:
        """Return it in words."""
        where = "" if self.what == "delete" else f" at {self.place:.3f}"
        return f"{self.what} {self.file}{where}"


Fault: TypeAlias = Harm | Trouble | Damage


@dataclass(frozen=True)
class Schedule:
    """All that befalls one run of an arm."""

    seed: int
    world: World
    arm: str
    faults: tuple[Fault, ...]

    def __str__(self) -> str:
        """Return it in one line."""
        told = "; ".join(map(str, self.faults))
        return f"seed {self.seed}: {self.world}, {self.arm}: {told}"

    @property
    def harms(self) -> tuple[Harm, ...]:
        return tuple(fault for fault in self.faults if isinstance(fault, Harm))

    @property
    def troubles(self) -> tuple[Trouble, ...]:
        return tuple(fault for fault in self.faults if isinstance(fault, Trouble))

    @property
    def damages(self) -> tuple[Damage, ...]:
        return tuple(fault for fault in self.faults if isinstance(fault, Damage))
