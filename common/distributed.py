"""One process or many: the same calls, which do nothing where there is one process."""

from __future__ import annotations

import contextlib
import datetime
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from common.errors import UserError

Value = TypeVar("Value")

# Ranks of a tool wait for one another at the end, and their shares may differ by more than the usual ten minutes.
_PATIENCE_OF_TOOLS = datetime.timedelta(days=1)


def initialise(device: torch.device, timeout: datetime.timedelta = datetime.timedelta(minutes=10)) -> None:
    """Join the process group that `torchrun` describes in the environment; without it, stay alone.

    NCCL for CUDA devices, gloo (on loopback unless the user chose an interface) for the CPU.

    Args:
        timeout: how long a process waits for the others before it gives up.
    """
    if "RANK" not in os.environ or dist.is_initialized():
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    on_loopback = sys.platform == "linux" and backend == "gloo"
    if on_loopback and os.environ.get("MASTER_ADDR", "127.0.0.1") in ("127.0.0.1", "localhost"):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    bound = device if backend == "nccl" else None
    dist.init_process_group(backend, timeout=timeout, device_id=bound, **_store_of_this_start(timeout))


def _store_of_this_start(timeout: datetime.timedelta) -> dict[str, Any]:
    """Arguments that keep this start of the processes apart from the ones before it.

    torchrun restarts processes on the store of their predecessors, where the addresses of these are still to be found:
    whoever reads one before it is overwritten waits for a dead process. On one machine the number of restarts tells
    starts apart; several machines count their restarts on their own, and need TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1.
    """
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT")
    if restarts is None or os.environ.get("GROUP_WORLD_SIZE") != "1":
        return {}
    store, rank, world_size = next(rendezvous("env://", timeout=timeout))
    return {"store": dist.PrefixStore(f"start {restarts}", store), "rank": rank, "world_size": world_size}


def finalise() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


@contextlib.contextmanager
def joined(choice: str = "auto") -> Iterator[torch.device]:
    """The process group for as long as a tool works, and the device of this rank.

    All ranks leave together: torchrun ends the others as soon as one exits with a code other than 0, and rank 0 may
    still be writing. A rank that raises leaves at once.

    Args:
        choice: as for `pick_device`.
    """
    device = pick_device(choice)
    initialise(device, _PATIENCE_OF_TOOLS)
    try:
        yield device
        sys.stdout.flush()
        barrier()
    finally:
        finalise()


def rank() -> int:
    """This process among all processes, from 0 (0 before `initialise`)."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes (1 before `initialise`)."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local_rank() -> int:
    """This process among those of its machine, from 0; the index of its GPU."""
    return int(os.environ.get("LOCAL_RANK", 0))


def local_world_size() -> int:
    """Number of processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))


def pick_device(choice: str = "auto") -> torch.device:
    """`auto` (a GPU when there is one), `cpu` or `cuda`; the GPU is the one of this local rank.

    Raises: UserError if there is no GPU for this process.
    """
    if choice == "cpu" or (choice == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if local_rank() >= count:
        raise UserError(
            f"device cuda: process {local_rank()} of this machine needs a GPU of its own, found {count}; start at most "
            f"{count} with --nproc_per_node, or choose the device cpu (run.device=cpu, --device cpu)."
        )
    device = torch.device("cuda", local_rank())
    torch.cuda.set_device(device)
    return device


def barrier() -> None:
    """Wait for all processes."""
    if dist.is_initialized():
        dist.barrier()


def all_reduce(tensor: Tensor, operation: str = "sum") -> Tensor:
    """Reduce in place over all processes (`sum`, `mean`, `min` or `max`) and return the tensor."""
    if world_size() > 1:
        if operation == "mean":
            dist.all_reduce(tensor, op=dist.ReduceOp.SUM)
            tensor /= world_size()
        else:
            dist.all_reduce(tensor, op=getattr(dist.ReduceOp, operation.upper()))
    return tensor


def all_gather(tensor: Tensor) -> Tensor:
    """The tensors of all processes, stacked in order of rank: [world size, *shape]."""
    if world_size() == 1:
        return tensor[None]
    gathered = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(gathered, tensor)
    return torch.stack(gathered)


def all_gather_objects(value: Any) -> list[Any]:
    """The values of all processes, in order of rank."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def raise_together(error: UserError | None) -> None:
    """Wait for all processes; if any of them has met an error, raise the first one (in order of rank) on all."""
    if met := [found for found in all_gather_objects(error) if found is not None]:
        raise met[0]


def on_rank_0(work: Callable[[], Value]) -> Value:
    """Let rank 0 do something; every rank gets its result, or the UserError that it raised."""
    result: Any = None
    if rank() == 0:
        try:
            result = work()
        except UserError as error:
            result = error
    if world_size() > 1:
        holder = [result]
        dist.broadcast_object_list(holder, src=0)
        result = holder[0]
    if isinstance(result, UserError):
        raise result
    return result
