"""A network trained by many processes: averaged gradients, and what each process contributed to them."""

# No deferred annotations in this module: DDP looks at those of the hook.

import contextlib

import torch
from torch import Tensor, nn
from torch.distributed import GradBucket
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from common.distributed import world_size


class Distributed(DistributedDataParallel):
    """DDP that also measures this rank's own gradient, which tells where a bad mean came from."""

    def __init__(self, module: nn.Module):
        super().__init__(module, broadcast_buffers=False)
        self._norms: dict[int, Tensor] = {}
        self.register_comm_hook(None, self._measure_and_average)

    def _measure_and_average(self, state: None, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        norms = torch._foreach_norm(bucket.gradients())
        self._norms.update(zip(map(id, bucket.parameters()), norms, strict=True))
        return allreduce_hook(None, bucket)

    def take_local_norm(self) -> Tensor:
        """Norm of this rank's gradient before the last mean over ranks, scalar."""
        # In the order of the parameters: that of the buckets changes after the first step of a process, and with it
        # the last bits of the sum, so that a resumed run would not log what an unbroken one does.
        norms = [self._norms[id(p)] for p in self.module.parameters() if id(p) in self._norms]
        self._norms.clear()
        return torch.linalg.vector_norm(torch.stack(norms))


def distribute(module: nn.Module) -> nn.Module:
    """The module itself, or with many processes one whose gradients are averaged in the backward pass."""
    return Distributed(module) if world_size() > 1 else module


def gradients_stay_local(module: nn.Module, unless: bool) -> contextlib.AbstractContextManager:
    """Backward passes in here do not average gradients; only the last micro-batch of a step does."""
    return contextlib.nullcontext() if unless or not isinstance(module, Distributed) else module.no_sync()
