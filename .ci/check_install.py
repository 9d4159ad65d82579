"""Check an installed package from outside the checkout: check_install.py native|pure.

`native` wants the compiled backend on; `pure` wants it off, with a reason, and everything working all the same.
"""

from __future__ import annotations

import sys

import torch

import sca
import sca_kernels
from sca_kernels import functional as F


def main(kind: str) -> None:
    if "site-packages" not in (sca_kernels.__file__ or "") or "site-packages" not in (sca.__file__ or ""):
        sys.exit(f"the installed package is not the one imported: {sca_kernels.__file__}, {sca.__file__}")

    x = torch.randn(4, 2, 3, 5, 5)
    try:
        spikes = F.lif(x, backend="cpu").spikes
        found, why = "native", ""
        if not torch.equal(spikes, F.lif(x, backend="reference").spikes):
            sys.exit("the compiled backend and the reference disagree")
    except (RuntimeError, ValueError) as error:
        found, why = "pure", f": {error}"
    if found != kind:
        sys.exit(f"expected a {kind} install, found a {found} one{why}")

    model = sca.models.build("vgg5", num_classes=10, in_channels=1, time_steps=2, image_size=8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    loss = torch.nn.functional.cross_entropy(model(torch.rand(4, 1, 8, 8)).mean(0), torch.arange(4))
    loss.backward()
    optimizer.step()
    if not torch.isfinite(loss) or all(map(torch.equal, before, model.parameters())):
        sys.exit("a training step changed nothing")
    print(
        f"{kind} install of sca_kernels {sca_kernels.__version__}: a training step works, loss {loss.item():.3f}{why}"
    )


if __name__ == "__main__":
    main(sys.argv[1])
