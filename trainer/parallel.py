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
        self._squares: list[Tensor] = []
        self.register_comm_hook(None, self._measure_and_average)

    def _measure_and_average(self, state: None, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        self._squares.append(torch.linalg.vector_norm(bucket.buffer()).square())
        return allreduce_hook(None, bucket)

    def take_local_norm(self) -> Tensor:
        """Norm of this rank's gradient before the last mean over ranks, scalar."""
        norm = torch.stack(self._squares).sum().sqrt()
        self._squares.clear()
        return norm


def distribute(module: nn.Module) -> nn.Module:
    """The module itself, or with many processes one whose gradients are averaged in the backward pass."""
    return Distributed(module) if world_size() > 1 else module


def gradients_stay_local(module: nn.Module, unless: bool) -> contextlib.AbstractContextManager:
    """Backward passes in here do not average gradients; only the last micro-batch of a step does."""
    return contextlib.nullcontext() if unless or not isinstance(module, Distributed) else module.no_sync()
