"""What a site keeps on its own disk."""

from collections.abc import Generator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import pytest
from torch import tensor

from grandrounds.core.errors import BadFolder
from grandrounds.core.state import State
from grandrounds.core.weights import Weights, digest
from grandrounds.site import model_state as kept
from grandrounds.site.model_state import PERSONAL, ReadAhead, SiteStore
from tests.helpers.damage import flip

PRIVATE: Weights = {
    "generator.weight": tensor([1.0]),
    "optimizer/generator/weight/step": tensor([2.0]),
    "control/generator.weight": tensor([3.0]),
    f"{PERSONAL}generator.weight": tensor([4.0]),
    f"{PERSONAL}optimizer/generator/weight/step": tensor([5.0]),
}


def save(site: SiteStore, *rounds: int) -> None:
    for round in rounds:
        site.private.save(round, PRIVATE, {}, set())


def merge(site: SiteStore, *rounds: int, best: int = 0) -> None:
    for round in rounds:
        site.save_merged(State({"w": tensor([float(round)])}, round, best_round=best))


def test_a_site_that_only_trains_holds_its_private_rounds(tmp_path: Path):
    save(SiteStore(tmp_path), 1, 2)
    assert SiteStore(tmp_path).rounds() == (1, 2)


def test_where_leaders_merge_a_round_needs_the_merged_model_too(tmp_path: Path):
    """Killed between training and adopting, a site cannot go on from the newest round."""
    site = SiteStore(tmp_path)
    save(site, 1, 2)
    merge(site, 1)
    assert site.rounds() == (1,)
    merge(site, 2)
    assert site.rounds() == (1, 2)


def test_a_merged_model_comes_back_with_what_goes_with_it(tmp_path: Path):
    site = SiteStore(tmp_path)
    state = State({"w": tensor([1.0])}, 3, {"m/w": tensor([2.0]).double()})
    site.save_merged(state)
    found = site.merged(3)
    assert (digest(found.weights), digest(found.memory)) == (
        digest(state.weights),
        digest(state.memory),
    )
    assert found.round == 3
    assert site.has_merged(3)
    assert not site.has_merged(2)


def test_merged_models_of_the_newest_three_rounds_and_the_best_are_kept(tmp_path: Path):
    site = SiteStore(tmp_path)
    merge(site, 1, 2, 3, 4, 5, best=2)
    assert [round for round in range(1, 6) if site.has_merged(round)] == [2, 3, 4, 5]
    merge(site, 6, best=2)
    assert [round for round in range(1, 7) if site.has_merged(round)] == [2, 4, 5, 6]


def test_a_site_keeps_the_two_rounds_that_it_took_part_in_before(tmp_path: Path):
    site = SiteStore(tmp_path)
    for round in (1, 2, 3, 6, 7):
        site.save_private(round, PRIVATE, digest(PRIVATE), set())
    assert site.rounds() == (3, 6, 7)


def test_a_round_that_a_disk_changed_is_not_intact_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    site = SiteStore(tmp_path)
    for round in (1, 2):
        site.save_private(round, PRIVATE, digest(PRIVATE), set())
        merge(site, round)
    flip(site.private.path(2))
    assert (site.rounds(), site.intact_rounds()) == ((1, 2), (1,))
    assert "round-000002.safetensors: is not what was saved" in caplog.text
    flip(tmp_path / "merged/state/round-000001.safetensors")
    assert site.intact_rounds() == ()


def test_a_tuned_model_comes_back_to_the_bit(tmp_path: Path):
    site = SiteStore(tmp_path)
    site.save_tuned({"w": tensor([1 / 3])})
    assert digest(site.load_tuned()) == digest({"w": tensor([1 / 3])})


def test_a_model_that_was_never_tuned_is_missed(tmp_path: Path):
    with pytest.raises(BadFolder, match=r"tuned\.safetensors: not a readable"):
        SiteStore(tmp_path).load_tuned()


def test_private_state_is_told_apart_by_its_names():
    assert [t.item() for t in kept.model_tensors(PRIVATE).values()] == [1.0]
    assert [t.item() for t in kept.optimizer_tensors(PRIVATE).values()] == [2.0]
    personal = kept.personal_tensors(PRIVATE)
    assert list(personal) == ["generator.weight", "optimizer/generator/weight/step"]
    assert [t.item() for t in personal.values()] == [4.0, 5.0]


@pytest.fixture
def disk() -> Generator[Executor, None, None]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


def reading(site: SiteStore, round: int, disk: Executor) -> ReadAhead:
    ahead = ReadAhead()
    ahead.begin(site.private, round, disk)
    return ahead


def test_what_was_read_ahead_is_taken_once(tmp_path: Path, disk: Executor):
    site = SiteStore(tmp_path)
    save(site, 1)
    path = site.private.path(1)
    ahead = reading(site, 1, disk)
    read = ahead.take(path)
    assert read is not None
    assert digest(read) == digest(site.private.load(1)[0])
    assert ahead.take(path) is None


def test_what_was_read_ahead_is_left_where_the_round_was_saved_anew(tmp_path: Path, disk: Executor):
    site = SiteStore(tmp_path)
    save(site, 1)
    ahead = reading(site, 1, disk)
    other = {"w": tensor([1.0])}
    site.save_private(1, other, digest(other), set())
    assert ahead.take(site.private.path(1)) is None


def test_another_round_is_not_taken_and_a_missing_one_not_read(tmp_path: Path, disk: Executor):
    site = SiteStore(tmp_path)
    save(site, 1, 2)
    assert reading(site, 1, disk).take(site.private.path(2)) is None
    assert reading(site, 3, disk).take(site.private.path(3)) is None


def test_damage_that_was_read_ahead_is_told_when_it_is_needed(tmp_path: Path, disk: Executor):
    site = SiteStore(tmp_path)
    save(site, 1)
    path = site.private.path(1)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    ahead = reading(site, 1, disk)
    with pytest.raises(BadFolder, match="not what was saved"):
        ahead.take(path)
