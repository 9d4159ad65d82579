"""Networks of SpikingJelly 2.0's own classes."""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from .net import ForeignNet, events, liven, normal, seeded, settle

T, N = 4, 2


@contextlib.contextmanager
def without_torchvision() -> Iterator[None]:
    """Stand in for torchvision, of which SpikingJelly's models import one function, for downloads; inside alone, and
    whether or not one is installed, since one made for another torch raises on import."""
    names = ("torchvision", "torchvision._internally_replaced_utils")
    stubs = {name: module_from_spec(ModuleSpec(name, None)) for name in names}
    stubs[names[1]].load_state_dict_from_url = None
    hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "torchvision"}
    sys.modules.update(stubs)
    try:
        yield
    finally:
        for name in stubs:
            sys.modules.pop(name, None)
        sys.modules.update(hidden)


@functools.cache
def library(module: str) -> ModuleType:
    """A module of spikingjelly.activation_based."""
    with without_torchvision():
        return importlib.import_module(f"spikingjelly.activation_based.{module}")


def reset(model: nn.Module) -> None:
    library("functional").reset_net(model)


def forward(model: nn.Module, x: Tensor) -> Tensor:
    return model(x)


def _finished(model: nn.Module, example: Callable[[], Tensor], gain: float, shift: float) -> nn.Module:
    liven(model, gain, shift)
    settle(model.train(), lambda: model(example()), reset)
    return model


def _sequence() -> Tensor:
    return normal(T, N, 3, 32, 32, seed=1)


def _sew_resnet(cnf: str) -> nn.Module:
    neuron, surrogate = library("neuron"), library("surrogate")
    chosen: dict[str, Any] = {"surrogate_function": surrogate.ATan(), "detach_reset": True}
    if cnf == "IAND":
        chosen = {"tau": 2.0, "surrogate_function": surrogate.Sigmoid()}
    with seeded(2):
        model = library("model.sew_resnet").sew_resnet18(
            cnf=cnf,
            spiking_neuron=neuron.IFNode if cnf == "ADD" else neuron.LIFNode,
            num_classes=10,
            **chosen,
        )
    library("functional").set_step_mode(model, "m")
    return _finished(model, _sequence, *((0.6, 0.2) if cnf == "ADD" else (1.5, 0.5)))


def _recording() -> Tensor:
    return events(T, N, 2, 128, 128, seed=3, rate=0.1)


def _plif() -> nn.Module:
    with seeded(4):
        model = library("model.parametric_lif_net").CIFAR10DVSNet(
            channels=8,
            spiking_neuron=library("neuron").ParametricLIFNode,
            surrogate_function=library("surrogate").ATan(),
            detach_reset=True,
        )
    library("functional").set_step_mode(model, "m")
    with torch.no_grad():
        model.conv_fc[18].weight.mul_(3)
        model.conv_fc[21].weight.mul_(6)
    return _finished(model, _recording, 1.5, 0.5)


def _image() -> Tensor:
    return normal(N, 3, 32, 32, seed=5)


def _ms_resnet(zero_gain: bool) -> nn.Module:
    with seeded(6):
        model = library("model.ms_resnet").ms_resnet18(T=T, num_classes=10, base_channels=8)
    if not zero_gain:
        return _finished(model, _image, 0.8, 0.1)
    settle(model.train(), lambda: model(_sequence()), reset)
    return model


def _spikformer() -> nn.Module:
    with seeded(7):
        # spikformer_cifar10, but for the 384 channels, 12 heads and 4 blocks.
        model = library("model.spikformer").Spikformer(
            T=T,
            img_size_h=32,
            img_size_w=32,
            patch_size=4,
            num_classes=10,
            embed_dims=128,
            num_heads=4,
            mlp_ratio=2.0,
            depths=1,
        )
    liven(model, 1.5, 0.5)
    for pooled in model.patch_embed.stages[2:]:  # a maximum of nine is large
        liven(pooled, 1.0, -0.2)
    liven(model.blocks[0].attn.qkv_conv_bn, 1.5, 0.2)  # the attention counts coincidences
    settle(model.train(), lambda: model(_image()), reset)
    return model


def _ottt() -> nn.Module:
    module = library("model.spiking_vggws_ottt")
    with seeded(8):
        # ottt_spiking_vgg11, but for the widths and the hidden layers of 4,096.
        model = module.OTTTSpikingVGG(
            cfg=[8, "M", 16, "M", 16, 16, "M", 32, 512],
            weight_standardization=False,
            num_classes=10,
            spiking_neuron=library("neuron").OTTTLIFNode,
        )
    with torch.no_grad():
        for index, factor in zip((0, 3, 6, 8, 11, 13), (1.5, 3.0, 2.0, 2.0, 2.5, 9.0), strict=True):
            model.features[index].weight.mul_(factor)
    return model.train()


def _step_by_step(model: nn.Module, x: Tensor) -> Tensor:
    return torch.stack([model(step) for step in x])


_SEW_LAYERS = ("conv1", "bn1", "layer*.conv?", "layer*.bn?", "layer*.downsample.?", "fc")

NETS = (
    ForeignNet(
        name="sj_sew_resnet18_add",
        origin="spikingjelly",
        build=lambda: _sew_resnet("ADD"),
        example=_sequence,
        call=forward,
        reset=reset,
        trap="what is added reaches 2 and more, so it is not spikes; forward reads avgpool.step_mode",
        convertible=("*sn1", "*sn2", "*_sn"),
        layers=_SEW_LAYERS,
        time="TN",
        package="spikingjelly",
    ),
    ForeignNet(
        name="sj_sew_resnet18_iand",
        origin="spikingjelly",
        build=lambda: _sew_resnet("IAND"),
        example=_sequence,
        call=forward,
        reset=reset,
        trap="a product x (1 - y) of spikes is spikes; forward reads avgpool.step_mode; the reset is not detached",
        convertible=("*sn1", "*sn2", "*_sn"),
        layers=_SEW_LAYERS,
        time="TN",
        package="spikingjelly",
    ),
    ForeignNet(
        name="sj_plif_cifar10dvs",
        origin="spikingjelly",
        build=_plif,
        example=_recording,
        call=forward,
        reset=reset,
        trap="w is the neuron's in the state_dict; dropout keeps one mask, in a nested dict, until the reset; "
        "avg_pool1d votes",
        convertible=("conv_fc.2", "conv_fc.6", "conv_fc.10", "conv_fc.14", "conv_fc.19", "conv_fc.22"),
        layers=tuple(f"conv_fc.{index}" for index in (0, 1, 4, 5, 8, 9, 12, 13, 18, 21)),
        time="TN",
        package="spikingjelly",
    ),
    ForeignNet(
        name="sj_ms_resnet18",
        origin="spikingjelly",
        build=lambda: _ms_resnet(False),
        example=_image,
        call=forward,
        reset=reset,
        trap="fx.symbolic_trace stops at control flow; neurons behind an addition; Rect(2), tau 4/3, threshold 0.5",
        convertible=("*spike1", "*spike2", "head_lif"),
        layers=("stem.0", "stem.1", "layer*.conv?", "layer*.bn?", "layer*.downsample.?", "head"),
        time="N>TN",
        package="spikingjelly",
    ),
    ForeignNet(
        name="sj_ms_resnet18_zero_gain",
        origin="spikingjelly",
        build=lambda: _ms_resnet(True),
        example=_sequence,
        call=forward,
        reset=reset,
        trap="as the library makes it: the last batch norm of each block has gain zero, so nothing in a block is heard "
        "and a comparison of outputs says nothing of it",
        convertible=("*spike1", "*spike2", "head_lif"),
        layers=("stem.0", "stem.1", "layer*.conv?", "layer*.bn?", "layer*.downsample.?", "head"),
        idle=("layer*.conv?.weight", "layer*.bn1.*"),
        time="TN",
        package="spikingjelly",
    ),
    ForeignNet(
        name="sj_spikformer_cifar10",
        origin="spikingjelly",
        build=_spikformer,
        example=_image,
        call=forward,
        reset=reset,
        trap="torch's own layers over frames [T * N, C, H, W], in one of which C == H; Conv1d and BatchNorm1d over "
        "tokens; spikes added to spikes; channel blocks are told apart by reshape",
        convertible=("*.neuron", "*_lif", "*.neuron1", "*.neuron2"),
        layers=("patch_embed.*.block.0", "patch_embed.*.block.1", "head"),
        time="N>TN",
        package="spikingjelly",
    ),
    ForeignNet(
        name="sj_ottt_vgg11",
        origin="spikingjelly",
        build=_ottt,
        example=lambda: _sequence() * 2,
        call=_step_by_step,
        reset=reset,
        trap="OTTTLIFNode is a LIFNode with its spikes, but forgets the past in the gradient and returns a list, spike "
        "and trace, in training: refused, and the model left intact",
        convertible=(),
        refused=tuple(f"features.{index}" for index in (1, 4, 7, 9, 12, 14)),
        time="single",
        package="spikingjelly",
    ),
)
