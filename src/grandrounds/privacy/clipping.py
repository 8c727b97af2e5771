"""For differential privacy of whole sites, updates are clipped, and each has a share of noise."""

import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256, shake_256

import torch
from torch import Tensor

from grandrounds.core.messages import Reply
from grandrounds.core.seeds import seed_for
from grandrounds.core.state import State
from grandrounds.core.weights import Weights, digest
from grandrounds.privacy.guard import Demand, Departure, Layout

_SECRET = "noise/secret"  # among what a site keeps
_SECRET_BYTES = 32
_STEPS = 2**53  # in which a float64 counts from 0 to 1


@dataclass(frozen=True)
class ClipAndNoise:
    """A guard: the L2 norm of a site's update is at most `clip`, and Gaussian noise is added.

    The norm is of all tensors that leave, relative to where the site started. Each of the N sites
    of a round adds noise of standard deviation noise * clip / sqrt(N), so that the sum of their
    updates has noise * clip, and no server need be trusted to add it. McMahan et al. 2018; the
    noise in shares: Kairouz et al. 2021.
    """

    clip: float
    noise: float

    @property
    def word(self) -> str:
        return 'privacy.kind = "client"'

    def told(self, sites: int) -> str:
        alone = self.noise / math.sqrt(sites)
        return (
            f"privacy: a site's update is clipped to an L2 norm of {self.clip:g}; noise is added, "
            f"{self.noise:g} times that in the sum of all {sites} sites and {alone:g} times in one "
            "site's own update; losses, scores and counts have none"
        )

    def needs(self) -> Mapping[Demand, str]:
        single = "its noise is that of a mean of all sites, and here one site's update stands alone"
        return {
            "side by side": single,
            "one mean": "its noise is that of a mean of all sites, and here means are of groups",
            "mean": "its noise is worked out for a mean",
            "uniform shares": "one site may move the mean by clip / N at most, so all count alike",
            "rate of 1": "a measured rate reads each site's own update",
            "every site": "each site adds its share of the noise, and without one there is too "
            "little",
            "common start": "an update is clipped by how far it is from where all sites started",
            "the mean alone": "only the mean of all updates has the whole noise",
            "all tensors": "each tensor has the noise of all sites, so every site must send it",
            "no cosines": "they compare the sites' own updates, which lack most of the noise",
            "no statistics": "running statistics of batch norm have no bound, so they must stay",
        }

    def protect(self, departure: Departure) -> Departure:
        """Clip the update, and add this site's share of the noise."""
        clipped = self.clipped(departure.update, departure.start)
        if not self.noise:
            return replace(departure, update=clipped)
        secret = _secret_of(departure)
        key = noise_key(secret.numpy().tobytes(), departure, clipped)
        deviation = self.noise * self.clip / math.sqrt(len(departure.roster))
        update = {
            name: (tensor.double() + deviation * gaussian(key, name, tensor)).to(tensor.dtype)
            for name, tensor in clipped.items()
        }
        return replace(departure, update=update, kept=departure.kept | {_SECRET: secret})

    def clipped(self, update: Weights, start: Weights) -> Weights:
        """Return the update no further than `clip` from the start; one that is nearer, as it is."""
        moves = {name: tensor.double() - start[name].double() for name, tensor in update.items()}
        norm = math.sqrt(sum(float(move.square().sum()) for move in moves.values()))
        if norm <= self.clip:
            return update
        return {
            name: (start[name].double() + move * (self.clip / norm)).to(update[name].dtype)
            for name, move in moves.items()
        }

    def admit(self, replies: Sequence[Reply], state: State) -> Sequence[Reply]:  # noqa: ARG002
        return replies

    def layout(self, tensors: Layout) -> Layout:
        return tensors

    def problem(self, weights: Weights, tensors: Layout) -> str:  # noqa: ARG002
        return ""


def _secret_of(departure: Departure) -> Tensor:
    """Return the site's secret: the one of its data, or else the run's own.

    A run of its own secret would send the same update twice with different noise if its folder were
    lost, and the mean of the two has less.
    """
    if departure.secret:
        return torch.tensor(list(departure.secret), dtype=torch.uint8)
    kept = departure.kept.get(_SECRET)
    return _new_secret(departure) if kept is None else kept


def _new_secret(departure: Departure) -> Tensor:
    """Make a site's secret; a simulated one's follows from the study, which anybody may know."""
    secret = secrets.token_bytes(_SECRET_BYTES)
    if departure.simulated:
        address = f"{seed_for(departure.seed, departure.site, 'noise')}"
        secret = sha256(address.encode()).digest()
    return torch.tensor(list(secret), dtype=torch.uint8)


def noise_key(secret: bytes, departure: Departure, clipped: Weights) -> bytes:
    """Return the key of the noise of one departure.

    It depends on what the noise covers: a round that is repeated with another start or other data
    gets other noise, or the difference of the two would show the update itself; one that is
    repeated as it was sends the same bits.
    """
    address = (departure.site, str(departure.round), ",".join(departure.roster))
    covered = (digest(departure.start), digest(clipped))
    return sha256(secret + "\x1f".join((*address, *covered)).encode()).digest()


def gaussian(key: bytes, name: str, like: Tensor) -> Tensor:
    """Return standard normal numbers in float64, in the shape of a tensor.

    They come from SHAKE-256, since what a generator for simulations has drawn tells what it draws
    next. Box and Muller 1958.
    """
    pairs = (like.numel() + 1) // 2
    if not pairs:
        return torch.zeros(like.shape, dtype=torch.float64)
    stream = shake_256(key + name.encode()).digest(16 * pairs)
    whole = torch.frombuffer(bytearray(stream), dtype=torch.int64)
    first, second = (((whole >> 11) & (_STEPS - 1)) + 1).double().div(_STEPS).chunk(2)
    radius, angle = (-2 * first.log()).sqrt(), 2 * math.pi * second
    drawn = torch.cat([radius * angle.cos(), radius * angle.sin()])
    return drawn[: like.numel()].view(like.shape)
