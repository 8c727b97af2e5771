"""A series' contrast is recognised from how it was acquired, not from its description alone.

The bounds are chosen for clinical protocols at 1.5 and 3 T, and of no paper. What lies between two
contrasts is not guessed: a site decides it by a rule.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import inf
from typing import Literal, LiteralString, TypeAlias

from grandrounds.core.sentence import Sentence, phrase
from grandrounds.data.acquisition import Acquisition
from grandrounds.data.dicom.series import Series

WITH_AGENT = "T1wGd"  # a T1w image after a contrast agent
_MAPS = {
    *("ADC", "FA", "TRACEW", "TRACE", "EADC", "PERFUSION", "CBF", "CBV", "MTT", "TTP", "VELOCITY"),
    *("T1 MAP", "T2 MAP", "T2_STAR MAP", "R2_STAR MAP", "B1", "SUBTRACTION", "DIFFUSION_ANISO"),
    *("SWI", "MNIP", "PHASE", "PHASE MAP", "P", "PHASE CONTRAST M", "PCA", "REAL", "IMAGINARY"),
}
_OTHER_COMPONENTS = {"PHASE", "REAL", "IMAGINARY"}
_GIVEN = ("+c", "+gd", "gado", "post contrast", "postcontrast", "post gd", "_ce", "t1c", "gd ")


_Kind: TypeAlias = Literal[
    "spin echo", "inverted spin echo", "gradient echo", "inverted gradient echo"
]
_Range: TypeAlias = tuple[float, float]


@dataclass(frozen=True)
class _Row:
    """Between which times (ms) and flip angles a sequence shows a contrast, None one not used here.

    What is bounded must be known; `named_flair` needs the description to say so as well.
    """

    kind: _Kind
    contrast: str | None
    why: LiteralString
    repetition: _Range | None = None
    echo: _Range | None = None
    inversion: _Range | None = None
    flip: _Range | None = None
    named_flair: bool = False

    def fits(self, known: Acquisition) -> bool:
        return (
            _within(known.repetition_time, self.repetition)
            and _within(known.echo_time, self.echo)
            and _within(known.inversion_time, self.inversion)
            and _within(known.flip_angle, self.flip)
        )


def _within(value: float | None, bounds: _Range | None) -> bool:
    return bounds is None or (value is not None and bounds[0] <= value <= bounds[1])


_SPIN_ECHOES = 65  # ms; so late, only a refocused echo is left where no sequence is told
_LONG: _Range = (1500, inf)
_CONTRASTS = (  # the first that fits counts
    _Row("spin echo", "T1w", "a spin echo with short times", (0, 1200), (0, 30)),
    _Row("spin echo", None, "a spin echo that lies between T1w and T2w", (0, 1500)),
    _Row("spin echo", "PDw", "a spin echo with a short echo time", _LONG, (0, 45)),
    _Row("spin echo", None, "a spin echo that lies between PDw and T2w", _LONG, (45, 65)),
    _Row(
        *("spin echo", "FLAIR", "a spin echo with long times, which its description calls FLAIR"),
        repetition=(4500, inf),
        echo=(65, inf),
        named_flair=True,
    ),
    _Row("spin echo", "T2w", "a spin echo with long times", _LONG, (65, inf)),
    _Row("inverted spin echo", None, "a spin echo without fat (STIR)", inversion=(0, 300)),
    _Row(
        *("inverted spin echo", "FLAIR", "a spin echo without water"),
        echo=(60, inf),
        inversion=(1400, inf),
    ),
    _Row(
        *("inverted spin echo", "T1w", "an inverted spin echo with a short echo time"),
        echo=(0, 40),
        inversion=(300, 1300),
    ),
    _Row("inverted gradient echo", "T1w", "an inverted gradient echo", echo=(0, 10)),
    _Row("gradient echo", "T2starw", "a gradient echo with a long echo time", echo=(12, inf)),
    _Row("gradient echo", "T1w", "a spoiled gradient echo", (0, 60), (0, 10), flip=(10, 360)),
    _Row("gradient echo", "T1w", "a spoiled gradient echo", (60, inf), (0, 10), flip=(40, 360)),
    _Row("gradient echo", "PDw", "a gradient echo of small angle", (0, 60), (0, 10), flip=(0, 7)),
)


@dataclass(frozen=True)
class ContrastRule:
    """A site's own word on its series: which descriptions (a pattern with * and ?), which contrast.

    Capitals do not matter. In site.toml it is an `[[archive.contrast]]` with `series` and `is`.
    """

    series: str
    contrast: str


@dataclass(frozen=True)
class RecognisedContrast:
    """A contrast in BIDS' words, or None where a series has none that is structural; and why."""

    contrast: str | None
    reason: Sentence


def recognise_contrast(series: Series, rules: Sequence[ContrastRule] = ()) -> RecognisedContrast:
    """Return a series' contrast: by the first rule that matches, else by its acquisition."""
    description = series.first.description.lower()
    for rule in rules:
        if fnmatchcase(description, rule.series.lower()):
            return RecognisedContrast(rule.contrast, phrase("by a rule of the site"))
    if reason := _not_structural(series):
        return RecognisedContrast(None, reason)
    acquisition, _ = series.acquisition()
    return _with_agent(series, _by_physics(series, acquisition))


def _not_structural(series: Series) -> Sentence | None:
    """Say what a series shows where it is no picture of tissue by relaxation."""
    first, frame = series.first, series.frame
    if first.modality != "MR":
        return phrase("no contrast of an MRI: its modality is another one")
    if frame.component in _OTHER_COMPONENTS:
        return phrase("no magnitude: it shows phase, or a real or imaginary part")
    if set(frame.image_type or first.image_type) & _MAPS:
        return phrase("computed from other pictures: a map, and no contrast")
    if frame.b_value or "EP" in first.settings.sequence.split("\\"):
        return phrase("diffusion-weighted or echo-planar: no structural contrast")
    if "TOF" in f"{first.settings.variant}\\{first.settings.options}".split("\\"):
        return phrase("an angiography (time of flight)")
    return None


def _by_physics(series: Series, known: Acquisition) -> RecognisedContrast:
    kind = _kind_of(series, known)
    flair = "flair" in series.first.description.lower()
    for row in _CONTRASTS:
        if row.kind == kind and row.fits(known) and (flair or not row.named_flair):
            return _judged(row, known)
    return RecognisedContrast(None, phrase("no contrast that is known{times}", times=_times(known)))


def _kind_of(series: Series, known: Acquisition) -> _Kind | None:
    words = set(series.first.settings.sequence.split("\\"))
    if known.family in ("spin-echo", "inversion-recovery") or {"SE", "GR"} <= words:
        return "inverted spin echo" if known.inversion_time else "spin echo"
    if known.family in ("mprage", "gradient-echo"):
        return "inverted gradient echo" if known.inversion_time else "gradient echo"
    long = known.echo_time is not None and known.echo_time >= _SPIN_ECHOES
    return "spin echo" if known.family is None and long else None


def _judged(row: _Row, known: Acquisition) -> RecognisedContrast:
    template: LiteralString = "by its acquisition, " + row.why + "{times}"
    return RecognisedContrast(row.contrast, phrase(template, times=_times(known)))


def _times(known: Acquisition) -> Sentence:
    """Return the times in ms, as far as they are known."""
    repetition, echo, inversion = known.repetition_time, known.echo_time, known.inversion_time
    if repetition is None or echo is None:
        return phrase("")
    if inversion is None:
        return phrase(
            " (TR {repetition:g} ms, TE {echo:g} ms)", repetition=repetition, echo=round(echo, 2)
        )
    return phrase(
        " (TR {repetition:g} ms, TE {echo:g} ms, TI {inversion:g} ms)",
        repetition=repetition,
        echo=round(echo, 2),
        inversion=inversion,
    )


def _with_agent(series: Series, found: RecognisedContrast) -> RecognisedContrast:
    """Tell a T1w image after a contrast agent from one before it."""
    if found.contrast != "T1w":
        return found
    given = series.first.settings.contrast_agent
    if given:
        return RecognisedContrast(
            WITH_AGENT, phrase("{reason}; a contrast agent was given", reason=found.reason)
        )
    description = f"{series.first.description} ".lower()
    if given is None and any(word in description for word in _GIVEN):
        told = phrase(
            "{reason}; its description tells of a contrast agent, its header of none",
            reason=found.reason,
        )
        return RecognisedContrast(WITH_AGENT, told)
    return found
