"""One page shows a site how its sessions were prepared: those that need a look come first.

It shows images of patients, so it stays at the site.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from grandrounds.core.files import write_text

ADULT_BRAIN = (900.0, 1900.0)  # ml: the brains of nearly all adults, with the fluid around them
FAR_SHIFT = 15.0  # mm: more than a head turns on a cushion
LEAST_OVERLAP = 0.85  # Dice of two heads, where both volumes show the same part
LEAST_INFORMATION = 1.05  # normalised mutual information of two images that show different things
UNUSUAL_SPREAD = (
    3.5  # times the site's own spread (median absolute deviation), from which on it is rare
)
FEWEST_SESSIONS = 8  # sessions from which on a site has a spread of its own
THICKER_VOXELS = 2.0  # times: a reference's voxels beside another contrast's


@dataclass(frozen=True)
class PreparedContrast:
    """One contrast of a session; pairs are before and after; lengths in mm."""

    name: str
    spacing: tuple[float, float, float]
    information: tuple[float, float] | None
    overlap: tuple[float, float] | None
    shift: float
    pictures: tuple[str, str] | None


@dataclass(frozen=True)
class PreparedSession:
    """What is told of a session; `brain` is in ml, `alone` a picture of the reference."""

    name: str
    reference: str
    spacing: tuple[float, float, float]
    contrasts: tuple[PreparedContrast, ...]
    brain: float | None
    brain_is_own: bool
    alone: str


@dataclass(frozen=True)
class Flag:
    """Why a session should be looked at, and what to do about it; a worse one has more weight."""

    found: str
    do: str
    weight: float


@dataclass(frozen=True)
class FlaggedSession:
    """A session and its flags, the worst first."""

    session: PreparedSession
    flags: tuple[Flag, ...]

    @property
    def weight(self) -> float:
        """Return how much the session needs a look."""
        return sum(flag.weight for flag in self.flags)


def write_quality_page(
    path: Path, site: str, sessions: Sequence[PreparedSession], refused: Mapping[str, str]
) -> int:
    """Write the page, whole or not at all; return how many sessions need a look.

    `refused` maps the sessions that could not be prepared to the reasons. Raises `DiskFailed`.
    """
    flagged = worst_first(sessions)
    page = (
        _environment()
        .get_template("preparation.html.j2")
        .render(site=site, sessions=flagged, refused=refused, limits=_limits())
    )
    write_text(path, page, refusal="{path}: the quality page cannot be written: {reason}")
    return sum(bool(each.flags) for each in flagged)


def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _limits() -> Mapping[str, float]:
    return {
        "far": FAR_SHIFT,
        "overlap": LEAST_OVERLAP,
        "low": ADULT_BRAIN[0],
        "high": ADULT_BRAIN[1],
        "fewest": FEWEST_SESSIONS,
    }


def worst_first(sessions: Sequence[PreparedSession]) -> list[FlaggedSession]:
    """Return the sessions, those that need a look first, by how much they need it."""
    usual = _usual(sessions)
    found = [FlaggedSession(each, tuple(_flags(each, usual))) for each in sessions]
    return sorted(found, key=lambda each: (-each.weight, each.session.name))


def _flags(session: PreparedSession, usual: Mapping[str, Sequence[float]]) -> list[Flag]:
    found = [*_mask_flags(session, usual), *_grid_flags(session)]
    for contrast in session.contrasts:
        found += _contrast_flags(session, contrast, usual)
    return sorted(found, key=lambda flag: -flag.weight)


def _contrast_flags(
    session: PreparedSession, contrast: PreparedContrast, usual: Mapping[str, Sequence[float]]
) -> Iterable[Flag]:
    if contrast.information is None or contrast.overlap is None:
        return
    pair, after = f"{contrast.name} on {session.reference}", contrast.information[1]
    rare = _rare(after, usual[_pair(session, contrast)])
    if after < LEAST_INFORMATION or rare < -UNUSUAL_SPREAD:
        yield Flag(
            f"{pair}: the two images tell little of each other (mutual information {after:.3f}"
            f"{', far below that of other sessions' if rare < -UNUSUAL_SPREAD else ''}).",
            "Look at the right picture: do the edges of skull and ventricles run on from square to "
            "square? If not, check that both files are of the same patient and visit.",
            4.0,
        )
    if contrast.overlap[1] < LEAST_OVERLAP:
        yield Flag(
            f"{pair}: the outlines of the two heads overlap by {contrast.overlap[1]:.0%} alone.",
            "One of them may be cropped, masked or misplaced. Open both in a viewer.",
            3.0,
        )
    if contrast.shift > FAR_SHIFT:
        yield Flag(
            f"{pair}: was moved by up to {contrast.shift:.0f} mm.",
            "That is more than a patient moves between two scans. Where the right picture fits, "
            "all is well; else the files may be of two visits, or a header is wrong.",
            2.0,
        )


def _mask_flags(session: PreparedSession, usual: Mapping[str, Sequence[float]]) -> Iterable[Flag]:
    if session.brain is None:
        return
    low, high = ADULT_BRAIN
    rare = abs(_rare(session.brain, usual["brain"])) > UNUSUAL_SPREAD
    if rare or not low <= session.brain <= high:
        whose = "The site's own brain mask" if session.brain_is_own else "The simple brain mask"
        yield Flag(
            f"{whose} has {session.brain:.0f} ml (adults: {low:.0f} to {high:.0f} ml).",
            "Open the mask over the image. Where it holds skull or misses brain, draw it anew "
            "beside the source volumes and prepare again. A volume of a part of the head, or a "
            "child, may be right as it is.",
            2.0,
        )


def _grid_flags(session: PreparedSession) -> Iterable[Flag]:
    others = [each for each in session.contrasts if each.name != session.reference]
    own = next(each for each in session.contrasts if each.name == session.reference)
    finer = [each.name for each in others if max(own.spacing) > THICKER_VOXELS * max(each.spacing)]
    if finer:
        yield Flag(
            f"The reference {session.reference} has voxels of {max(own.spacing):.1f} mm, much "
            f"longer than those of {', '.join(finer)}.",
            f"Detail is lost. Put {finer[0]} first in prepare.reference, or choose "
            "prepare.spacing.",
            1.0,
        )


def _usual(sessions: Sequence[PreparedSession]) -> Mapping[str, Sequence[float]]:
    """Return the site's own values of each kind, to which a session's are compared."""
    values: dict[str, list[float]] = {"brain": []}
    for session in sessions:
        if session.brain is not None:
            values["brain"].append(session.brain)
        for contrast in session.contrasts:
            if contrast.information is not None:
                pair = values.setdefault(_pair(session, contrast), [])
                pair.append(contrast.information[1])
    return values


def _pair(session: PreparedSession, contrast: PreparedContrast) -> str:
    return f"{contrast.name} on {session.reference}"


def _rare(value: float, values: Sequence[float]) -> float:
    """Return by how many robust standard deviations a value lies off the median; 0 of few."""
    if len(values) < FEWEST_SESSIONS:
        return 0.0
    middle = median(values)
    spread = 1.4826 * median(abs(each - middle) for each in values)
    return (value - middle) / max(spread, 0.005 * abs(middle), 1e-9)
