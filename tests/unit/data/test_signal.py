"""Signals of the tissue table under the sequences of four quite different sites."""

from dataclasses import dataclass
from math import exp

import pytest

from grandrounds.core.errors import BadStudy
from grandrounds.data.simulation.signal import TISSUES, Properties, Sequence, SequenceKind


@dataclass(frozen=True)
class Site:
    field: float
    t1w: Sequence
    t2w: Sequence
    pdw: Sequence
    flair: Sequence


def spin_echo(tr: float, te: float) -> Sequence:
    return Sequence("spin-echo", tr, te)


def flair(tr: float, te: float, ti: float) -> Sequence:
    return Sequence("inversion-recovery", tr, te, ti)


SITES = {
    "a": Site(
        1.5, spin_echo(500, 12), spin_echo(4500, 100), spin_echo(3000, 15), flair(9000, 110, 2500)
    ),
    "b": Site(
        3.0,
        Sequence("mprage", 2000, 3, ti=900),
        spin_echo(6000, 100),
        spin_echo(4000, 12),
        flair(9500, 120, 2550),
    ),
    "c": Site(
        1.5,
        Sequence("gradient-echo", 25, 4.6, flip=30),
        spin_echo(3500, 80),
        spin_echo(2200, 20),
        flair(8000, 120, 2200),
    ),
    "d": Site(
        3.0, flair(2000, 10, 860), spin_echo(4000, 85), spin_echo(3000, 10), flair(8500, 125, 2400)
    ),
}
every_site = pytest.mark.parametrize("site", SITES.values(), ids=SITES)


def to_white(site: Site, sequence: Sequence, tissue: str) -> float:
    white = sequence.signal(TISSUES["white"].at(site.field))
    return sequence.signal(TISSUES[tissue].at(site.field)) / white


@pytest.mark.parametrize(("name", "csf", "grey"), [("a", 0.36, 0.85), ("b", 0.01, 0.46)])
def test_t1w_shows_csf_dark_and_white_matter_bright(name: str, csf: float, grey: float) -> None:
    site = SITES[name]
    assert round(to_white(site, site.t1w, "csf"), 2) == csf
    assert round(to_white(site, site.t1w, "grey"), 2) == grey


@every_site
def test_t2w_shows_csf_brightest_then_lesions_then_grey_matter(site: Site) -> None:
    assert 2.3 <= round(to_white(site, site.t2w, "csf"), 1) <= 4.6
    assert 2.1 <= round(to_white(site, site.t2w, "lesion"), 1) <= 2.6
    assert 1.45 <= round(to_white(site, site.t2w, "grey"), 2) <= 1.59


@every_site
def test_pdw_shows_grey_matter_a_little_brighter_than_white(site: Site) -> None:
    assert 1.12 <= round(to_white(site, site.pdw, "grey"), 2) <= 1.19


@every_site
def test_flair_hides_csf_and_shows_lesions(site: Site) -> None:
    assert 0.04 <= round(to_white(site, site.flair, "csf"), 2) <= 0.26
    assert 1.23 <= round(to_white(site, site.flair, "grey"), 2) <= 1.36
    assert 2.2 <= round(to_white(site, site.flair, "lesion"), 1) <= 2.4


def test_the_four_sequences_follow_their_equations() -> None:
    tissue = Properties(density=0.5, t1=1000, t2=100)
    half, tenth = exp(-0.5), exp(-0.1)
    signals = {
        Sequence("spin-echo", 500, 10): 0.5 * (1 - half) * tenth,
        Sequence("inversion-recovery", 500, 10, ti=100): 0.5 * abs(1 - 2 * tenth + half) * tenth,
        Sequence("mprage", 500, 6, ti=100): 0.5 * abs(1 - 2 * tenth / (1 + half)) * tenth,
        Sequence("gradient-echo", 500, 6, flip=90): 0.5 * (1 - half) * tenth,
        Sequence("gradient-echo", 500, 6, flip=60): 0.5
        * (0.75**0.5 * (1 - half) / (1 - half / 2) * tenth),
    }
    for sequence, expected in signals.items():
        assert sequence.signal(tissue) == pytest.approx(expected)


def test_relaxation_is_linear_between_the_two_fields() -> None:
    assert TISSUES["white"].at(1.5) == Properties(0.68, 650, 75)
    assert TISSUES["white"].at(3.0) == Properties(0.68, 850, 68)
    assert TISSUES["white"].at(2.25) == Properties(0.68, 750, 71.5)


WRONG: list[tuple[SequenceKind, dict[str, float], str]] = [
    ("inversion-recovery", {"tr": 9000, "te": 110}, "has no ti; it takes tr, te and ti."),
    ("spin-echo", {"tr": 500, "te": 12, "flip": 90}, "has a flip; it takes tr and te."),
    ("spin-echo", {"tr": 500, "te": 0}, "has te = 0, which is not above 0; it takes tr and te."),
    (
        "spin-echo",
        {"tr": 12, "te": 500},
        "has te = 500, which is not below tr = 12; it takes tr and te.",
    ),
    (
        "gradient-echo",
        {"tr": 25, "te": 5, "flip": 180},
        "has flip = 180, which is not below 180; it takes tr, te and flip.",
    ),
]


@pytest.mark.parametrize(("kind", "settings", "sentence"), WRONG)
def test_a_wrong_sequence_is_refused_by_a_sentence(
    kind: SequenceKind, settings: dict[str, float], sentence: str
) -> None:
    with pytest.raises(BadStudy) as refused:
        Sequence(kind, **settings)
    assert str(refused.value) == f"a sequence of kind '{kind}' {sentence}"
