"""The trainer by captured steps: what it tells, when it looks, what it saves. On the CPU a stand-in records and repeats
operators (:mod:`tests.framework.recorded`)."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import sca
from sca.training import L1Penalty, Trainer, loop
from sca.training.callbacks import Callback
from sca_kernels import functional as F
from tests.framework.recorded import Recorder
from tests.framework.watched import Watch, assert_equal_state, tiny, trainer_of

loss_fn = nn.functional.cross_entropy


class Reader(Callback):
    """Looks at gradients, and does not say that this could be captured."""

    def on_backward(self, trainer: Trainer) -> None:
        self.seen = [p.grad for p in trainer.model.parameters()]


def trained(config, watch: Watch | None = None, callbacks: tuple[Callback, ...] = ()) -> Trainer:
    trainer = trainer_of(config)
    trainer.callbacks += callbacks
    trainer.fit(watch)
    return trainer


@pytest.fixture
def runs_ahead(recorder, monkeypatch) -> Recorder:
    """The CPU as a device that computes while Python goes on."""
    monkeypatch.setattr(loop, "_runs_ahead", lambda device: True)
    sgd_init = torch.optim.SGD.__init__
    monkeypatch.setattr(  # as sca train has it on CUDA
        torch.optim.SGD, "__init__", lambda self, *args, **named: sgd_init(self, *args, **{**named, "fused": True})
    )
    return recorder


RUNS = {
    "recipe": {},
    "l1": {"l1": 1e-4},
    "ema": {"ema": 0.9},
    "frozen": {"freeze": ["features.0"]},
    "probes late": {"prune_stop": 0.9, "regrow_fraction": 0.5},
    "odd batch": {"limit_train": 126},
}


@pytest.mark.parametrize("name", RUNS)
def test_trainer_by_graphs_tells_what_the_plain_one_tells(runs_ahead, monkeypatch, name: str) -> None:
    """Learning rates are float32 within a captured step; here they are in both, by an exact schedule."""
    config = tiny(lr=0.125, lr_schedule="step", warmup=0.0, epochs=2, batch_size=4, **RUNS[name])
    ours = trained(config)
    captures = runs_ahead.graphs
    assert captures > 1
    monkeypatch.setattr(loop, "_runs_ahead", lambda device: False)
    theirs = trained(config.changed(graph="off"))
    assert runs_ahead.graphs == captures
    assert not runs_ahead.alive
    a, b = ours.state(), theirs.state()
    for state in a, b:
        del state["config"]["graph"]
    assert_equal_state(a, b)


def test_trainer_reads_once_in_a_while(runs_ahead, monkeypatch) -> None:
    reads = []
    inner = Trainer._read
    monkeypatch.setattr(Trainer, "_read", lambda trainer: (reads.append(len(trainer._unread)), inner(trainer))[1])
    trained(tiny(density=1.0, epochs=2, batch_size=2, limit_train=128))
    assert reads == [1, 50, 13, 1, 50, 13]


def test_trainer_state_in_the_middle_of_an_epoch_is_complete(runs_ahead) -> None:
    config = tiny(batch_size=8, epochs=2)
    sums = []
    whole = trained(config, Watch(lambda trainer: sums.append(copy.deepcopy(trainer.state()["sums"]))))
    assert [each["batches"] for each in sums] == [*range(1, 17)] * 2
    stopped = trainer_of(config)
    with pytest.raises(sca.training.Interrupted):
        stopped.fit(Watch(stop_after=7))
    state = copy.deepcopy(stopped.state())
    assert (state["sums"]["batches"], state["sums"]["samples"]) == (7, 56)
    resumed = trainer_of(config)
    resumed.load_state(state)
    resumed.fit()
    assert_equal_state(resumed.state(), whole.state())


@pytest.mark.parametrize("asks", ["checkpoint", "end", "update"])
def test_divergence_is_never_saved(runs_ahead, asks: str) -> None:
    """It is read behind the step, but before anything comes of it."""

    def spoil(trainer: Trainer) -> None:
        if trainer.step == 3:
            with torch.no_grad():
                next(trainer.model.parameters()).fill_(float("nan"))
        if asks == "checkpoint" and trainer.step == 5:
            asking.checkpoint_requested = True

    saved = []
    asking = Callback()
    trainer = trainer_of(tiny(batch_size=8, epochs=1, density=0.5 if asks == "update" else 1.0))
    trainer.callbacks.append(asking)
    trainer.criterion = lambda logits, labels: loss_fn(logits.mean(0) + _poison(trainer), labels)
    with F.check_nan(False), pytest.raises(sca.training.Diverged, match="the loss is nan at step 4"):
        trainer.fit(Watch(spoil), save=saved.append)
    assert not saved
    assert all(update["step"] < 4 for update in trainer.updates)


def _poison(trainer: Trainer) -> Tensor:
    """NaN once a parameter is, though neurons fall silent then."""
    return 0 * next(trainer.model.parameters()).detach().sum()


def test_callback_that_may_read_gradients_has_steps_run_as_they_stand(runs_ahead, caplog) -> None:
    trainer = trainer_of(tiny(epochs=1, batch_size=8, density=1.0))
    for images, labels in trainer.dataset.train_batches(8, seed=0, epoch=0):
        trainer.train_step(images, labels)
    assert runs_ahead.graphs == 1
    reader = Reader()
    trainer.callbacks.append(reader)
    trainer.fit()
    assert reader.seen
    assert runs_ahead.graphs == 1
    assert [r.message for r in caplog.records if "CUDA graph" in r.message] == [
        "training steps run without a CUDA graph: on_backward of Reader does not say that it is capturable"
    ]
    assert L1Penalty.capturable


def test_potentials_a_blend_and_spikes_are_a_graph_each(runs_ahead) -> None:
    trainer = trainer_of(tiny(epochs=4, batch_size=8, density=1.0, analog_start=(0.1, 0.5)))
    trainer.fit()
    assert runs_ahead.graphs == 3


def test_growing_time_steps_are_captured_anew(runs_ahead) -> None:
    trainer = trainer_of(tiny(epochs=2, batch_size=8, density=1.0, time_growth=(0.5,)))
    trainer.fit()
    assert runs_ahead.graphs == 2
