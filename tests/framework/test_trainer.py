"""sca.training.Trainer on one's own network, data, loss and callbacks: any loader, resumed exactly, refused by name."""

from __future__ import annotations

import csv
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, RandomSampler, TensorDataset

import sca
from sca import checkpoint, training
from sca.training import BestWeights, Callback, Checkpoints, CSVLog, Interrupted, JSONLog, Trainer
from tests.framework.own_training import Images, mean_loss, own_trainer, together
from tests.framework.watched import Watch, assert_equal_state, tiny, trainer_of


def test_trainer_trains_and_prunes_ones_own_network_on_sequences_of_a_dataloader():
    test = DataLoader(Images(20), batch_size=7, collate_fn=together)
    trainer = own_trainer(test=test)
    trainer.fit()
    assert [row["step"] for row in trainer.history] == [5, 10, 15]  # the last batch of an epoch has five
    assert trainer.history[-1]["loss"] < trainer.history[0]["loss"]
    assert trainer.history[-1]["density"] == trainer.scheduler.density == pytest.approx(0.5, abs=0.05)
    assert len(trainer.updates) == 6
    assert trainer.history[-1]["test_accuracy"] == trainer.evaluate()
    assert set(trainer.history[-1]["active"]) == set(trainer.history[-1]["firing_rates"])
    assert trainer.history[-1]["lr"] < 0.01
    assert trainer.optimizer.param_groups[0]["lr"] == trainer.history[-1]["lr"]


def test_trainer_equals_ones_own_loop_bit_for_bit():
    batches = [together([Images()[n] for n in range(k, k + 9)]) for k in range(0, 45, 9)]
    trainer = own_trainer(train=batches, lr_schedule=None)
    trainer.fit()
    other = own_trainer(train=batches)
    model, optimizer, scheduler = other.model, other.optimizer, other.scheduler
    model.train()
    for images, labels in batches * 3:
        optimizer.zero_grad()
        mean_loss(model(images), labels).backward()
        optimizer.step()
        if scheduler.wants_probe:
            scheduler.probe(lambda images=images, labels=labels: mean_loss(model(images), labels))
        scheduler.step()
    assert scheduler.history == trainer.updates
    assert_equal_state(dict(trainer.model.state_dict()), dict(model.state_dict()))


def worked(context: str, **options: Any) -> Trainer:
    """A trainer whose batches worker processes make."""
    options = {"epochs": 1, **options}
    loading = {"shuffle": True, "collate_fn": together, "num_workers": 2, "multiprocessing_context": context}
    return own_trainer(train=DataLoader(Images(), batch_size=10, **loading), **options)


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_trainer_takes_the_same_batches_of_worker_processes_whatever_ran_before(context):
    first, second = worked(context), worked(context)
    first.fit()
    torch.rand(5)
    second.fit()
    assert first.step == 5
    assert_equal_state(second.state(), first.state())


def test_trainer_resumed_on_batches_of_worker_processes_equals_the_uninterrupted_run(tmp_path):
    whole = worked("fork", epochs=2)
    whole.fit()
    with pytest.raises(Interrupted):
        worked("fork", epochs=2, callbacks=[Checkpoints(tmp_path), Watch(stop_after=7)]).fit()
    resumed = worked("fork", epochs=2)
    torch.rand(5)
    assert Checkpoints(tmp_path).resume(resumed)
    assert resumed.step == 7
    resumed.fit()
    assert_equal_state(resumed.state(), whole.state())


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set")
def test_trainer_takes_pinned_batches_and_networks_without_our_layers():
    data = TensorDataset(torch.rand(30, 6), torch.randint(3, (30,)))
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    optimizer = torch.optim.AdamW([{"params": model[0].parameters(), "lr": 0.1}, {"params": model[2].parameters()}])
    loader = DataLoader(data, batch_size=8, shuffle=True, pin_memory=True)
    factors = []

    def schedule(epoch: float) -> float:
        factors.append(epoch)
        return 1 / (1 + epoch)

    trainer = Trainer(
        model, optimizer, loader, loader, loss=cross_entropy, epochs=2, lr_schedule=schedule, precision="bfloat16"
    )
    trainer.fit()
    row = trainer.history[-1]
    assert (row["density"], row["connectivity"], row["active"], row["firing_rates"]) == (1.0, 1.0, {}, {})
    assert factors == [step / 4 for step in range(8)]
    first, second = optimizer.param_groups
    assert first["lr"] == 0.1 / (1 + 7 / 4)
    assert second["lr"] == 0.001 / (1 + 7 / 4)
    trainer.load_state(trainer.state())


@pytest.mark.parametrize("sampler", ["shuffle", "set_epoch"])
@pytest.mark.parametrize("step", [3, 5, 12])
def test_trainer_resumed_on_a_dataloader_skips_what_was_done_and_equals_the_uninterrupted_run(tmp_path, sampler, step):
    def loader() -> DataLoader:
        data = Images()
        distributed = DistributedSampler(data, num_replicas=1, rank=0, seed=4)
        order = {"shuffle": True} if sampler == "shuffle" else {"sampler": distributed}
        return DataLoader(data, batch_size=10, collate_fn=together, **order)

    whole = own_trainer(loader())
    whole.fit()
    stopped = own_trainer(loader(), callbacks=[Checkpoints(tmp_path), Watch(stop_after=step)])
    with pytest.raises(Interrupted):
        stopped.fit()
    resumed = own_trainer(loader())
    torch.rand(7)  # whatever ran before
    assert Checkpoints(tmp_path).resume(resumed)
    assert resumed.step == step
    resumed.fit()
    assert_equal_state(resumed.state(), whole.state())
    assert whole.history[0]["loss"] != whole.history[1]["loss"]


def test_trainer_gives_each_epoch_of_a_shuffling_loader_another_order_and_leaves_the_random_state_alone():
    seen: list[list[int]] = []

    class Noted(TensorDataset):
        def __getitem__(self, number: int) -> Any:
            seen[-1].append(number)
            return super().__getitem__(number)

    class Count(Callback):
        def on_start(self, trainer: Trainer) -> None:
            seen.append([])

        def on_epoch(self, row: dict[str, Any]) -> None:
            seen.append([])

    torch.manual_seed(0)
    data = Noted(torch.rand(12, 6), torch.randint(3, (12,)))
    model = nn.Linear(6, 3)
    loader = DataLoader(data, batch_size=4, sampler=RandomSampler(data))
    before = torch.get_rng_state()
    Trainer(model, torch.optim.SGD(model.parameters()), loader, loss=cross_entropy, epochs=2, callbacks=[Count()]).fit()
    assert torch.equal(torch.get_rng_state(), before)
    assert sorted(seen[0]) == sorted(seen[1]) == list(range(12))
    assert seen[0] != seen[1]


def test_trainer_steps_a_schedule_of_torch_after_each_optimizer_step_and_saves_it(tmp_path):
    def trainer(callbacks: list[Any]) -> Trainer:
        model = nn.Linear(6, 3)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=6)
        return Trainer(
            model, optimizer, batches, loss=cross_entropy, epochs=2, lr_schedule=schedule, callbacks=callbacks
        )

    batches = [(torch.rand(4, 6), torch.randint(3, (4,))) for _ in range(3)]
    rates: list[float] = []
    whole = trainer([Watch(lambda trainer: rates.append(trainer.optimizer.param_groups[0]["lr"]))])
    whole.fit()
    with pytest.raises(Interrupted):
        trainer([Checkpoints(tmp_path), Watch(stop_after=2)]).fit()
    resumed: list[float] = []
    last = trainer([Watch(lambda trainer: resumed.append(trainer.optimizer.param_groups[0]["lr"]))])
    Checkpoints(tmp_path).resume(last)
    last.fit()
    assert resumed == rates[2:]
    assert len(set(rates)) == 6


def test_dataset_loaders_serve_the_trainer_and_any_other_loop():
    dataset = training.load_data(tiny()).held_out(20, seed=1)
    loader = dataset.train_loader(32, seed=4, cutout=3)
    assert len(loader) == 4
    loader.set_epoch(2)
    expected = dataset.train_batches(32, seed=4, epoch=2, cutout=3)
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(loader, expected, strict=True))
    assert sum(len(labels) for _, labels in dataset.loader("validation", 8)) == 20
    with pytest.raises(ValueError, match="split: expected one of train, test, validation, got 'valid'"):
        dataset.loader("valid", 8)

    model = sca.models.build("vgg5", num_classes=10, in_channels=1, image_size=8, width=0.125, time_steps=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = training.losses.each_step
    validation = dataset.loader("validation", 8)
    trainer = Trainer(model, optimizer, loader, dataset.loader("test", 30), loss=loss, epochs=2, validation=validation)
    assert trainer.dataset is dataset
    trainer.fit()
    assert [sorted(key for key in row if key.endswith("_accuracy")) for row in trainer.history] == [
        ["train_accuracy", "validation_accuracy"],
        ["test_accuracy", "train_accuracy", "validation_accuracy"],
    ]
    assert trainer.state()["data"] == dataset.digest


# --- callbacks -----------------------------------------------------------------------------------------------------


class Recorder(Callback):
    """Notes which hook was called when."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.called: list[tuple[str, Any]] = []
        self._stop_after = stop_after

    def on_start(self, trainer: Trainer) -> None:
        self.called.append(("start", trainer.step))

    def on_backward(self, trainer: Trainer) -> None:
        assert all(p.grad is not None for p in trainer.model.parameters())
        self.called.append(("backward", trainer.step))

    def on_batch(self, trainer: Trainer) -> None:
        self.called.append(("batch", trainer.step))
        self.stop_requested = trainer.step == self._stop_after

    def on_update(self, event: sca.pruning.PruneEvent) -> None:
        self.called.append(("update", event.step))

    def on_checkpoint(self, state: dict[str, Any]) -> None:
        self.called.append(("checkpoint", state["epoch"]))

    def on_epoch(self, row: dict[str, Any]) -> None:
        self.called.append(("epoch", row["epoch"]))

    def on_end(self, trainer: Trainer) -> None:
        self.called.append(("end", trainer.step))


def test_callbacks_are_called_in_the_order_of_the_loop():
    recorder = Recorder()
    own_trainer(epochs=1, callbacks=[recorder]).fit()
    backward = [("backward", step) for step in range(5)]
    steps = [("batch", step) for step in range(1, 6)]
    between = [call for pair in zip(backward, steps, strict=True) for call in pair]
    between.insert(3, ("update", 2))
    between.insert(8, ("update", 4))
    assert recorder.called == [("start", 0), *between, ("checkpoint", 1), ("epoch", 1), ("end", 5)]


def test_callbacks_end_also_where_the_run_is_stopped():
    recorder = Recorder(stop_after=2)
    trainer = own_trainer(callbacks=[recorder])
    with pytest.raises(Interrupted):
        trainer.fit()
    assert recorder.called[-2:] == [("checkpoint", 0), ("end", 2)]
    recorder.stop_requested = False
    with pytest.raises(Interrupted):
        trainer.fit(Watch(stop_after=3))  # one more for this call alone
    recorder.stop_requested = False
    trainer.fit()
    assert trainer.epoch == 3


def test_callback_asks_for_a_checkpoint_and_the_run_goes_on():
    class Asking(Recorder):
        def on_batch(self, trainer: Trainer) -> None:
            super().on_batch(trainer)
            self.checkpoint_requested = trainer.step in (2, 3)

    asking = Asking()
    own_trainer(epochs=1, pruned=False, callbacks=[asking]).fit()
    told = [call for call in asking.called if call[0] in ("batch", "checkpoint")]
    checkpoints = [told[at - 1][1] for at, (name, _) in enumerate(told) if name == "checkpoint"]
    assert checkpoints == [2, 3, 5]
    assert not asking.checkpoint_requested


def test_callbacks_may_change_gradients():
    class Clip(Callback):
        def on_backward(self, trainer: Trainer) -> None:
            nn.utils.clip_grad_norm_(trainer.model.parameters(), 1e-30)

    trainer = own_trainer(pruned=False, callbacks=[Clip()])
    before = trainer.model.head.weight.detach().clone()
    trainer.fit()
    assert torch.equal(trainer.model.head.weight, before)


def test_logs_hold_each_epoch_once_whatever_the_run_went_through(tmp_path):
    logs = [JSONLog(tmp_path), CSVLog(tmp_path), Checkpoints(tmp_path)]
    with pytest.raises(Interrupted):
        own_trainer(callbacks=[*logs, Watch(stop_after=7)]).fit()
    # killed after another epoch whose checkpoint was lost
    (tmp_path / "metrics.csv").write_text((tmp_path / "metrics.csv").read_text() * 2)
    resumed = own_trainer(callbacks=logs)
    assert logs[-1].resume(resumed)
    resumed.fit()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == resumed.history
    assert [json.loads(line) for line in (tmp_path / "updates.jsonl").read_text().splitlines()] == resumed.updates
    with open(tmp_path / "metrics.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [float(row["loss"]) for row in table] == [row["loss"] for row in resumed.history]
    assert [int(row["active/conv"]) for row in table] == [row["active"]["conv"] for row in resumed.history]


def test_best_weights_are_those_of_the_best_epoch_and_survive_a_resumption(tmp_path):
    accuracies = [0.2, 0.7, 0.4, 0.7]

    def state(epoch: int, batches: int = 0) -> dict[str, Any]:
        history = [{"epoch": n + 1, "validation_accuracy": accuracies[n]} for n in range(epoch)]
        weights = {"w": torch.full((2,), float(epoch))}
        parts = {"architecture": None, "active": {}, "model": weights, "average": None}
        return {**parts, "history": history, "sums": {"batches": batches}}

    trainer = own_trainer(validation=[(torch.rand(2, 3, 1, 8, 8), torch.tensor([0, 1, 2]))])
    for epoch in range(1, 5):
        best = BestWeights(tmp_path)  # as a resumed run does
        best.on_start(trainer)
        best.on_checkpoint(state(epoch))
        best.on_checkpoint({**state(epoch, batches=3), "model": {}})
    held = best.load()
    assert (held["epoch"], held["validation_accuracy"], held["model"]["w"].tolist()) == (2, 0.7, [2.0, 2.0])
    checkpoint.save(best.file, {"model": {}})
    with pytest.raises(checkpoint.CheckpointError, match=r"best\.safetensors: not the best weights of a run"):
        BestWeights(tmp_path).on_start(trainer)
    with pytest.raises(ValueError, match="validation: expected images to choose the best epoch by, got none"):
        BestWeights(tmp_path).on_start(own_trainer())


# --- bad input -----------------------------------------------------------------------------------------------------


class Endless(IterableDataset):
    """Batches without a number."""

    def __iter__(self) -> Iterator[Any]:
        return iter(BATCHES)


BATCHES = [(torch.rand(4, 6), torch.randint(3, (4,)))]


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"model": 3}, TypeError, "model: expected a torch.nn.Module"),
        ({"optimizer": [1]}, TypeError, "optimizer: expected a torch.optim.Optimizer"),
        ({"train": 3}, TypeError, "train: expected a loader of batches, got int"),
        ({"train": iter(BATCHES)}, TypeError, "train: expected a loader of batches, .*; an iterator is used up"),
        ({"train": []}, ValueError, "train: expected at least one batch in an epoch, got none"),
        (
            {"train": DataLoader(Endless())},
            TypeError,
            "train: expected a loader with a length, .* got DataLoader without one",
        ),
        ({"test": 3}, TypeError, "test: expected a loader of batches"),
        ({"validation": 3}, TypeError, "validation: expected a loader of batches"),
        ({"loss": "mean"}, TypeError, "loss: expected a function of logits and labels, got str"),
        ({"epochs": 0}, ValueError, "epochs: expected"),
        ({"epochs": 1.5}, TypeError, "epochs: expected"),
        ({"scheduler": 3}, TypeError, "scheduler: expected an sca.SCAScheduler, got int"),
        ({"lr_schedule": 0.1}, TypeError, "lr_schedule: expected a function of the epoch or a schedule of torch"),
        ({"callbacks": [3]}, TypeError, "callbacks: expected objects of sca.training.Callback, .* got 3"),
        ({"callbacks": [Callback]}, TypeError, "callbacks: expected objects of sca.training.Callback"),
        ({"precision": "float8"}, ValueError, "precision: expected one of float32, bfloat16"),
        ({"device": "meta"}, ValueError, "device: expected cpu, where the model is, got 'meta'"),
        ({"ema": 1.0}, ValueError, r"ema: expected a decay in \[0, 1\), got 1.0"),
        ({"freeze": ["2"]}, ValueError, r"freeze: expected patterns .*\(0, 1, ...\), got '2', which fits none"),
        ({"freeze": ["*"]}, ValueError, r"freeze: expected some parameters left to train, got patterns of all: \*"),
        ({"checkpoint_minutes": 0}, ValueError, "checkpoint_minutes: expected a number > 0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_trainer_names_the_argument_that_is_off(changes, kind, message):
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3))
    given = {"model": model, "optimizer": torch.optim.SGD(model.parameters()), "train": BATCHES, "test": None}
    with pytest.raises(kind, match=f"^{message}"):
        Trainer(**{**given, "loss": cross_entropy, "epochs": 1, **changes})
    assert all(p.requires_grad for p in model.parameters())


def test_trainer_says_that_a_plateau_schedule_needs_a_figure():
    model = nn.Linear(6, 3)
    optimizer = torch.optim.SGD(model.parameters())
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    with pytest.raises(TypeError, match="lr_schedule: expected one that depends on the step alone"):
        Trainer(model, optimizer, BATCHES, loss=cross_entropy, epochs=1, lr_schedule=plateau)


@pytest.mark.parametrize(
    ("batch", "kind", "message"),
    [
        (torch.rand(4, 6), TypeError, r"train: expected batches \(images, labels\) of two tensors, got Tensor"),
        ([torch.rand(4, 6)] * 3, TypeError, "train: expected batches .* got \\['Tensor', 'Tensor', 'Tensor'\\]"),
        ((torch.rand(4, 6), [0]), TypeError, "train: expected batches .* got \\['Tensor', 'list'\\]"),
        ((torch.rand(4, 6), torch.eye(4)), ValueError, r"train: expected labels \[N\], got \[4, 4\]"),
        (
            (torch.rand(5, 6), torch.arange(4)),
            ValueError,
            r"train: expected images \[N, ...\] .* got \[5, 6\]",
        ),
    ],
)
def test_trainer_names_what_is_wrong_with_a_batch(batch, kind, message):
    model = nn.Linear(6, 3)
    trainer = Trainer(model, torch.optim.SGD(model.parameters()), [batch], loss=cross_entropy, epochs=1)
    with pytest.raises(kind, match=f"^{message}"):
        trainer.fit()


def test_trainer_names_a_loader_whose_length_is_not_its_number_of_batches():
    class Short(list):
        def __len__(self) -> int:
            return 3

    model = nn.Linear(6, 3)
    trainer = Trainer(model, torch.optim.SGD(model.parameters()), Short(BATCHES), [], loss=cross_entropy, epochs=1)
    with pytest.raises(ValueError, match="train: expected 3 batches in an epoch, as its length says, got 1"):
        trainer.fit()
    with pytest.raises(ValueError, match="test: expected batches, got none"):
        trainer.evaluate()
    with pytest.raises(ValueError, match="name: expected test or validation, of which the trainer has a loader"):
        trainer.evaluate("validation")


def test_load_state_of_ones_own_run_names_what_differs_and_changes_nothing():
    trainer = own_trainer(epochs=1)
    trainer.fit()
    state = trainer.state()
    other = own_trainer(train=BATCHES)
    with pytest.raises(ValueError, match=r"train: expected 5 batches in an epoch, .* got 1"):
        other.load_state(state)
    with pytest.raises(ValueError, match="scheduler: it is of a run with scheduler"):
        own_trainer(pruned=False).load_state(state)
    with pytest.raises(ValueError, match="ema: it is of a run without average"):
        own_trainer(ema=0.9).load_state(state)
    with pytest.raises(ValueError, match="expected the state of a run without a configuration"):
        other.load_state(trainer_of(tiny()).state())
    fresh = own_trainer()
    before = fresh.state()
    renamed = {f"x{name}": value for name, value in state["model"].items()}
    with pytest.raises(ValueError, match=r"model: conv\.weight: expected, got nothing"):
        fresh.load_state({**state, "model": renamed})
    grown = {**state["model"], "head.bias": torch.zeros(7)}
    with pytest.raises(ValueError, match=r"model: head.bias: expected \[4\], got \[7\]"):
        fresh.load_state({**state, "model": grown})
    with pytest.raises(ValueError, match="epochs: expected at least the 9 that are done"):
        fresh.load_state({**state, "epoch": 9, "history": [{}] * 9})
    assert_equal_state(fresh.state(), before)


def test_trainer_of_a_configuration_called_as_before_works_and_names_from_config():
    config = tiny(epochs=1)
    data = training.load_data(config)
    for arguments, options in (
        ((config, data), {}),
        ((config,), {"dataset": data}),
        ((), {"config": config, "dataset": data}),
    ):
        with pytest.warns(DeprecationWarning, match=r"call Trainer\.from_config\(config, dataset, ranks\)") as told:
            trainer = Trainer(*arguments, **options)
        assert Path(told[0].filename) == Path(__file__)
    trainer.fit(Watch(), lambda state: None, lambda row: None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other = Trainer.from_config(config, data)
    other.fit()
    assert_equal_state(trainer.state(), other.state())
