from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import tensor

from grandrounds.core.errors import BadFolder
from grandrounds.core.state import (
    NO_SCORE,
    RoundStore,
    State,
    load_state,
    read_sealed,
    save_state,
    saved_rounds,
    write_sealed,
)
from grandrounds.core.weights import Weights, digest, write
from tests.helpers.damage import flip

SHARED: Weights = {"a/b": tensor([1.0, -0.0]), "weights/odd": tensor([2.0]).bfloat16()}


def save(folder: Path, *rounds: int, keep: int = 0) -> RoundStore:
    held = RoundStore(folder)
    for round in rounds:
        held.save(round, {"w": tensor([float(round)])}, {}, keep={keep})
    return held


def test_a_state_comes_back_to_the_bit(tmp_path: Path):
    state = State(
        SHARED,
        4,
        {"a/b": tensor([3.0])},
        best_round=2,
        best_score=1 / 3,
        held="ab",
        seen={"x": 3},
        best_seen={"y": 1},
    )
    save_state(tmp_path, state)
    found = load_state(tmp_path, 4)
    assert digest(found.weights) == digest(state.weights)
    assert digest(found.memory) == digest(state.memory)
    assert replace(found, weights={}, memory={}) == replace(state, weights={}, memory={})


def test_a_state_that_was_never_scored_comes_back(tmp_path: Path):
    save_state(tmp_path, State({}, 1))
    assert load_state(tmp_path, 1).best_score == NO_SCORE


def test_the_newest_two_rounds_are_kept(tmp_path: Path):
    assert save(tmp_path, 1, 2, 3, 4).rounds() == (3, 4)


def test_the_best_round_is_kept_beside_the_newest_two(tmp_path: Path):
    assert save(tmp_path, 1, 2, 3, 4, 5, keep=1).rounds() == (1, 4, 5)


def test_a_best_round_that_was_beaten_is_dropped(tmp_path: Path):
    save(tmp_path, 1, 2, 3, 4, keep=1)
    assert save(tmp_path, 5, keep=4).rounds() == (4, 5)


def test_a_state_keeps_its_best_round(tmp_path: Path):
    for round in range(1, 7):
        save_state(tmp_path, State(SHARED, round, best_round=min(round, 2)))
    assert RoundStore(tmp_path / "state").rounds() == (2, 5, 6)


def test_a_round_that_is_played_again_replaces_the_first_and_later_ones(tmp_path: Path):
    """After a crash, what lies beyond the round resumed from is of another course."""
    held = save(tmp_path, 1, 2, 3)
    held.save(2, {"w": tensor([20.0])}, {}, keep=set())
    assert held.load(2)[0]["w"].item() == 20.0
    assert 3 not in held.rounds()


def test_rounds_sort_by_number(tmp_path: Path):
    for round in (10, 9, 1_000_000):
        RoundStore(tmp_path).save(round, {"w": torch.zeros(1)}, {}, keep={9 if round > 9 else 10})
    assert RoundStore(tmp_path).rounds() == (9, 1_000_000)


def test_what_a_killed_write_left_is_no_round(tmp_path: Path):
    held = save(tmp_path, 1)
    (tmp_path / ".round-000002.safetensors.99.tmp").write_bytes(b"half")
    assert held.rounds() == (1,)


def test_a_missing_round_is_named_with_what_is_held(tmp_path: Path):
    with pytest.raises(BadFolder, match=r"round 5 is not here; held: 1, 2$"):
        save(tmp_path, 1, 2).load(5)
    with pytest.raises(BadFolder, match=r"round 1 is not here; held: none$"):
        RoundStore(tmp_path / "nothing").load(1)


def test_a_file_with_any_bit_flipped_is_no_state(tmp_path: Path):
    """Notes too: they say which round was the best."""
    state = State(SHARED, 1, {"a/b": tensor([3.0])}, best_round=1, seen={"x": 3})
    save_state(tmp_path, state)
    path = saved_rounds(tmp_path).path(1)
    for at in range(0, path.stat().st_size, 5):
        flip(path, at)
        try:
            same = load_state(tmp_path, 1)  # a bit in the space between header and tensors
            assert digest(same.weights) == digest(state.weights)
            assert replace(same, weights={}, memory={}) == replace(state, weights={}, memory={})
        except BadFolder:
            pass
        flip(path, at)
    flip(path)
    with pytest.raises(BadFolder, match=r"round-000001\.safetensors: is not what was saved"):
        load_state(tmp_path, 1)


def test_a_file_that_cannot_be_read_is_a_bad_folder(tmp_path: Path):
    RoundStore(tmp_path).path(1).mkdir()
    with pytest.raises(BadFolder, match="not a readable safetensors file"):
        RoundStore(tmp_path).load(1)


def test_a_file_without_digests_is_of_an_older_version(tmp_path: Path):
    write(RoundStore(tmp_path).path(1), SHARED)
    assert digest(RoundStore(tmp_path).load(1)[0]) == digest(SHARED)


def test_a_state_without_absences_speaks_of_its_own_rounds():
    state = State({}, 5, best_round=3, seen={"b": 2}, best_seen={"b": 1})
    assert (state.last_of("a"), state.last_of("b")) == (5, 2)
    assert (state.best_of("a"), state.best_of("b")) == (3, 1)


def test_a_state_without_weights_is_fingerprinted_where_they_lie():
    assert State(SHARED).fingerprint == digest(SHARED)
    assert State({}, held="ab").fingerprint == "ab"


def test_a_model_comes_back_with_its_notes_and_any_reader_of_safetensors_reads_it(tmp_path: Path):
    from safetensors.torch import load_file

    path = tmp_path / "model.safetensors"
    write_sealed(path, SHARED, {"round": "3"})
    tensors, notes = read_sealed(path)
    assert digest(tensors) == digest(SHARED) == digest(load_file(path))
    assert notes["round"] == "3"


@pytest.mark.parametrize("at", [-1, 60])
def test_a_model_with_one_bit_changed_is_not_read(at: int, tmp_path: Path):
    """In a tensor, and in the notes before them."""
    path = tmp_path / "model.safetensors"
    write_sealed(path, SHARED, {"round": "3"})
    flip(path, at)
    with pytest.raises(BadFolder, match=r"model\.safetensors: "):
        read_sealed(path)


def test_a_model_of_a_version_that_wrote_no_digests_is_read(tmp_path: Path):
    path = tmp_path / "model.safetensors"
    write(path, SHARED, {"round": "3"})
    assert digest(read_sealed(path)[0]) == digest(SHARED)
