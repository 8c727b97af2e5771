"""The guards that a study asks for are put in their order here."""

from collections.abc import Mapping

from grandrounds.privacy.clipping import ClipAndNoise
from grandrounds.privacy.compression import Compression
from grandrounds.privacy.guard import Guard, Guards
from grandrounds.privacy.settings import Exchange, Privacy


def guards_of(privacy: Privacy, exchange: Exchange, joins: Mapping[str, int]) -> Guards:
    """Return a study's guards: they clip and add noise, then compress, then mask.

    `joins` maps each site that trains, in roster order, to its first round. The study need not be
    checked yet.
    """
    steps: list[Guard] = []
    if privacy.kind == "client":
        steps.append(ClipAndNoise(privacy.clip or 0.0, privacy.noise or 0.0))
    if exchange.kind != "full" or exchange.sends_moves:
        steps.append(Compression(exchange))
    return Guards(tuple(steps), joins)
