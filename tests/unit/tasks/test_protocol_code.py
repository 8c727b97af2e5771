"""The physics of a scan as numbers: units, what is unknown, and that no name plays a part."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from grandrounds.core.errors import BadStudy
from grandrounds.core.weights import Weights
from grandrounds.data.acquisition import FAMILIES, QUANTITIES, Acquisition, ScanProtocol
from grandrounds.models.personalisation import Mapper
from grandrounds.tasks.synthesis.examples import ContrastPair, SiteTaskCode
from grandrounds.tasks.synthesis.protocol_code import FURTHEST, SCALES, SIZE, protocol_code
from grandrounds.tasks.synthesis.task import SynthesisTask
from tests.helpers.federation import tiny
from tests.helpers.task_studies import tiny_of

PAIR = ContrastPair("T1w", "T2w")
CODED = "task.codes=protocol"
SCAN = ScanProtocol(Acquisition("mprage", 2000.0, 2.5, 900.0, 8.0, 3.0), thickness=1.0, pixel=0.5)
T2W = ScanProtocol(Acquisition("spin-echo", 4000.0, 80.0, field_strength=3.0), 4.0, 0.5)
FAMILY = 2 * len(SCALES)  # the place of the first family


def value_of(name: str, scan: ScanProtocol) -> tuple[float, float]:
    """A quantity's value in a code, and the bit that says that it is unknown."""
    place = 2 * list(SCALES).index(name)
    value, unknown = protocol_code(scan)[place : place + 2]
    return value, unknown


@pytest.mark.parametrize(
    ("name", "low", "centre", "high"),
    [
        ("repetition_time", 500.0, 2000.0, 8000.0),  # ms; four times is one unit
        ("echo_time", 5.0, 20.0, 80.0),  # ms; four times is one unit
        ("inversion_time", 500.0, 1500.0, 2500.0),  # ms; a second is one unit
        ("flip_angle", 15.0, 60.0, 105.0),  # degrees; 45 are one unit
        ("field_strength", 2 / 2**0.75, 2.0, 2 * 2**0.75),  # tesla
    ],
)
def test_one_unit_of_each_setting_is_fixed(name: str, low: float, centre: float, high: float):
    for setting, value in ((low, -1), (centre, 0), (high, 1)):
        scan = ScanProtocol(replace(Acquisition(), **{name: setting}))
        assert value_of(name, scan) == (pytest.approx(value), 0)


@pytest.mark.parametrize(("name", "low", "centre"), [("thickness", 1.5, 3.0), ("pixel", 0.5, 1.0)])
def test_half_a_voxel_is_one_unit_less(name: str, low: float, centre: float):
    assert value_of(name, replace(ScanProtocol(), **{name: low})) == (-1, 0)
    assert value_of(name, replace(ScanProtocol(), **{name: centre})) == (0, 0)


def test_every_setting_of_an_acquisition_but_words_has_a_scale():
    assert set(QUANTITIES) | {"thickness", "pixel"} == set(SCALES)


def test_the_family_is_a_one_hot_and_an_unknown_one_has_a_bit_of_its_own():
    for place, family in enumerate(FAMILIES):
        code = protocol_code(ScanProtocol(Acquisition(family)))
        assert code[FAMILY:].index(1) == place
        assert sum(code[FAMILY:]) == 1
    assert protocol_code(ScanProtocol())[-1] == 1


def test_what_is_unknown_is_zero_beside_a_bit_and_says_nothing_else():
    code = protocol_code(ScanProtocol())
    assert code == (*((0, 1) * len(SCALES)), *((0,) * len(FAMILIES)), 1)
    assert len(code) == SIZE


@settings(max_examples=30)
@given(st.floats(1, 60_000), st.floats(0.01, 2000), st.floats(1, 20_000), st.floats(0.01, 12))
def test_no_credible_value_is_far_from_the_others(tr: float, te: float, ti: float, field: float):
    scan = ScanProtocol(Acquisition("mprage", tr, te, ti, 360.0, field), 100.0, 0.01)
    assert all(abs(value) <= FURTHEST for value in protocol_code(scan))


def coded(site: str, source: ScanProtocol, target: ScanProtocol) -> Tensor:
    coding = SiteTaskCode(("alder", "birch"), ("T1w", "T2w"), "protocol")
    return coding.code(site, PAIR, {"T1w": source, "T2w": target})


def test_equal_protocols_have_equal_codes_and_styles_whatever_the_site_is_called():
    mapper = Mapper(2 * SIZE + 4, 16, layers=3, equalised=False)
    ours, theirs, unseen = (coded(site, SCAN, T2W) for site in ("alder", "birch", "never-seen"))
    assert torch.equal(ours, theirs)
    assert torch.equal(mapper(ours[None]), mapper(unseen[None]))
    other = coded(
        "alder", replace(SCAN, acquisition=replace(SCAN.acquisition, flip_angle=9.0)), T2W
    )
    assert not torch.equal(mapper(ours[None]), mapper(other[None]))


def test_a_code_has_the_source_then_the_target_then_the_task():
    code = coded("alder", SCAN, T2W).tolist()
    assert code[:SIZE] == pytest.approx(protocol_code(SCAN))
    assert code[SIZE : 2 * SIZE] == pytest.approx(protocol_code(T2W))
    assert code[2 * SIZE :] == [1, 0, 0, 1]


def test_a_reader_s_name_plays_no_part():
    task = tiny(CODED).make_task()
    assert isinstance(task, SynthesisTask)
    found = {site: task.viewed_by(site).coding.code("birch", PAIR) for site in ("alder", "cedar")}
    assert torch.equal(found["alder"], found["cedar"])


def step(scans: dict[str, ScanProtocol]) -> tuple[Weights, Weights]:
    """One step of training with this code; the mapper's first weights before and after."""
    task = tiny(CODED, "task.adversarial=0").make_task()
    assert isinstance(task, SynthesisTask)
    torch.manual_seed(1)
    model, images = task.build(1).train(), torch.rand(2, 1, 32, 32)
    code = task.coding.code("alder", PAIR, scans)
    batch = {**task.blank((32, 32)), "source": images, "target": -images}
    batch["code"] = code.expand(2, -1)
    optimiser = torch.optim.Adam(model.parameters())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    [(_, loss)] = task.losses(model, batch)
    loss.backward()
    optimiser.step()
    return before, model.state_dict()


def test_unknown_values_train_the_mapper_s_weights_of_their_bits_and_known_ones_do_not():
    first = "generator.mapper.layers.0.weight"
    for scans, moves in (({}, True), ({"T1w": SCAN, "T2w": T2W}, False)):
        before, after = step(dict(scans))
        bit = 2 * list(SCALES).index("echo_time") + 1
        assert torch.equal(before[first][:, bit], after[first][:, bit]) is not moves
        assert torch.equal(before[first][:, bit - 1], after[first][:, bit - 1]) is moves


def test_the_stand_ins_are_the_mapper_s_and_travel_with_it():
    task = tiny(CODED).make_task()
    model = task.build(1)
    mapper = task.groups(model)["mapper"]
    assert mapper("generator.mapper.layers.0.weight")
    shape = model.get_parameter("generator.mapper.layers.0.weight").shape
    assert shape[1] == 2 * SIZE + 2 * 4  # of two scans, and of two contrasts of four


def test_the_network_does_not_grow_with_the_roster():
    two, four = (tiny(CODED, sites=n).make_task().build(1).state_dict() for n in (2, 4))
    name = "generator.mapper.layers.0.weight"
    assert two[name].shape == four[name].shape


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("method.kind=fedavg",), "only the personalised generator has a mapper"),
        (("task.generator=unet", "method.kind=fedavg"), 'such a code, not "unet"'),
        (("task.generator=coded-unet", "method.kind=fedavg"), 'not "coded-unet"'),
        (("parity=true",), "parity = true exclude each other"),
    ],
)
def test_codes_that_nothing_would_read_are_refused(words: tuple[str, ...], says: str):
    with pytest.raises(BadStudy, match=says):
        tiny(CODED, *words)


def test_a_task_without_such_codes_knows_no_such_key():
    with pytest.raises(BadStudy, match="codes"):
        tiny_of("segmentation", CODED)
