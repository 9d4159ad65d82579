"""sca.training.lightning: the scheduler in Lightning's loop equals that in one's own, and resumes."""

from __future__ import annotations

import importlib
import sys
import types

import pytest
import torch
from torch.nn.functional import cross_entropy

import sca

SETTINGS = {"density": 0.5, "start": 2, "stop": 8, "interval": 2, "min_channels": 2, "schedule": "linear"}


def new_model() -> torch.nn.Module:
    torch.manual_seed(0)
    return sca.models.build("vgg5", num_classes=4, in_channels=1, time_steps=2, image_size=8, width=0.125, neuron="lif")


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.rand(8, 1, 8, 8, generator=generator), torch.randint(4, (8,), generator=generator)) for _ in range(5)
    ]


def loss_of(model: torch.nn.Module, batch) -> torch.Tensor:
    return cross_entropy(model(batch[0]).mean(0), batch[1])


def test_without_lightning_the_import_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "lightning.pytorch", None)
    monkeypatch.delitem(sys.modules, "sca.training.lightning", raising=False)
    with pytest.raises(ImportError, match=r"pip install 'sca_kernels\[lightning\]'"):
        importlib.import_module("sca.training.lightning")


@pytest.fixture
def lightning():
    return pytest.importorskip("lightning.pytorch", reason="no lightning")


def optimizers_of(net: torch.nn.Module) -> list[torch.optim.Optimizer]:
    """Two that share the parameters."""
    hidden, head = net.features.parameters(), [*net.hidden.parameters(), *net.classifier.parameters()]
    return [torch.optim.SGD(hidden, lr=0.1, momentum=0.9), torch.optim.AdamW(head, lr=0.01)]


def fit(lightning, tmp_path, epochs: int, resumed=None, several: bool = False):
    from sca.training.lightning import SCACallback

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = new_model()
            self.automatic_optimization = not several

        def training_step(self, batch, batch_idx):
            loss = loss_of(self.net, batch)
            if several:
                for optimizer in self.optimizers():
                    optimizer.zero_grad()
                self.manual_backward(loss)
                for optimizer in self.optimizers():
                    optimizer.step()
            return loss

        def configure_optimizers(self):
            if several:
                return optimizers_of(self.net)
            return torch.optim.SGD(self.net.parameters(), lr=0.1, momentum=0.9)

    module, callback = Module(), SCACallback(lambda module, batch: loss_of(module.net, batch), **SETTINGS)
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    data = torch.utils.data.DataLoader(batches(), batch_size=None)
    trainer.fit(module, data, ckpt_path=resumed)
    return trainer, module.net, callback.scheduler


@pytest.mark.parametrize("several", [False, True], ids=["one-optimizer", "two-optimizers"])
def test_callback_prunes_as_ones_own_loop_does(lightning, tmp_path, several):
    _, net, scheduler = fit(lightning, tmp_path, 2, several=several)
    model = new_model()
    one = [torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)]
    optimizers = optimizers_of(model) if several else one
    own = sca.SCAScheduler(model, optimizers, **SETTINGS)
    for batch in batches() * 2:
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss_of(model, batch).backward()
        for optimizer in optimizers:
            optimizer.step()
        if own.wants_probe:
            own.probe(lambda batch=batch: loss_of(model, batch))
        own.step()
    assert scheduler.history == own.history
    assert scheduler.density == pytest.approx(0.5, abs=0.03)
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("several", [False, True], ids=["one-optimizer", "two-optimizers"])
def test_callback_resumes_from_lightnings_checkpoint(lightning, tmp_path, several):
    _, whole, scheduler = fit(lightning, tmp_path, 2, several=several)
    trainer, _, _ = fit(lightning, tmp_path, 1, several=several)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    _, resumed, after = fit(lightning, tmp_path, 2, tmp_path / "half.ckpt", several)
    assert after.history == scheduler.history
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())


def test_callback_without_an_optimizer_is_refused(lightning):
    from sca.training.lightning import SCACallback

    trainer = types.SimpleNamespace(optimizers=[], world_size=1)
    with pytest.raises(ValueError, match="optimizers: expected at least one, got none from configure_optimizers"):
        SCACallback(loss_of, **SETTINGS).on_fit_start(trainer, lightning.LightningModule())
