"""What secure aggregation costs beside the plain mean, and beside CKKS, in seconds and bytes.

Compared on the same updates (25 MiB of float32 by default) for 4, 8, 16 and 32 sites: the plain
mean (message encoded at a site; decoded and averaged at the server), the secure sum (keys, shares,
fixed point, masks and message at a site; message, sum, masks taken off and mean at the server), and
CKKS of TenSEAL, if that is installed (`pip install tenseal`): encrypted and serialised at a site;
read, added up and, at a site, decrypted. Sites work side by side, so the time of a round here is
one site's and the server's; transport is not in it. `time_4` to `time_32` are the seconds of the
secure sum over those of the plain mean, `bytes_4` to `bytes_32` what a site sends and receives for
it over the plain update and model; `ckks_time_N` and `ckks_bytes_N` are those of CKKS.

    python benchmarks/secure_sum.py [--json] [--sites 4 8] [--mebibytes 25] [--without-ckks]
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, TypeVar

import torch

from grandrounds.core.messages import Reply, decode, encode
from grandrounds.core.weights import Weights, mean
from grandrounds.privacy.secure_sum.fixed_point import (
    FixedPoint,
    MaskedVector,
    tensor_of,
    vector_of,
)
from grandrounds.privacy.secure_sum.guard import SUM
from grandrounds.privacy.secure_sum.keys import simulated_signer
from grandrounds.privacy.secure_sum.recovery import recover_sum
from grandrounds.privacy.secure_sum.session import MaskingSession
from grandrounds.privacy.secure_sum.wire import keys_to_tensors

STUDY = "0" * 64
EXAMPLES = 100
SLOTS, DEGREE, MODULI, SCALE = 4096, 8192, [60, 40, 60], 2.0**40
Value = TypeVar("Value")


@dataclass(frozen=True)
class Cost:
    """Of one round: seconds of one site and of the server, bytes of one site both ways."""

    site: float
    server: float
    bytes: int

    @property
    def seconds(self) -> float:
        return self.site + self.server


def timed(work: Callable[[], Value]) -> tuple[Value, float]:
    began = time.perf_counter()
    return work(), time.perf_counter() - began


def updates_of(sites: int, mebibytes: float) -> tuple[Weights, list[Weights]]:
    """A start, and what each site trained from it: ten tensors of normal numbers."""
    size = int(mebibytes * 2**20 / 4 / 10)
    generator = torch.Generator().manual_seed(1)
    start = {f"layer{n}.weight": torch.randn(size, generator=generator) for n in range(10)}
    moved = [
        {name: t + 0.01 * torch.randn(size, generator=generator) for name, t in start.items()}
        for _ in range(sites)
    ]
    return start, moved


def plain(updates: Sequence[Weights]) -> tuple[Weights, Cost]:
    message, site = timed(lambda: encode(Reply(site="site-00", round=1, weights=updates[0])))
    messages = [message, *(encode(Reply(site="s", round=1, weights=u)) for u in updates[1:])]

    def merged() -> Weights:
        received = [reply.weights for reply in map(decode, messages) if isinstance(reply, Reply)]
        return mean(received, [EXAMPLES] * len(updates))

    average, server = timed(merged)
    return average, Cost(site, server, 2 * len(message))


def secure(start: Weights, updates: Sequence[Weights]) -> tuple[Weights, Cost]:
    names = tuple(f"site-{n:02d}" for n in range(len(updates)))
    sessions = {
        name: MaskingSession(name, STUDY, 1, names, simulated_signer(STUDY, name)) for name in names
    }
    keys, advertising = timed(lambda: [s.advertise(EXAMPLES) for s in sessions.values()])
    sealed, sharing = timed(lambda: {n: s.share(keys) for n, s in sessions.items()})
    masking = [
        timed(lambda n=n, u=u: masked(sessions[n], start, u))
        for n, u in zip(names, updates, strict=True)
    ]
    messages = {name: message for name, (message, _) in zip(names, masking, strict=True)}
    theirs = {n: {m: shares[n] for m, shares in sealed.items() if m != n} for n in names}
    revealed, revealing = timed(
        lambda: {name: s.reveal(names, theirs[name]) for name, s in sessions.items()}
    )
    roster = sessions[names[0]].roster

    def merged() -> Weights:
        vectors = {name: vector_of(read(message)) for name, message in messages.items()}
        total = recover_sum(roster, vectors, revealed)
        return FixedPoint.of(start).decode(total, roster.total)[0]

    average, server = timed(merged)
    small = (advertising + sharing + revealing) / len(names)
    site = masking[0][1] + small
    model = len(encode(Reply(site=names[0], round=1, weights=start)))
    one_key = sum(tensor.nbytes for tensor in keys_to_tensors(keys[0]).values())
    shares = sum(map(len, sealed[names[0]].values()))
    protocol = one_key * (1 + len(names)) + 2 * shares + sum(map(len, revealed[names[0]].values()))
    return average, Cost(site, server, model + len(messages[names[0]]) + protocol)


def masked(session: MaskingSession, start: Weights, update: Weights) -> bytes:
    vector: MaskedVector = FixedPoint.of(start).encode(update, session.weight, session.total)
    session.mask(vector)
    return encode(Reply(site=session.site, round=1, weights={SUM: tensor_of(vector)}))


def read(message: bytes) -> torch.Tensor:
    reply = decode(message)
    assert isinstance(reply, Reply)
    return reply.weights[SUM]


def ckks(tenseal: Any, update: Weights, sites: int) -> Cost:
    """Encrypt chunk by chunk, as many numbers as a ciphertext has slots; add once for each site."""
    context = tenseal.context(tenseal.SCHEME_TYPE.CKKS, DEGREE, coeff_mod_bit_sizes=MODULI)
    context.global_scale = SCALE
    numbers = torch.cat([tensor.reshape(-1) for tensor in update.values()])
    site = server = 0.0
    sent = 0
    for chunk in numbers.split(SLOTS):
        values = chunk.tolist()
        data, took = timed(lambda v=values: tenseal.ckks_vector(context, v).serialize())
        sent += len(data)
        received, reading = timed(lambda d=data: tenseal.ckks_vector_from(context, d))
        total, adding = timed(lambda r=received: r + r)
        _, opening = timed(total.decrypt)
        site += took + opening
        server += sites * (reading + adding)
    return Cost(site, server, 2 * sent)


def ckks_library() -> Any:
    """TenSEAL, or nothing where it is not installed."""
    try:
        return import_module("tenseal")
    except ModuleNotFoundError:
        return None


def measured(sites: int, mebibytes: float, tenseal: Any) -> dict[str, Cost]:
    start, updates = updates_of(sites, mebibytes)
    expected, of_plain = plain(updates)
    found, of_secure = secure(start, updates)
    for name, tensor in found.items():
        step = FixedPoint.of(start).step(name)
        assert (tensor - expected[name]).abs().max() <= sites * step + 1e-6
    costs = {"plain": of_plain, "secure": of_secure}
    return costs | ({"ckks": ckks(tenseal, updates[0], sites)} if tenseal else {})


def ratios(costs: Mapping[int, Mapping[str, Cost]]) -> dict[str, float]:
    found = dict[str, float]()
    for sites, by_kind in costs.items():
        for kind, start in (("secure", ""), ("ckks", "ckks_")):
            if kind in by_kind:
                seconds = by_kind[kind].seconds / by_kind["plain"].seconds
                found[f"{start}time_{sites}"] = round(seconds, 3)
                sent = by_kind[kind].bytes / by_kind["plain"].bytes
                found[f"{start}bytes_{sites}"] = round(sent, 4)
    return found


def table(costs: Mapping[int, Mapping[str, Cost]]) -> str:
    lines = [f"{'sites':>5} {'':7} {'site, s':>9} {'server, s':>10} {'MiB of a site':>14}"]
    for sites, by_kind in costs.items():
        for kind, cost in by_kind.items():
            mebibytes = cost.bytes / 2**20
            words = f"{cost.site:9.3f} {cost.server:10.3f} {mebibytes:14.2f}"
            lines.append(f"{sites:5} {kind:7} {words}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--sites", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--mebibytes", type=float, default=25.0)
    parser.add_argument("--without-ckks", action="store_true")
    options = parser.parse_args()
    tenseal = None if options.without_ckks else ckks_library()
    costs = {n: measured(n, options.mebibytes, tenseal) for n in options.sites}
    print(json.dumps(ratios(costs)) if options.json else table(costs))


if __name__ == "__main__":
    main()
