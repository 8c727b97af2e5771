"""A study's words become guards, in the order in which they touch an update."""

from grandrounds.privacy.clipping import ClipAndNoise
from grandrounds.privacy.composition import guards_of
from grandrounds.privacy.compression import Compression
from grandrounds.privacy.settings import Exchange, Privacy


def test_noise_comes_before_compression():
    guards = guards_of(Privacy("client", clip=2.0, noise=0.5), Exchange("int8"), {"alder": 1})
    assert guards.steps == (ClipAndNoise(2.0, 0.5), Compression(Exchange("int8")))
    assert guards.roster(1) == ("alder",)


def test_nothing_said_is_no_guard():
    assert not guards_of(Privacy(), Exchange(), {"alder": 1})
    assert guards_of(Privacy(), Exchange(deltas=True), {"alder": 1})
