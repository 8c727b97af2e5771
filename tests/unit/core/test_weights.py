import errno
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, tensor

from grandrounds.core.errors import BadFolder, BadUpdate, DiskFailed
from grandrounds.core.files import write_bytes
from grandrounds.core.weights import (
    Weights,
    digest,
    first_not_finite,
    mean,
    name_in,
    name_starts,
    num_bytes,
    read,
    select,
    to_cpu,
    unaliased,
    write,
)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The operating system itself refuses to write more, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_larger_site_pulls_the_mean():
    a, b = {"w": tensor([0.0])}, {"w": tensor([4.0])}
    assert mean([a, b], [3, 1])["w"] == 1.0
    assert mean([a, b], [1, 3])["w"] == 3.0


def test_mean_accumulates_in_float64():
    """In float32 each of the small terms is lost beside the large one."""
    updates: list[Weights] = [{"w": tensor([value])} for value in (2.0**26, 2.0, 2.0, 4.0)]
    found = mean(updates, [1, 1, 1, 1])["w"]
    assert found.item() == 2.0**24 + 2
    assert found.dtype == torch.float32


def test_mean_of_tensors_of_any_shape_is_that_of_their_numbers():
    """Some are larger than what is averaged at a time, one has no axis, one lies otherwise."""
    draw = torch.Generator().manual_seed(1)
    shapes = {"large": (3, 50_000), "one": (), "none": (0, 2), "small": (2, 3)}
    updates = [
        {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}
        | {"turned": torch.randn(400, 300, generator=draw).T}
        for _ in range(3)
    ]
    found = mean(updates, [1, 2, 5])
    for name, tensors in {n: [u[n].double() for u in updates] for n in updates[0]}.items():
        first, second, third = tensors
        expected = (first * (1 / 8) + second * (2 / 8) + third * (5 / 8)).float()
        assert torch.equal(found[name], expected), name


def test_mean_adds_in_the_order_given():
    large, minus, one, none = ({"w": tensor([v]).double()} for v in (1e17, -1e17, 1.0, 0.0))
    assert mean([large, minus, one, none], [1, 1, 1, 1])["w"].item() == 0.25
    assert mean([large, one, minus, none], [1, 1, 1, 1])["w"].item() == 0.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_mean_keeps_the_dtype(dtype: torch.dtype):
    updates = [{"w": torch.full((2, 3), value, dtype=dtype)} for value in (1.0, 2.0)]
    found = mean(updates, [1, 1])["w"]
    assert torch.equal(found, torch.full((2, 3), 1.5, dtype=dtype))


@settings(max_examples=50, deadline=None, derandomize=True, database=None)
@given(
    st.lists(
        st.tuples(st.floats(-1e6, 1e6, width=32), st.integers(1, 10_000)), min_size=1, max_size=6
    )
)
def test_mean_is_no_further_out_than_its_updates(found: list[tuple[float, int]]):
    values, shares = zip(*found, strict=True)
    average = mean([{"w": tensor([v])} for v in values], shares)["w"].item()
    assert average == pytest.approx(min(max(average, min(values)), max(values)), rel=1e-6)


def test_the_mean_of_one_site_is_its_own_update_to_the_bit():
    own = {"w": torch.randn(64, generator=torch.Generator().manual_seed(0))}
    assert digest(mean([own], [37])) == digest(own)


def test_updates_of_other_names_do_not_fit():
    with pytest.raises(BadUpdate) as refused:
        mean([{"a": tensor([1.0]), "b": tensor([1.0])}, {"a": tensor([1.0])}], [1, 1])
    assert str(refused.value) == (
        "updates differ in 1 tensors, first 'b': torch.Size([1]) and None; "
        "every site must send the same names"
    )


def test_updates_of_other_shapes_do_not_fit():
    with pytest.raises(BadUpdate, match=r"first 'a': torch.Size\(\[1\]\) and torch.Size\(\[2\]\)"):
        mean([{"a": tensor([1.0])}, {"a": tensor([1.0, 2.0])}], [1, 1])


BASE: Weights = {"w": tensor([1.0, 2.0]), "n": tensor([1, 2])}
NEXT_FLOAT = torch.nextafter(tensor([1.0, 2.0]), tensor([9.0, 0.0]))


@pytest.mark.parametrize(
    "other",
    [
        {"w": NEXT_FLOAT, "n": BASE["n"]},
        {"v": BASE["w"], "n": BASE["n"]},
        {"w": BASE["w"].double(), "n": BASE["n"]},
        {"w": BASE["w"][None], "n": BASE["n"]},
        {"w": BASE["w"]},
        {"w": tensor([1.0, 2.0]).view(torch.int32), "n": BASE["n"]},
    ],
    ids=["one bit", "a name", "a dtype", "a shape", "a tensor less", "same bits as integers"],
)
def test_digest_changes_with(other: Weights):
    assert digest(other) != digest(BASE)


def test_digest_ignores_the_order_of_names_and_the_layout_in_memory():
    square = torch.arange(6.0).reshape(2, 3)
    assert digest({"a": square, "n": BASE["n"]}) == digest({"n": BASE["n"], "a": square.t().t()})
    assert digest({"a": square.t()}) == digest({"a": square.t().contiguous()})


def test_digest_tells_minus_zero_from_zero():
    assert digest({"w": tensor([0.0])}) != digest({"w": tensor([-0.0])})


def test_filters_select_by_start_or_exactly_and_keep_the_order():
    names = {"b.x": tensor(1), "a.x": tensor(2), "ab": tensor(3)}
    assert list(select(names, name_starts("a.", "b."))) == ["b.x", "a.x"]
    assert list(select(names, name_in(frozenset({"ab"})))) == ["ab"]


def test_copies_share_no_memory():
    own = torch.zeros(2, requires_grad=True)
    copy = to_cpu({"w": own})["w"]
    copy += 1
    assert not copy.requires_grad
    assert torch.equal(own.detach(), torch.zeros(2))


def test_what_shares_memory_or_lies_askew_in_it_is_copied_and_nothing_else():
    whole, turned = torch.arange(4.0), torch.arange(6.0).reshape(2, 3).T
    alone = unaliased({"whole": whole, "again": whole, "turned": turned})
    assert alone["whole"] is whole
    assert alone["again"].data_ptr() != whole.data_ptr()
    assert alone["turned"].is_contiguous()
    assert all(torch.equal(alone[n], t) for n, t in {"again": whole, "turned": turned}.items())


def test_bytes_count_dtypes():
    assert num_bytes({"a": torch.zeros(3), "b": torch.zeros(2, dtype=torch.bfloat16)}) == 16


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_named(odd: float):
    weights = {"a": tensor([1.0]), "n": tensor([3]), "b": tensor([1.0, odd])}
    assert first_not_finite(weights) == "b"
    assert first_not_finite({"a": weights["a"], "n": weights["n"]}) is None


def test_a_file_comes_back_with_bits_dtypes_and_notes(tmp_path: Path):
    weights = {"w": tensor([float("nan"), -0.0], dtype=torch.bfloat16), "n": tensor(3)}
    write(tmp_path / "deep" / "w.safetensors", weights, {"site": "alder"})
    found, notes = read(tmp_path / "deep" / "w.safetensors")
    assert digest(found) == digest(weights)
    assert notes == {"site": "alder"}


@pytest.mark.parametrize("damage", [b"", b"junk", None])
def test_a_damaged_or_missing_file_is_a_bad_folder(tmp_path: Path, damage: bytes | None):
    path = tmp_path / "w.safetensors"
    if damage is not None:
        path.write_bytes(damage)
    with pytest.raises(BadFolder, match=r"w.safetensors: not a readable safetensors file"):
        read(path)


def test_a_half_written_file_is_a_bad_folder(tmp_path: Path):
    path = tmp_path / "w.safetensors"
    write(path, {"w": torch.zeros(1000)})
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(BadFolder):
        read(path)


def test_a_write_that_fails_leaves_the_old_file_and_no_temporary(tmp_path: Path):
    path = tmp_path / "w.safetensors"
    write(path, {"w": tensor([7.0])})
    with files_of_at_most(4096), pytest.raises(DiskFailed) as refused:
        write(path, {"w": torch.zeros(100_000)})
    assert str(refused.value) == (
        f"cannot write {path}: File too large; what was saved before is intact. "
        "Free some space or correct the folder, then continue with --resume."
    )
    assert read(path)[0]["w"].item() == 7.0
    assert list(tmp_path.iterdir()) == [path]


def test_a_disk_that_fails_to_flush_leaves_the_old_file_and_no_temporary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "study.toml"
    write_bytes(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DiskFailed, match="No space left on device; what was saved before is"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_where_a_folder_should_be_is_a_failed_disk(tmp_path: Path):
    (tmp_path / "state").write_text("in the way")
    with pytest.raises(DiskFailed):
        write(tmp_path / "state" / "w.safetensors", {"w": tensor([1.0])})


def test_a_file_can_be_written_over_a_reader(tmp_path: Path):
    """A mapped reader keeps what it opened: the new file is another one."""
    path = tmp_path / "w.safetensors"
    write(path, {"w": torch.zeros(1000)})
    old: Tensor = read(path)[0]["w"]
    write(path, {"w": torch.ones(1000)})
    assert old.sum() == 0
    assert read(path)[0]["w"].sum() == 1000
