"""Groups of any network's layers: by type, by the order of registration, and by name."""

import pytest
import torch
from torch import nn

from grandrounds.core.errors import BadStudy
from grandrounds.models.layer_groups import NamedNetwork, layer_groups


class Named(nn.Module):
    """An encoder of two layers, a norm without parameters, a decoder and an output."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU())
        self.plain = nn.BatchNorm2d(2, affine=False)
        self.decoder = nn.Conv2d(2, 2, 3)
        self.output = nn.Linear(2, 1)


def groups_of(network: nn.Module, **named: list[str]) -> dict[str, list[str]]:
    model = NamedNetwork(network)
    found = layer_groups(model, named, "here")
    return {name: list(filter(holds, model.state_dict())) for name, holds in found.items()}


CONVOLUTION = [f"network.encoder.0.{name}" for name in ("weight", "bias")]
DECODER, OUTPUT = (
    [f"network.{layer}.{name}" for name in ("weight", "bias")] for layer in ("decoder", "output")
)


def statistics(layer: str) -> list[str]:
    names = ("running_mean", "running_var", "num_batches_tracked")
    return [f"network.{layer}.{name}" for name in names]


NORM = [f"network.encoder.1.{name}" for name in ("weight", "bias")] + statistics("encoder.1")


def test_a_network_has_its_norms_its_last_layer_and_its_later_half():
    found = groups_of(Named())
    assert found["norm"] == NORM + statistics("plain")
    assert found["head"] == found["output"] == OUTPUT
    assert found["upper"] == DECODER + OUTPUT
    assert found["all"] == CONVOLUTION + NORM + statistics("plain") + DECODER + OUTPUT
    assert found["body"] == CONVOLUTION + NORM + statistics("plain") + DECODER


def test_the_middle_one_of_three_layers_is_in_the_later_half():
    found = groups_of(nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1), nn.Linear(1, 1)))
    assert {name.split(".")[1] for name in found["upper"]} == {"1", "2"}


def test_named_groups_stand_beside_what_they_leave():
    found = groups_of(Named(), coder=["encoder", "decoder"])
    assert found["coder"] == CONVOLUTION + NORM + DECODER
    assert found["body"] == statistics("plain")
    assert found["output"] == OUTPUT
    everything = groups_of(Named(), most=["enc", "dec", "plain"], last=["output"])
    assert {"body", "output"}.isdisjoint(everything)


def test_a_named_group_takes_the_place_of_one_by_rule():
    found = groups_of(Named(), head=["decoder", "output"])
    assert found["head"] == DECODER + OUTPUT
    assert "output" not in found  # a named group holds it


class Twice(nn.Module):
    """A layer under two names, and a tensor of one layer that is another one's, too."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.tied = nn.Linear(2, 2)
        self.tied.weight = self.first.weight
        self.last = nn.Linear(2, 1)
        self.again = self.last


def test_a_tensor_of_several_names_has_its_first_alone():
    model = NamedNetwork(Twice())
    names = ["network.first.weight", "network.first.bias", "network.tied.bias"]
    last = ["network.last.weight", "network.last.bias"]
    assert list(model.state_dict()) == names + last
    found = groups_of(Twice())
    assert found["head"] == last
    assert found["all"] == names + last


def test_what_is_loaded_under_the_first_name_is_there_under_all():
    model, other = NamedNetwork(Twice()), NamedNetwork(Twice())
    model.load_state_dict(other.state_dict(), strict=False)
    network = model.network
    assert isinstance(network, Twice)
    assert torch.equal(network.again.weight, other.state_dict()["network.last.weight"])


def test_compiling_is_of_the_network_itself():
    model = NamedNetwork(nn.Linear(2, 1))
    model.compile(backend="eager")
    assert model._compiled_call_impl is None
    assert model.network._compiled_call_impl is not None


@pytest.mark.parametrize(
    ("starts", "sentence"),
    [
        (["encodr"], 'here.mine: no layer starts with "encodr"; the network has encoder, plain, '),
        ([], "here.mine must list how the names of its layers start"),
        ("encoder", "here.mine must list"),
    ],
)
def test_a_group_of_nothing_is_refused(starts: list[str], sentence: str):
    with pytest.raises(BadStudy, match=sentence):
        groups_of(Named(), mine=starts)


def test_a_network_without_parameters_is_refused():
    with pytest.raises(BadStudy, match="the network has no parameter"):
        groups_of(nn.Flatten())


def test_a_network_of_one_layer_is_all_head():
    found = groups_of(nn.Linear(2, 1))
    assert found["head"] == found["all"] == found["upper"] == ["network.weight", "network.bias"]
    assert "body" not in found
