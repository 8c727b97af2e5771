"""Sites' statistics side by side: who has what, how alike they are, and what would help."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean

from grandrounds.core.site_statistics import EVERYONE_HERE, Quantiles, SiteStatistics

ALIKE = 0.85  # overlap of intensities from which on nothing is advised
QUANTITY_NAMES: Mapping[str, tuple[str, str]] = {
    "field_strength": ("Field strength", "T"),
    "repetition_time": ("Repetition time", "ms"),
    "echo_time": ("Echo time", "ms"),
    "inversion_time": ("Inversion time", "ms"),
    "flip_angle": ("Flip angle", "degrees"),
    "spacing_rows": ("Spacing of rows", "mm"),
    "spacing_columns": ("Spacing of columns", "mm"),
    "spacing_through": ("Distance of slices", "mm"),
    "rows": ("Rows", ""),
    "columns": ("Columns", ""),
    "slices": ("Slices", ""),
    "sessions": ("Sessions of a patient", ""),
    "label_volume": ("Volume of a mask", "ml"),
    "value": ("Value", ""),
}
KIND_NAMES: Mapping[str, str] = {
    "sequence": "Sequence",
    "dimensions": "Dimensions",
    "contrast_agent": "Contrast agent",
    "orientation": "Plane of slices",
}
ELEMENT_HELP: Mapping[str, tuple[str, str]] = {
    "field_strengths": (
        "a field strength that the study does not name",
        "leave their sessions out, or let the study name it",
    ),
    "spacing_in_plane": (
        "rows or columns outside of the study's spacing",
        "leave their sessions out, or let the study allow it; training resamples them anyway",
    ),
    "spacing_through": (
        "a distance of slices outside of the study's",
        "resample at the site (grandrounds site prepare), or let the study allow it",
    ),
    "orientation": (
        "slices in another plane than the study's",
        "resample at the site (grandrounds site prepare), or leave their sessions out",
    ),
    "age": ("an age outside of the study's", "leave them out, or let the study allow it"),
    "labels": (
        "values in masks that the study does not name",
        "give the structures the study's values",
    ),
}
_ALMOST_NOTHING = 1e-5
_PROTOCOL = ("repetition_time", "echo_time", "inversion_time", "field_strength")


@dataclass(frozen=True)
class Compatibility:
    """How well a site fits the others, from 0 to 100; a part is None where nothing is told of it.

    `alike` is the mean, over contrasts, of the overlap of its intensities with the mean of the
    others'; `met` the share of the study's demands that it meets. `score` is 100 times the mean of
    the two.
    """

    site: str
    alike: float | None
    met: float | None

    @property
    def score(self) -> float | None:
        """Return the mean of the parts that are known, times 100."""
        parts = [part for part in (self.alike, self.met) if part is not None]
        return 100 * fmean(parts) if parts else None


@dataclass(frozen=True)
class Consortium:
    """The sites of a study by what they told; `minimum` and `tasks` are the study's."""

    name: str
    study: str
    floor: int
    sites: tuple[SiteStatistics, ...]
    tasks: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    minimum: Mapping[str, int] = field(default_factory=dict[str, int])

    @property
    def fewer(self) -> str:
        """Return what stands wherever there are fewer people than the floor, or none."""
        return f"fewer than {self.floor}"

    @cached_property
    def groups(self) -> tuple[str, ...]:
        """Return all groups that are counted somewhere, in the order of the sites."""
        return tuple(dict.fromkeys(name for site in self.sites for name in site.counts))

    @cached_property
    def contrasts(self) -> tuple[str, ...]:
        """Return the contrasts of which intensities may be told."""
        return tuple(dict.fromkeys(name for site in self.sites for name in site.histograms))

    def told_groups(self) -> tuple[str, ...]:
        """Return the groups with a count, and all that the study says are there."""
        values = {g for g in self.groups if g.endswith((" = 0", " = 1"))}
        return tuple(g for g in self.groups if g not in values or any(self.row(g)))

    def row(self, group: str) -> tuple[int | None, ...]:
        """Return a group's count at each site; None is fewer than the floor."""
        return tuple(site.counts.get(group) for site in self.sites)

    def asks(self, site: SiteStatistics, group: str) -> bool:
        """Tell whether the study asks this site for a group at all."""
        return group in site.counts

    def total(self, group: str) -> int:
        """Return how many people of a group there are at all sites, at least."""
        return sum(number or 0 for number in self.row(group))

    @cached_property
    def scores(self) -> tuple[Compatibility, ...]:
        """Return each site's compatibility with the others."""
        return tuple(Compatibility(s.site, self._alike(s), self._met(s)) for s in self.sites)

    def _alike(self, site: SiteStatistics) -> float | None:
        found = [self.overlap(site, contrast) for contrast in site.histograms]
        known = [share for share in found if share is not None]
        return fmean(known) if known else None

    def overlap(self, site: SiteStatistics, contrast: str) -> float | None:
        """Return the overlap of a site's intensities with the mean of the others', from 0 to 1.

        It is the sum over bins of the smaller of two shares: 1 less the total variation distance.
        """
        own = shares_of(site, contrast)
        others = [shares_of(other, contrast) for other in self.sites if other is not site]
        known = [shares for shares in others if shares]
        if not own or not known:
            return None
        mean = [fmean(shares) for shares in zip(*known, strict=True)]
        return sum(min(pair) for pair in zip(own, mean, strict=True))

    def _met(self, site: SiteStatistics) -> float | None:
        demands = [not unmet for of in site.unmet.values() for unmet in of.values()]
        demands += [
            (site.counts[name] or 0) >= least // self.floor * self.floor
            for name, least in self.minimum.items()
            if name in site.counts
        ]
        return fmean(demands) if demands else None

    @cached_property
    def help(self) -> tuple[tuple[str, str], ...]:
        """Return what would help: a site's name, and a sentence."""
        return tuple((site.site, text) for site in self.sites for text in self._help(site))

    def _help(self, site: SiteStatistics) -> Iterable[str]:
        yield from _unmet(site)
        for name, least in self.minimum.items():
            told = site.counts.get(name)
            if name in site.counts and (told or 0) < least // self.floor * self.floor:
                found = f"at least {told}" if told else self.fewer
                yield f"{name}: {found} patients, and the study asks for {least}; find more."
        for task in self.tasks.get(site.site, ()):
            if site.counts.get(task) is None:
                yield f"{task}: {self.fewer} patients, or none; take the task from this site."
        for contrast in site.histograms:
            share = self.overlap(site, contrast)
            if share is not None and share < ALIKE:
                yield (
                    f"{contrast}: its intensities overlap with the others' by {100 * share:.0f} %; "
                    "correct bias and normalise them at the site (grandrounds site prepare), or "
                    "keep norms private (methods fedbn and pflsynth)."
                )
        yield from self._protocols(site)

    def _protocols(self, site: SiteStatistics) -> Iterable[str]:
        """Name the contrasts of which a site has settings that no other site has."""
        for contrast in site.histograms:
            found = [
                f"{QUANTITY_NAMES[name][0].lower()} {in_range(own, QUANTITY_NAMES[name][1])}"
                for name in _PROTOCOL
                if (own := site.quantiles[name].get(contrast)) and self._alone(site, name, contrast)
            ]
            if found:
                yield (
                    f"{contrast}: {', '.join(found)}, unlike every other site's; a method with "
                    "private parts (pflsynth) allows for a protocol of its own."
                )

    def _alone(self, site: SiteStatistics, name: str, contrast: str) -> bool:
        """Tell whether a site's values of a quantity lie apart from those of all others."""
        own = site.quantiles[name].get(contrast)
        others = [each.quantiles[name].get(contrast) for each in self.sites if each is not site]
        known = [each for each in others if each]
        return bool(own and known) and not any(_meet(own, each) for each in known if own)


def _unmet(site: SiteStatistics) -> Iterable[str]:
    for element, groups in site.unmet.items():
        what, help = ELEMENT_HELP[element]
        for group, number in groups.items():
            if number:
                yield f"{group}: at least {number} patients have {what}; {help}."


def shares_of(site: SiteStatistics, contrast: str) -> tuple[float, ...] | None:
    """Return a contrast's histogram so that its shares add up to 1; None where none is told."""
    told = site.histograms.get(contrast)
    total = sum(told) if told else 0.0
    return tuple(share / total for share in told) if told and total else None


def _meet(one: Quantiles, other: Quantiles) -> bool:
    return one[0].low < other[-1].high and other[0].low < one[-1].high


def in_range(found: Quantiles, unit: str) -> str:
    """Return from where to where values lie, in words, and where the middle one lies."""
    words = _from_to(found[0].low, found[-1].high)
    middle = next((each for each in found if each.share == 0.5), None)
    if middle and (middle.low, middle.high) != (found[0].low, found[-1].high):
        words += f", median {_from_to(middle.low, middle.high)}"
    return f"{words} {unit}".rstrip()


def _from_to(low: float, high: float) -> str:
    """Write a range; the bin that begins with 0 holds little else."""
    return "0" if low == 0 and high < _ALMOST_NOTHING else f"{low:g} to {high:g}"


@dataclass(frozen=True)
class DistributionRow:
    """One quantity or quality of a group, a text for each site; empty where nothing is told."""

    label: str
    group: str
    texts: tuple[str, ...]


def distribution_rows(consortium: Consortium) -> list[DistributionRow]:
    """Return every distribution that at least one site tells."""
    rows: list[DistributionRow] = []
    for name, (label, unit) in QUANTITY_NAMES.items():
        for group in _named(site.quantiles[name] for site in consortium.sites):
            found = [site.quantiles[name].get(group) for site in consortium.sites]
            texts = tuple(in_range(each, unit) if each else "" for each in found)
            rows.append(DistributionRow(label, "" if group == EVERYONE_HERE else group, texts))
    for name, label in KIND_NAMES.items():
        for group in _named(site.kinds[name] for site in consortium.sites):
            words = [site.kinds[name].get(group) for site in consortium.sites]
            texts = tuple(", ".join(each) if each else "" for each in words)
            rows.append(DistributionRow(label, group, texts))
    return [row for row in rows if any(row.texts)]


def _named(tables: Iterable[Mapping[str, object]]) -> Sequence[str]:
    return tuple(dict.fromkeys(name for table in tables for name in table))


def unmet_rows(consortium: Consortium) -> list[DistributionRow]:
    """Return every element that the study states, and how many people miss it at each site."""
    rows: list[DistributionRow] = []
    for element in _named(site.unmet for site in consortium.sites):
        for group in _named(site.unmet.get(element, {}) for site in consortium.sites):
            found = [site.unmet.get(element, {}).get(group) for site in consortium.sites]
            texts = tuple(f"{each} or more" if each else "" for each in found)
            rows.append(DistributionRow(ELEMENT_HELP[element][0], group, texts))
    return rows
