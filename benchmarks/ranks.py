"""Memory of training on several ranks: `python -m benchmarks.ranks [--batch-size N] [--precision P]`.

VGG-16, T = 4, 32x32 images: the peak of all tensors beyond the model and its batch over the first three steps, with
optimizer and gradients, of one process and of one of two over gloo with the same batch each: batch norms that share
their statistics, and all that `sca train` does, DistributedDataParallel around it.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import sca
from sca.bench.memory import allocated
from sca.bench.work import sgd, training_step
from sca.training import Ranks
from sca.training.distributed import set_norm_group


def _alone(model: nn.Module, rank: int) -> nn.Module:
    return model


def _shared_statistics(model: nn.Module, rank: int) -> nn.Module:
    set_norm_group(model, True)
    return model


def _whole_run(model: nn.Module, rank: int) -> nn.Module:
    return Ranks(rank, 2).wrap(model)


WAYS: dict[str, Callable[[nn.Module, int], nn.Module]] = {
    "one process": _alone,
    "two, batch norm over both": _shared_statistics,
    "two, and DistributedDataParallel": _whole_run,
}


def peak(way: str, batch_size: int, precision: str, **config: Any) -> int:
    """Bytes at the peak of the first process; ``config`` as of ``sca.models.build``."""
    count = 1 if way == "one process" else 2
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_measure, (count, folder, way, batch_size, precision, config), nprocs=count)
        return int(Path(folder, "peak").read_text())


def _measure(rank: int, count: int, folder: str, way: str, batch_size: int, precision: str, config: Any) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = sca.models.build(**{"name": "vgg16", "time_steps": 4, **config}, in_channels=3, num_classes=10)
    images = torch.randn(batch_size, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (batch_size,))

    def steps() -> object:
        wrapped = WAYS[way](model, rank)
        optimizer = sgd(wrapped)
        for _ in range(3):
            training_step(wrapped, images, labels, optimizer, precision)
        return optimizer

    store = torch.distributed.FileStore(str(Path(folder, "store")), count)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=count)
    try:
        found = allocated(steps).peak
    finally:
        torch.distributed.destroy_process_group()
    if rank == 0:
        Path(folder, "peak").write_text(str(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=32, help="of each process")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    options = parser.parse_args()
    alone = None
    for way in WAYS:
        found = peak(way, options.batch_size, options.precision)
        alone = alone or found
        print(f"{way}: {found / 2**20:.1f} MiB, {found / alone:.3f} of one process")


if __name__ == "__main__":
    main()
