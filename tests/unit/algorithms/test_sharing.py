from collections.abc import Container, Mapping
from functools import cache

import pytest
from torch import nn

from grandrounds.algorithms import METHODS
from grandrounds.algorithms.method import Method
from grandrounds.algorithms.methods.pflsynth import PARAMETER_SPLITS, TRAVELS, PFLSynth
from grandrounds.algorithms.sharing import Sharing, describe_sharing, sharing_filter
from grandrounds.core.errors import BadStudy
from grandrounds.core.weights import select
from grandrounds.data.elements import Elements
from grandrounds.tasks import Synthesis
from grandrounds.tasks.synthesis.networks import GROUPS
from grandrounds.tasks.synthesis.task import SynthesisTask

# Four sites and four contrasts, as published: the mapper reads 12 values.
FOUR_SITES = {
    "alder": ("T1w->T2w", "T2w->PDw"),
    "birch": ("T1w->T2w", "FLAIR->T2w"),
    "cedar": ("T1w->T2w", "T2w->T1w"),
    "elder": ("T1w->T2w", "T2w->FLAIR"),
}
SMALL = {"width": 8, "blocks": 2, "latent": 16, "critic_width": 8, "critic_layers": 2}


@cache
def full(norm: str = "instance") -> tuple[SynthesisTask, nn.Module]:
    return model_of(norm=norm)


def model_of(**options: object) -> tuple[SynthesisTask, nn.Module]:
    personalised: dict[str, object] = {"generator": "personalised", **options}
    task = Synthesis(**personalised).bind(  # pyright: ignore[reportArgumentType]
        Elements(("T1w", "T2w", "PDw", "FLAIR")), FOUR_SITES
    )
    return task, task.build(1)


class NormsAlone(Method):
    def sharing(self) -> Sharing:
        return Sharing(shared=("norm",))


def shared(method: Method, task: SynthesisTask, model: nn.Module, buffers: str = "follow"):
    travels = sharing_filter(model, task.groups(model), method.sharing(), norm_buffers=buffers)
    return select(model.state_dict(), travels)


def groups_of(names: Mapping[str, object]) -> set[str]:
    return {".".join(name.split(".")[:2]) for name in names}


def test_the_paper_split_shares_the_published_number_of_parameters():
    task, model = full()
    tensors = shared(METHODS["pflsynth"](), task, model)
    assert sum(tensor.numel() for tensor in tensors.values()) == 6_414_785
    assert groups_of(tensors) == {
        "generator.mapper",
        "generator.bottleneck_late",
        "generator.decoder",
    }


def test_the_paper_split_with_batch_norm_shares_the_published_numbers_with_buffers():
    task, model = full("batch")
    tensors = shared(METHODS["pflsynth"](), task, model)
    counters = 10  # of ten batch norms: part of the published sum, but integers do not travel
    assert sum(t.numel() for t in tensors.values()) == 6_419_275 - counters
    parameters = {name for name, _ in model.named_parameters()}
    assert sum(t.numel() for n, t in tensors.items() if n in parameters) == 6_414_785


def test_each_group_of_the_paper_split_has_its_published_number_of_parameters():
    task, model = full()
    travels = sharing_filter(
        model, task.groups(model), METHODS["pflsynth"]().sharing(), norm_buffers="follow"
    )
    told = describe_sharing(
        model, task.groups(model), travels, norm_buffers="follow", validate_every=1
    )
    found = {group.group: (group.policy, group.parameters) for group in told.groups}
    assert found == {
        "mapper": ("shared", 1_319_936),
        "encoder": ("private", 372_672),
        "bottleneck_early": ("private", 5 * 1_180_672),
        "bottleneck_late": ("shared", 4_722_688),
        "decoder": ("shared", 372_161),
        "personal": ("private", 3_296_000),
        "critic": ("private", 5 * 2_764_609),
    }
    assert told.norm_buffers == "none in this network"


def test_a_round_costs_up_and_down_and_the_validation():
    task, model = full()
    travels = sharing_filter(
        model, task.groups(model), METHODS["pflsynth"]().sharing(), norm_buffers="follow"
    )
    one_way = 4 * 6_414_785
    for every, cost in {1: 3 * one_way, 2: 2 * one_way + one_way // 2}.items():
        told = describe_sharing(
            model, task.groups(model), travels, norm_buffers="follow", validate_every=every
        )
        assert told.bytes_per_round == cost


def test_the_wide_split_shares_all_but_personal_blocks_and_critics():
    task, model = model_of(**SMALL)
    tensors = shared(PFLSynth(split="wide"), task, model)
    everything = set(model.state_dict())
    kept = {n for n in everything if n.startswith(("generator.personal.", "critics."))}
    assert set(tensors) == everything - kept
    assert kept


def test_named_groups_take_the_place_of_the_split():
    task, model = model_of(**SMALL)
    tensors = shared(PFLSynth(share=("encoder",)), task, model)
    assert groups_of(tensors) == {"generator.encoder"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    ["fedavg", "fedprox", "fedopt", "scaffold", "ditto", "fedmedgan", "fedmmgan", "fedcyclegan"],
)
def test_methods_that_average_the_generator_share_all_of_it_and_no_critic(method: str):
    task, model = model_of(**SMALL)
    assert set(shared(METHODS[method](), task, model)) == {
        name for name in model.state_dict() if name.startswith("generator.")
    }


def test_the_centralised_comparisons_alone_pool_the_data_of_all_sites():
    pooled = {name for name, method in METHODS.items() if method().sharing().pooled}
    assert pooled == {"central", "pgan", "pix2pix"}


@pytest.mark.parametrize("method", ["local", "central", "pgan", "pix2pix"])
def test_methods_without_a_federation_share_nothing(method: str):
    task, model = model_of(**SMALL)
    assert not shared(METHODS[method](), task, model)


def test_fedbn_keeps_affine_and_statistics_of_batch_norms_and_nothing_else():
    task, model = model_of(**SMALL, norm="batch")
    stays = set(shared(METHODS["fedavg"](), task, model)) - set(
        shared(METHODS["fedbn"](), task, model)
    )
    norms = {
        name
        for name, part in model.get_submodule("generator").named_modules()
        if isinstance(part, nn.BatchNorm2d)
    }
    kinds = ("weight", "bias", "running_mean", "running_var")
    assert stays == {f"generator.{name}.{kind}" for name in norms for kind in kinds}


def test_fedbn_on_a_network_without_batch_norm_is_fedavg():
    task, model = model_of(**SMALL)
    assert shared(METHODS["fedbn"](), task, model).keys() == (
        shared(METHODS["fedavg"](), task, model).keys()
    )


@pytest.mark.parametrize("buffers", ["follow", "shared", "private", "reset"])
def test_integer_counters_never_travel(buffers: str):
    task, model = model_of(**SMALL, norm="batch")
    counters = {n for n in model.state_dict() if n.endswith("num_batches_tracked")}
    assert counters
    assert not counters & set(shared(METHODS["fedavg"](), task, model, buffers))


def statistics(names: Mapping[str, object]) -> set[str]:
    return {name for name in names if name.endswith(("running_mean", "running_var"))}


@pytest.mark.parametrize(
    ("method", "buffers", "travel"),
    [
        ("fedavg", "follow", "all"),
        ("fedavg", "shared", "all"),
        ("fedavg", "private", "none"),
        ("fedavg", "reset", "none"),
        ("fedbn", "follow", "none"),
        ("fedbn", "shared", "all"),
        ("fedbn", "private", "none"),
        ("pflsynth", "follow", "late"),
        ("pflsynth", "shared", "all"),
        ("pflsynth", "private", "none"),
        ("local", "follow", "none"),
        ("local", "shared", "none"),
    ],
)
def test_running_statistics_follow_their_layer_unless_the_study_says_otherwise(
    method: str, buffers: str, travel: str
):
    task, model = model_of(**SMALL, norm="batch")
    generator = statistics(select(model.state_dict(), lambda n: n.startswith("generator.")))
    late = {n for n in generator if ".bottleneck_late." in n or ".decoder." in n}
    expected = {"all": generator, "late": late, "none": set[str]()}[travel]
    assert statistics(shared(METHODS[method](), task, model, buffers)) == expected


def test_other_buffer_policies_leave_parameters_alone():
    task, model = model_of(**SMALL, norm="batch")
    parameters = {name for name, _ in model.named_parameters()}
    sets = [
        set(shared(METHODS["fedavg"](), task, model, buffers)) & parameters
        for buffers in ("follow", "shared", "private", "reset")
    ]
    assert all(names == sets[0] for names in sets)


def test_a_group_that_is_shared_in_part_says_so():
    task, model = model_of(**SMALL, norm="batch")
    sharing = METHODS["fedbn"]().sharing()
    travels = sharing_filter(model, task.groups(model), sharing, norm_buffers="follow")
    told = describe_sharing(
        model, task.groups(model), travels, norm_buffers="follow", validate_every=1
    )
    policies = {group.group: group.policy for group in told.groups}
    assert policies["encoder"] == "partly shared"
    assert policies["norm"] == "private"
    assert told.norm_buffers == "follow"


def test_a_method_that_would_share_nothing_by_mistake_is_refused():
    task, model = model_of(**SMALL)
    with pytest.raises(BadStudy) as refused:
        shared(NormsAlone(), task, model)
    assert str(refused.value) == "method: the groups norm hold no tensor of this network"


def test_an_unknown_group_is_refused_with_those_that_there_are():
    task, model = model_of(**SMALL)
    with pytest.raises(BadStudy) as refused:
        shared(PFLSynth(share=("tail",)), task, model)
    known = ", ".join((*GROUPS, "norm", "critic", "head", "upper", "all"))
    assert str(refused.value) == f"method: no parameter group 'tail'; this task has {known}"


def test_a_share_that_is_named_is_shared_whatever_the_method_would_keep():
    task, model = model_of(**SMALL)
    named = shared(PFLSynth(share=("mapper", "personal")), task, model)
    assert {name.split(".")[1] for name in named} == {"mapper", "personal"}


def test_every_tensor_of_the_generator_is_in_one_group():
    task, model = model_of(**SMALL)
    groups = task.groups(model)
    for name in model.state_dict():
        homes = [group for group in (*GROUPS, "critic") if groups[group](name)]
        assert len(homes) == 1, name


LATER = {"mapper", "bottleneck_late", "decoder"}
SAID: dict[str, tuple[PFLSynth, str, Container[str]]] = {
    "decoder": (
        PFLSynth("decoder"),
        "mapper and decoder travel, the rest stays",
        {"mapper", "decoder"},
    ),
    "paper": (PFLSynth("paper"), "mapper and later layers travel, the rest stays", LATER),
    "bottleneck": (
        PFLSynth("bottleneck"),
        "all but the encoder and the personalisation blocks travels",
        set(GROUPS) - {"encoder", "personal"},
    ),
    "wide": (
        PFLSynth("wide"),
        "all but the personalisation blocks travels",
        set(GROUPS) - {"personal"},
    ),
    "everything": (PFLSynth("everything"), "the whole generator travels", set(GROUPS)),
    "share": (
        PFLSynth(share=("decoder", "personal")),
        "decoder, personal: only this travels",
        {"decoder", "personal"},
    ),
}


@pytest.mark.parametrize("split", SAID)
def test_what_a_report_says_of_a_split_is_what_travels(split: str):
    method, words, groups = SAID[split]
    task, model = model_of(**SMALL)
    travels = method.sharing().travels(task.groups(model))
    parts = {name: select(model.state_dict(), task.groups(model)[name]) for name in GROUPS}
    for name, tensors in parts.items():
        assert {travels(tensor) for tensor in tensors} == {name in groups}
    assert method.description == f"Dalmaz et al. 2024: personalised synthesis; {words}."


def test_every_split_says_what_travels():
    assert set(SAID) == {*TRAVELS, "share"} == {*PARAMETER_SPLITS, "share"}


def test_a_method_without_words_of_its_own_is_described_by_its_docstring():
    for kind in METHODS.values():
        if kind is not PFLSynth:
            assert kind().description == (kind.__doc__ or "").splitlines()[0]
