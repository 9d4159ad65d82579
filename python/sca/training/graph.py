"""A training step as one CUDA graph: between two updates of the structure all steps launch the same work."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sca_kernels import checks

from ..pruning import PruneEvent, SCAScheduler
from ..pruning.fresh_state import is_optimizer
from ..pruning.optimizer import active_optimizer
from ..structure.hooks import is_capturable, is_own
from . import obstacles
from .capture import Capture, DeviceNumbers, Recording, capture_of
from .config import PRECISIONS
from .obstacles import Places, Surroundings
from .precision import autocast

__all__ = ["GraphedStep"]

_PATIENCE = 20
"""Steps in a row of which none is like the one before, after which that is said."""


class GraphedStep:
    """A training step of a user's own loop: forward, loss, backward and the optimizer's step, on CUDA devices captured
    once in a CUDA graph and then repeated by one launch::

        step = sca.training.GraphedStep(model, optimizer, loss_fn, scheduler)
        for images, labels in batches:
            loss = step(images, labels)

    It takes the place of ``optimizer.zero_grad``, the passes, ``optimizer.step``, ``scheduler.probe`` and
    ``scheduler.step``, and trains the same parameters as a loop of these, step by step. Nothing in it waits for the
    device, but for the updates of a scheduler. On other devices, and wherever steps can't be captured, the same step
    runs as it stands; a warning in the log names the reason once.

    **When it is captured.** A step that is unlike the one before runs as it stands, on a side stream; so do the next
    ones, until there were ``warmup`` alike (more, while something waits or is replaced), and each trains on its own
    batch. The next one is captured, which computes nothing, and replayed. Alike means: shapes, strides, dtypes and
    devices of images and labels; the active channels of all groups; the precision, autocast, and whether algorithms are
    deterministic; training or eval mode of each module; which parameters need a gradient; options of the optimizers;
    hooks; and the very tensors of parameters, buffers, activity sums and optimizer state, which loading a state or an
    update replaces. Other switches of torch (TF32, cuDNN's) and what ``loss_fn`` and ``on_backward`` decide in Python
    are as they were when the step was captured: :meth:`release` has it captured anew.

    **One graph is kept.** A batch of another shape, as the last of an epoch, runs as it stands and leaves it, until
    ``warmup`` in a row had that shape. It is let go, with its memory, when the structure or a tensor changes, before
    the next warm-up; each capture has a memory pool of its own, and begins by giving back what torch's allocator holds
    unused. What runs as it stands takes memory beside the graph's.

    **Learning rates** are tensors on the device while a step runs: ``group["lr"] = x``, or a schedule of torch, changes
    them between two steps and captures nothing anew. Momentum, betas and weight decay are part of the graph. Of SGD the
    fused form runs, of optimizers that have one the ``capturable`` one; their groups say so within the step alone, but
    counts of steps in their state stay on the device. Anything else, LBFGS among them, runs as it stands.

    **What is not captured**: models in DistributedDataParallel and its like or with a batch norm over several
    processes, compiled by torch.compile, with hooks that are not marked ``hook.capturable = True``, or with state that
    goes from step to step in attributes (``stateful`` neurons); optimizers that step others; whatever reads a value of
    the device in a step. There is no GradScaler: ``precision="bfloat16"`` needs none.

    Gradients are None at the start of each step, of all parameters of the model and the optimizers, and stay readable
    after it, as ``p.grad``, until the next.

    Args:
        model: trained in the mode that it is in.
        optimizer: one or several; all of them step.
        loss_fn: the scalar loss of logits and labels, a mean over the batch. It may add to tensors in place, which
            each replay does, too.
        scheduler: of the model and the optimizer: after the optimizer's step it is told so, and probes on the same
            batch when it asks for it (through ``loss_fn``), outside of the graph. The steps that it observes before an
            update run as they stand.
        precision: ``float32``, or ``bfloat16`` (autocast).
        accumulate: parts that a batch is taken in, one after the other, whose gradients add up before the optimizer's
            step: less memory. A batch that has no such number of equal parts runs as it stands, in unequal ones.
            Sequences ``[T, N, C, H, W]`` are divided along N, all else along the first dimension.
        warmup: steps in front of a capture.
        on_backward: called between the backward pass and the optimizer's step, for clipping gradients, say. It is part
            of the graph, so it must launch the same work each time and read no value; one with an attribute
            ``capturable`` that is False has steps run as they stand.
        graph: False has every step run as it stands.

    Attributes:
        event: what the scheduler's update after the last step did; None where it was none.
        captures: how many graphs were captured.
        replays: how many steps one was replayed for.
        obstacle: why the last step was not to be captured; None where nothing is in the way.

    Raises:
        TypeError, ValueError: an argument is of another kind or out of range; the message names it.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Iterable[Optimizer],
        loss_fn: Callable[[Tensor, Tensor], Tensor],
        scheduler: SCAScheduler | None = None,
        *,
        precision: str = "float32",
        accumulate: int = 1,
        warmup: int = 3,
        on_backward: Callable[[], None] | None = None,
        graph: bool = True,
    ) -> None:
        self.model = checks.instance("model", model, nn.Module, "a torch.nn.Module")
        self.optimizers = given = [optimizer] if is_optimizer(optimizer) else optimizer
        if not isinstance(given, list | tuple) or not given or not all(map(is_optimizer, given)):
            raise TypeError(f"optimizer: expected a torch.optim.Optimizer, or a list of them, got {optimizer!r:.100}")
        for name, function in ("loss_fn", loss_fn), ("on_backward", on_backward):
            if not callable(function) and not (name == "on_backward" and function is None):
                raise TypeError(f"{name}: expected a function, got {type(function).__name__}")
        if scheduler is not None and not isinstance(scheduler, SCAScheduler):
            raise TypeError(f"scheduler: expected an sca.SCAScheduler, got {type(scheduler).__name__}")
        self.loss_fn, self.scheduler, self.on_backward = loss_fn, scheduler, on_backward
        self.precision = checks.one_of("precision", precision, PRECISIONS)
        self.accumulate = checks.integer("accumulate", accumulate)
        self.warmup = checks.integer("warmup", warmup)
        self.graph = checks.boolean("graph", graph)
        self.event: PruneEvent | None = None
        self.captures = self.replays = 0
        self.obstacle: str | None = None
        self._capture: tuple[torch.device, Capture | None] | None = None
        self._numbers: DeviceNumbers | None = None
        self._recorded: _Recorded | None = None
        self._failed: str | None = None
        self._coming: Surroundings | None = None
        self._steps = self._unlike = 0
        self._is_settled = False

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """One step.

        Args:
            images, labels: what the model and ``loss_fn`` take, on the model's device.

        Returns:
            The loss, 0-dim and detached, on the device: reading it waits for the step.

        Raises:
            TypeError, ValueError: the batch is no pair of tensors; the loss is no scalar.
        """
        checks.instance("images", images, Tensor, "a tensor")
        checks.instance("labels", labels, Tensor, "a tensor")
        capture = self._capture_on(images.device) if self.graph else None
        loss = self._work(images, labels) if capture is None else self._captured(capture, images, labels)
        self.event = None if self.scheduler is None else self._pruned(images, labels)
        return loss

    def release(self) -> None:
        """Let go of the graph and its memory, and of the gradients in it; the next steps warm up anew."""
        if self._recorded is not None:
            for p, gradient in self._recorded.gradients:
                if p.grad is gradient:
                    p.grad = None
            self._recorded.recording.reset()
        self._recorded = self._coming = self._failed = None

    def _capture_on(self, device: torch.device) -> Capture | None:
        if self._capture is None or self._capture[0] != device:
            self.release()
            self._capture, self._numbers = (device, capture_of(device)), DeviceNumbers(self.optimizers, device)
        return self._capture[1]

    def _captured(self, capture: Capture, images: Tensor, labels: Tensor) -> Tensor:
        """A step on a device that captures: replayed, captured and replayed, or as it stands."""
        modules = list(self.model.modules())
        now = Surroundings.of(images, labels, self.precision, modules, self.optimizers)
        places = Places(modules, self.optimizers)
        held = self._recorded
        if held is not None:
            if now == held.surroundings and places == held.places:
                self._count()
                return self._replayed(held, images, labels)
            if now.structure != held.surroundings.structure or places != held.places:
                self.release()
        self._compare(now, images, labels)
        if self.obstacle is not None:
            obstacles.name_once(self.obstacle)
            return self._work(images, labels)
        if self._steps >= self.warmup and self._is_settled:
            held = self._record(capture, now, places, images, labels)
            if held is not None:
                return self._replayed(held, images, labels)
            obstacles.name_once(self.obstacle)
            return self._work(images, labels)
        return self._warmed_up(capture, now, places, images, labels)

    def _compare(self, now: Surroundings, images: Tensor, labels: Tensor) -> None:
        """Whether this step is like the one before, and what stands against capturing it where it isn't."""
        if now == self._coming:
            self._unlike = 0
            return
        if self._coming is not None:
            self._unlike += 1
        if self._unlike == _PATIENCE:
            changing = [name for name in now._fields if getattr(now, name) != getattr(self._coming, name)]
            obstacles.name_once(f"no two steps in a row are alike, by their {' and '.join(changing)}")
        self._coming, self._steps, self._is_settled = now, 0, False
        self.obstacle = self._found(images, labels)

    def _found(self, images: Tensor, labels: Tensor) -> str | None:
        """What stands against capturing steps on such a batch."""
        if self._failed is not None:
            return self._failed
        for name, z in ("images", images), ("labels", labels):
            if type(z) is not Tensor or z.layout is not torch.strided or z.requires_grad or z.device != images.device:
                return f"the {name} are no ordinary tensor on {images.device}, or need a gradient"
        if not getattr(self.on_backward, "capturable", True):
            return f"{self.on_backward!r} does not say that it is capturable"
        reasons = (of(each) for of, each in self._asked(images.device))
        return next((reason for reason in reasons if reason is not None), None)

    def _asked(self, device: torch.device) -> Iterator[tuple[Callable[[Any], str | None], Any]]:
        yield lambda model: obstacles.of_model(model, device), self.model
        for optimizer in self.optimizers:
            yield obstacles.of_optimizer, optimizer

    def _warmed_up(self, capture: Capture, now: Surroundings, places: Places, images: Tensor, labels: Tensor) -> Tensor:
        """A step as it stands, with what it would be captured with. It counts, unless pruning looks at it."""
        kept = obstacles.kept_between_steps(self.model)
        self._numbers.prepare()
        self._numbers.update()
        with self._numbers.in_place():
            if self._recorded is None:
                loss, waited = capture.aside(lambda: self._work(images, labels))
            else:  # in the memory that evaluation has, too
                loss, waited = self._work(images, labels), None
        if any(is_own(hook) and not is_capturable(hook) for hook in now.hooks):
            return loss
        self._steps += 1
        self.obstacle = self._failed = obstacles.of_state(self.optimizers, images.device)
        after = obstacles.kept_between_steps(self.model)
        moved = [what for what in after if what not in kept or not obstacles.same(kept[what], after[what])]
        is_same = not moved and places == Places(list(self.model.modules()), self.optimizers)
        self._is_settled = is_same and waited is None
        if not self._is_settled and self._steps > self.warmup + 2:
            what = moved[0] if moved else "tensors of the model or the optimizer are replaced"
            self.obstacle = f"a step waits for the device, at {waited}" if is_same else f"{what} from step to step"
            self._failed = self.obstacle
        return loss

    def _record(
        self, capture: Capture, now: Surroundings, places: Places, images: Tensor, labels: Tensor
    ) -> _Recorded | None:
        """Capture this step; None, and everything as it was, where that fails."""
        self.release()
        self._coming = now
        self._numbers.update()
        batch = images.clone(), labels.clone()
        before = _Before(self.model, self.optimizers, self._parameters())
        try:
            with self._numbers.in_place():
                recording, loss = capture.record(lambda: self._work(*batch))
        except BaseException as error:
            before.restore()
            if not isinstance(error, Exception):
                raise
            first = (str(error).splitlines() or [""])[0]
            self.obstacle = self._failed = f"capturing one failed ({type(error).__name__}: {first:.200})"
            return None
        gradients = [(p, p.grad) for p in self._parameters()]
        self._recorded = _Recorded(recording, batch, loss, gradients, now, places)
        self.captures += 1
        return self._recorded

    def _count(self) -> None:
        """Tell the scheduler of a step that no optimizer knows of."""
        for optimizer in self.optimizers:
            active = active_optimizer(optimizer)
            if active is not None:
                active.count_step()

    def _replayed(self, held: _Recorded, images: Tensor, labels: Tensor) -> Tensor:
        self._numbers.update()
        for own, given in zip(held.batch, (images, labels), strict=True):
            own.copy_(given, non_blocking=True)
        held.recording.replay()
        for p, gradient in held.gradients:
            if p.grad is not gradient:
                p.grad = gradient
        self.replays += 1
        self._coming = None  # steps alike are counted from the next one on that is another
        self._unlike = 0
        return held.loss.clone()

    def _parameters(self) -> list[nn.Parameter]:
        """Those of the model and the optimizers, each once."""
        held = (p for optimizer in self.optimizers for group in optimizer.param_groups for p in group["params"])
        return list(dict.fromkeys([*self.model.parameters(), *held]))

    def _work(self, images: Tensor, labels: Tensor) -> Tensor:
        """What a step is."""
        for p in self._parameters():
            p.grad = None
        total: Tensor | None = None
        for part, its_labels, share in self._parts(images, labels):
            loss = self._loss(part, its_labels)
            if share != 1:
                loss = loss * share
            loss.backward()
            total = loss.detach() if total is None else total + loss.detach()
        if self.on_backward is not None:
            self.on_backward()
        for optimizer in self.optimizers:
            optimizer.step()
        return total

    def _loss(self, images: Tensor, labels: Tensor) -> Tensor:
        with self._autocast(images.device.type):
            loss = self.loss_fn(self.model(images), labels)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise ValueError(f"loss_fn: expected a scalar tensor, got {checks.describe(loss)}")
        return loss.reshape(())

    def _autocast(self, kind: str) -> Any:
        if self.precision == "float32" and torch.is_autocast_enabled(kind):
            # the caller's own, whose casts of weights from before must not get into a graph
            return torch.autocast(kind, dtype=torch.get_autocast_dtype(kind), cache_enabled=False)
        return autocast(self.precision, kind)

    def _parts(self, images: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor, float]]:
        """Images, labels and share of each part of a batch."""
        if self.accumulate == 1:
            yield images, labels, 1
            return
        along = 1 if images.dim() == 5 else 0
        parts = zip(images.tensor_split(self.accumulate, along), labels.tensor_split(self.accumulate), strict=True)
        for part, its_labels in parts:
            if len(its_labels):
                yield part, its_labels, len(its_labels) / len(labels)

    def _pruned(self, images: Tensor, labels: Tensor) -> PruneEvent | None:
        """What the scheduler does behind a step."""
        if self.scheduler.wants_probe:
            for part, its_labels, share in self._parts(images, labels):
                self.scheduler.probe(lambda x=part, y=its_labels, s=share: self._loss(x, y) * s)
        return self.scheduler.step()


@dataclass(frozen=True)
class _Recorded:
    """A captured step.

    Attributes:
        batch: images and labels that it reads.
        loss: that of the last replay.
        gradients: of each parameter; their memory is the graph's.
        surroundings, places: those that it is right for.
    """

    recording: Recording
    batch: tuple[Tensor, Tensor]
    loss: Tensor
    gradients: list[tuple[nn.Parameter, Tensor | None]]
    surroundings: Surroundings
    places: Places


class _Before:
    """What Python holds of a model and its optimizers before a capture, to be put back where that fails: what it had
    got to is tensors that were never computed."""

    def __init__(self, model: nn.Module, optimizers: Iterable[Any], parameters: Iterable[nn.Parameter]) -> None:
        self._gradients = [(p, p.grad) for p in parameters]
        modules = list(model.modules())
        live = [holder for m in modules for holder in (vars(m), m._buffers)]
        live += [vars(m.activity) for m in modules if getattr(m, "activity", None) is not None]
        for optimizer in optimizers:
            live += [optimizer.state, *optimizer.state.values(), *optimizer.param_groups]
        self._held = [(holder, dict(holder)) for holder in live]
        self._stepped = [
            (active, active.took_step()) for active in map(active_optimizer, optimizers) if active is not None
        ]
        self._count()

    def restore(self) -> None:
        """Put it back."""
        for p, gradient in self._gradients:
            p.grad = gradient
        for live, held in self._held:
            if live.keys() != held.keys() or any(live[name] is not held[name] for name in held):
                live.clear()
                live.update(held)
        for active, _ in self._stepped:
            active.took_step()
        self._count()

    def _count(self) -> None:
        """Have the scheduler's question answered as before: to ask is to forget."""
        for active, stepped in self._stepped:
            if stepped:
                active.count_step()
