"""Masks cancel in the sum, drop-outs are recovered, and what could show an update is refused."""

from dataclasses import replace
from math import inf, nan

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grandrounds.core.errors import BadUpdate
from grandrounds.core.weights import mean
from grandrounds.privacy.secure_sum.fixed_point import LARGEST_TOTAL, FixedPoint
from grandrounds.privacy.secure_sum.keys import simulated_signer
from grandrounds.privacy.secure_sum.recovery import recover_sum
from grandrounds.privacy.secure_sum.roster import SecureSumRefused
from grandrounds.privacy.secure_sum.secret_sharing import (
    PRIME,
    restore_secret,
    split_secret,
    threshold_of,
)
from grandrounds.privacy.secure_sum.session import MaskingSession

STUDY = "5" * 64
NAMES = ("alder", "birch", "cedar", "dogwood")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def sessions_of(names=NAMES, *, study=STUDY, round=3) -> dict[str, MaskingSession]:
    return {
        name: MaskingSession(name, study, round, names, simulated_signer(study, name))
        for name in names
    }


def exchanged(sessions, weights=None):
    """Advertise and share; return what each site sealed, by sender and receiver."""
    keys = [session.advertise((weights or {}).get(n, 1)) for n, session in sessions.items()]
    return {name: session.share(keys) for name, session in sessions.items()}


def for_site(name, sealed):
    return {sender: shares[name] for sender, shares in sealed.items() if sender != name}


def masked_by(sessions, vectors):
    masked = {name: vector.copy() for name, vector in vectors.items()}
    for name, vector in masked.items():
        sessions[name].mask(vector)
    return masked


def revealed_by(sessions, sealed, survivors, answering=None):
    return {
        name: sessions[name].reveal(survivors, for_site(name, sealed))
        for name in answering or survivors
    }


def vectors_of(names=NAMES, length=7):
    random = np.random.default_rng(1)
    return {name: random.integers(0, 2**32, length, np.uint32) for name in names}


@pytest.mark.slow
@settings(deadline=None, max_examples=12)
@given(data=st.data(), sites=st.integers(3, 5))
def test_masks_cancel_for_any_roster_shapes_and_dtypes(data, sites):
    """Identity 12: in the integers the masked sum is the plain sum, exactly."""
    shape = st.lists(st.integers(0, 3), max_size=3).map(tuple)
    kinds = data.draw(st.lists(st.tuples(shape, st.sampled_from(DTYPES)), min_size=1, max_size=4))
    names = tuple(f"site-{n}" for n in range(sites))
    weights = {name: data.draw(st.integers(1, 1000)) for name in names}
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32)))
    draw = [
        {
            f"t{i}": torch.randn(shape, generator=generator).to(kind)
            for i, (shape, kind) in enumerate(kinds)
        }
        for _ in range(sites + 1)
    ]
    encoding, total = FixedPoint.of(draw[0]), sum(weights.values())
    vectors = {
        name: encoding.encode(update, weights[name], total)
        for name, update in zip(names, draw[1:], strict=True)
    }
    sessions = sessions_of(names)
    sealed = exchanged(sessions, weights)
    masked = masked_by(sessions, vectors)
    recovered = recover_sum(sessions[names[0]].roster, masked, revealed_by(sessions, sealed, names))
    plain = sum(vector.astype(np.int64) for vector in vectors.values()) % 2**32
    assert (recovered == plain).all()
    found, weight = encoding.decode(recovered, total)
    assert weight == total
    expected = mean([{n: t.double() for n, t in u.items()} for u in draw[1:]], [*weights.values()])
    for name, tensor in found.items():
        near = torch.finfo(tensor.dtype).eps * expected[name].abs()
        near = near + encoding.step(name) * (sites / 2 + 0.01) + torch.finfo(tensor.dtype).tiny
        assert ((tensor.double() - expected[name]).abs() <= near).all()


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 2**24), min_size=1, max_size=64), st.floats(-1, 1), st.booleans())
def test_a_weighted_sum_never_overflows(weights, part, signs_alike):
    """The largest numbers that are taken, of any sites and weights, add up to less than 2^31."""
    encoding = FixedPoint.of({"w": torch.tensor([1.0])})
    bound, total = 2.0**10, sum(weights)
    number = bound if signs_alike else bound * part
    update = {"w": torch.tensor([number])}
    vectors = [encoding.encode(update, weight, total) for weight in weights]
    integers = sum(int(vector.view(np.int32)[0]) for vector in vectors)
    assert abs(integers) < 2**31
    assert sum(int(vector[-1]) for vector in vectors) == total < 2**31
    both = np.stack(vectors).sum(axis=0, dtype=np.uint32)
    found, _ = encoding.decode(np.asarray(both, np.uint32), total)
    assert abs(float(found["w"]) - number) <= (len(weights) / 2) * 2**-20 + 1e-6 * abs(number)


@pytest.mark.parametrize("number", [1025.0, -1025.0, inf, nan])
def test_a_number_out_of_range_is_refused_and_never_wraps(number):
    encoding = FixedPoint.of({"w": torch.tensor([1.0])})
    with pytest.raises(BadUpdate, match=r"'w' holds numbers .* adds up numbers from -1024 to 1024"):
        encoding.encode({"w": torch.tensor([number])}, 1, 3)


@pytest.mark.parametrize(("weight", "total"), [(0, 3), (4, 3), (1, LARGEST_TOTAL + 1)])
def test_a_weight_out_of_range_is_refused(weight, total):
    encoding = FixedPoint.of({"w": torch.tensor([1.0])})
    with pytest.raises(BadUpdate, match="the weight must be from 1 to the total"):
        encoding.encode({"w": torch.tensor([1.0])}, weight, total)


def test_other_tensors_than_those_of_the_start_are_refused():
    encoding = FixedPoint.of({"w": torch.zeros(2)})
    with pytest.raises(BadUpdate, match="'extra' is not in the update as it was"):
        encoding.encode({"w": torch.zeros(2), "extra": torch.zeros(1)}, 1, 3)
    with pytest.raises(BadUpdate, match="adds up real numbers"):
        FixedPoint.of({"count": torch.tensor(3)})


@settings(deadline=None, max_examples=25)
@given(secret=st.binary(min_size=32, max_size=32), sites=st.integers(1, 12), data=st.data())
def test_any_threshold_of_shares_restores_a_secret_and_fewer_do_not(secret, sites, data):
    needed = threshold_of(sites)
    shares = dict(enumerate(split_secret(secret, needed, sites)))
    chosen = data.draw(st.permutations(range(sites)))[: data.draw(st.integers(needed, sites))]
    assert restore_secret({place: shares[place] for place in chosen}, needed) == secret
    with pytest.raises(BadUpdate, match="are needed"):
        restore_secret({place: shares[place] for place in chosen[: needed - 1]}, needed)


def test_the_field_is_of_prime_order():
    assert all(pow(base, PRIME - 1, PRIME) == 1 for base in (2, 3, 5, 7, 11, 13))


def test_a_share_that_was_changed_is_noticed():
    shares = dict(enumerate(split_secret(bytes(32), 3, 4)))
    shares[1] = bytes([1]) + shares[1][1:]
    with pytest.raises(BadUpdate, match="not of one key"):
        restore_secret(shares, 3)


@pytest.mark.parametrize("lost", NAMES)
def test_a_site_that_drops_out_with_its_update_is_left_out_of_the_sum(lost):
    """It shared its keys and trained on: the others' masks for it are taken off."""
    sessions, vectors = sessions_of(), vectors_of()
    sealed = exchanged(sessions)
    survivors = tuple(name for name in NAMES if name != lost)
    masked = masked_by(sessions, {name: vectors[name] for name in survivors})
    revealed = revealed_by(sessions, sealed, survivors)
    found = recover_sum(sessions[survivors[0]].roster, masked, revealed)
    assert (found == sum(vectors[n].astype(np.int64) for n in survivors) % 2**32).all()


@pytest.mark.parametrize("lost", NAMES)
def test_a_site_that_drops_out_before_it_reveals_is_in_the_sum(lost):
    sessions, vectors = sessions_of(), vectors_of()
    sealed = exchanged(sessions)
    masked = masked_by(sessions, vectors)
    answering = tuple(name for name in NAMES if name != lost)
    revealed = revealed_by(sessions, sealed, NAMES, answering)
    found = recover_sum(sessions["alder"].roster, masked, revealed)
    assert (found == sum(v.astype(np.int64) for v in vectors.values()) % 2**32).all()


def test_below_the_threshold_nothing_is_recovered():
    sessions, vectors = sessions_of(), vectors_of()
    sealed = exchanged(sessions)
    few = NAMES[:2]
    masked = masked_by(sessions, {name: vectors[name] for name in few})
    with pytest.raises(SecureSumRefused, match="2 survivors of 4 sites"):
        sessions["alder"].reveal(few, for_site("alder", sealed))
    with pytest.raises(BadUpdate, match="2 of 4 sites sent a masked update"):
        recover_sum(sessions["alder"].roster, masked, {})
    masked |= masked_by(sessions, {n: vectors[n] for n in NAMES[2:]})
    with pytest.raises(BadUpdate, match="2 sites gave their share of a key; 3 are needed"):
        recover_sum(
            sessions["alder"].roster, masked, revealed_by(sessions, sealed, NAMES, NAMES[:2])
        )


@pytest.mark.parametrize("name", NAMES)
def test_every_site_refuses_to_reveal_both_keys_of_a_site(name):
    """First the survivors are all four; then one of them is said to have dropped out."""
    sessions = sessions_of()
    sealed = exchanged(sessions)
    masked_by(sessions, vectors_of())
    sessions[name].reveal(NAMES, for_site(name, sealed))
    fewer = tuple(each for each in NAMES if each != NAMES[NAMES.index(name) - 1])
    with pytest.raises(SecureSumRefused, match="other survivors were named before"):
        sessions[name].reveal(fewer, for_site(name, sealed))


def test_an_aggregator_that_names_different_survivors_to_different_sites_gets_no_sum():
    """Neither group alone reaches the threshold for one key of the site that they differ in."""
    sessions, vectors = sessions_of(), vectors_of()
    sealed = exchanged(sessions)
    masked = masked_by(sessions, vectors)
    without = ("birch", "cedar", "dogwood")
    told = {"birch": NAMES, "cedar": NAMES, "dogwood": without}
    revealed = {n: sessions[n].reveal(s, for_site(n, sealed)) for n, s in told.items()}
    secrets, keys = list(told.values()).count(NAMES), list(told.values()).count(without)
    assert max(secrets, keys) < threshold_of(len(NAMES))
    found = recover_sum(sessions["birch"].roster, masked, revealed)
    assert (found != sum(v.astype(np.int64) for v in vectors.values()) % 2**32).all()


def test_a_tampered_key_is_refused():
    sessions = sessions_of()
    keys = [session.advertise(1) for session in sessions.values()]
    keys[1] = replace(keys[1], masking=keys[0].sealing[::-1])
    with pytest.raises(SecureSumRefused, match=r"keys of site 'birch' .* not signed by that site"):
        sessions["alder"].share(keys)


@pytest.mark.parametrize(
    "change",
    [
        {"weight": 9},
        {"signature": bytes(64)},
        {"certificate": b"alder"},
        {"signature": b""},
    ],
)
def test_a_wrong_signature_is_refused(change):
    sessions = sessions_of()
    keys = [session.advertise(1) for session in sessions.values()]
    keys[2] = replace(keys[2], **change)
    with pytest.raises(SecureSumRefused, match=r"keys of site 'cedar' .* not signed by that site"):
        sessions["alder"].share(keys)


@pytest.mark.parametrize("other", [{"study": "6" * 64}, {"round": 2}])
def test_keys_of_another_study_or_round_are_refused(other):
    sessions, others = sessions_of(), sessions_of(**other)
    keys = [session.advertise(1) for session in sessions.values()]
    keys[3] = replace(others["dogwood"].advertise(1))
    with pytest.raises(SecureSumRefused, match="keys of site 'dogwood'"):
        sessions["alder"].share(keys)


def test_keys_of_an_earlier_attempt_reveal_nothing():
    """A replayed mask: the aggregator learned that site's key when it dropped out before."""
    before = sessions_of()
    sessions = sessions_of()
    old = before["dogwood"].advertise(1)
    keys = [session.advertise(1) for session in sessions.values()]
    keys[3] = old
    for name in NAMES[:3]:
        sessions[name].share(keys)
    sealed = {name: {"alder": bytes(82)} for name in NAMES}
    masked_by(sessions, vectors_of(NAMES[:3]))
    with pytest.raises(SecureSumRefused, match="was not sealed by it for this attempt"):
        sessions["alder"].reveal(NAMES[:3], for_site("alder", sealed))


def test_a_repeated_round_draws_fresh_keys_and_masks():
    """As after a kill: nothing of a session is on a disk, so a new one has other secrets."""
    vector = np.zeros(64, np.uint32)
    seen = []
    for _ in range(2):
        sessions = sessions_of()
        exchanged(sessions)
        seen.append(masked_by(sessions, {"alder": vector})["alder"])
    assert (seen[0] != seen[1]).mean() > 0.9


def test_a_session_masks_one_update_only():
    sessions = sessions_of()
    exchanged(sessions)
    masked_by(sessions, vectors_of())
    with pytest.raises(SecureSumRefused, match=r"masks of this attempt .* used already"):
        sessions["alder"].mask(np.zeros(7, np.uint32))
    with pytest.raises(SecureSumRefused, match="shared once"):
        sessions["alder"].share([])


def test_a_site_masks_nothing_before_it_knows_for_whom():
    session = sessions_of()["alder"]
    session.advertise(1)
    with pytest.raises(SecureSumRefused, match="were not exchanged"):
        session.mask(np.zeros(7, np.uint32))


def test_a_masked_update_looks_like_noise():
    sessions = sessions_of()
    exchanged(sessions)
    masked = masked_by(sessions, {name: np.zeros(2**16, np.uint32) for name in NAMES})
    ones = np.unpackbits(masked["alder"].view(np.uint8)).mean()
    assert abs(ones - 0.5) < 0.005


@pytest.mark.parametrize("names", [NAMES[:2], ("alder", "birch", "ash", "cedar")])
def test_too_few_or_other_sites_are_refused(names):
    sessions = sessions_of(names)
    own = sessions["alder"]
    own.allowed = NAMES
    keys = [session.advertise(1) for session in sessions.values()]
    with pytest.raises(SecureSumRefused, match=r"fewer than three sites|not those of the study"):
        own.share(keys)


def test_a_site_that_is_not_asked_with_its_own_keys_refuses():
    sessions = sessions_of()
    keys = [session.advertise(1) for session in sessions.values()]
    stranger = sessions_of()["alder"].advertise(1)
    with pytest.raises(SecureSumRefused, match="keys that this site advertised are not among"):
        sessions["alder"].share([stranger, *keys[1:]])


def test_shares_of_the_wrong_key_are_noticed_when_the_mask_is_taken_off():
    sessions = sessions_of()
    sealed = exchanged(sessions)
    survivors = NAMES[:3]
    masked = masked_by(sessions, vectors_of(survivors))
    revealed = revealed_by(sessions, sealed, survivors)
    for name in survivors:
        revealed[name]["dogwood"] = revealed[name]["alder"]
    with pytest.raises(BadUpdate, match="restore another key than it advertised"):
        recover_sum(sessions["alder"].roster, masked, revealed)


def test_a_sum_with_a_mask_left_in_it_is_refused():
    encoding = FixedPoint.of({"w": torch.zeros(3)})
    vector = encoding.encode({"w": torch.ones(3)}, 1, 3)
    vector[-1] = 2**32 - 5
    with pytest.raises(BadUpdate, match="a mask is left in their sum"):
        encoding.decode(vector, 3)
