"""Training in several processes: who they are, what they agree on, and batch norm over all of them, on CPUs too."""

import os
import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sod_ops._peers import import_peer


class Ranks:
    """The processes that torchrun started, or this one alone."""

    def __init__(self, device: str | None) -> None:
        self.count = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.device = torch.device(kind)
        if self.device.type == "cuda" and self.device.index is None:
            self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        if self.count > 1:
            # gloo beside nccl: what is agreed on lies on the CPU, so that no step waits for the GPU.
            dist.init_process_group("cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo")

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.rank == 0

    def wait(self) -> None:
        if self.count > 1:
            dist.all_reduce(torch.zeros(1))  # on the CPU: a barrier of nccl would occupy the GPU

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is set in any of the processes, all of which call this."""
        if self.count == 1:
            return flag
        flags = torch.tensor([int(flag)])
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        return bool(flags.item())

    def mean(self, numbers: Tensor) -> Tensor:
        """The processes' mean of a tensor on the CPU."""
        if self.count > 1:
            dist.all_reduce(numbers)
            numbers /= self.count
        return numbers

    def gather(self, item: Any) -> list[Any] | None:
        """Everyone's ``item`` in the order of ranks, for the first process; None for the others."""
        if self.count == 1:
            return [item]
        items: list[Any] | None = [None] * self.count if self.first else None
        dist.gather_object(item, items)
        return items

    def leave(self) -> None:
        if self.count > 1:
            dist.destroy_process_group()

    def share(self, model: nn.Module) -> nn.Module:
        """``model`` with gradients averaged over the processes: equal to one process with all their samples."""
        if self.count == 1:
            return model
        # Of 1x1 weights: channels_last or not, their memory is the same.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        return DistributedDataParallel(model, device_ids=[self.device.index] if self.device.type == "cuda" else None)

    def synchronise_norms(self, model: nn.Module) -> nn.Module:
        """Lets batch norms take their means and variances from the samples of all processes; in place on CPUs."""
        if self.count == 1:
            return model
        if self.device.type == "cuda":
            # timm's conversion: it knows norms with an activation inside, as PyTorch's does not.
            return import_peer("timm.layers").convert_sync_batchnorm(model)
        for module in model.modules():
            for name, child in module.named_children():
                if isinstance(child, nn.BatchNorm2d):
                    setattr(module, name, CPUSyncBatchNorm(child))
        return model


class CPUSyncBatchNorm(nn.BatchNorm2d):
    """Batch norm over the samples of all processes, on CPUs, where torch.nn.SyncBatchNorm refuses to run.

    It takes over the parameters, buffers and children of another batch norm, among them dropout and activation of timm's
    ``BatchNormAct2d``; its state_dict is the same. All processes must have as many pixels.
    """

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__(norm.num_features)
        self.__dict__.update(norm.__dict__)

    def forward(self, input: Tensor) -> Tensor:
        y = self._over_ranks(input) if self.training else super().forward(input)
        for follower in ("drop", "act"):
            if hasattr(self, follower):
                y = getattr(self, follower)(y)
        return y

    def _over_ranks(self, x: Tensor) -> Tensor:
        statistics = x.float() if x.dtype.itemsize < 4 else x
        variance, mean = (moment.double() for moment in torch.var_mean(statistics, (0, 2, 3), correction=0))
        # In float64 the mean squares, which can be summed, give back the variance without loss.
        moments = _SumOverRanks.apply(torch.stack([mean, variance + mean.square()])) / dist.get_world_size()
        mean, variance = (m.to(statistics.dtype) for m in (moments[0], moments[1] - moments[0].square()))
        self._track(mean.detach(), variance.detach(), dist.get_world_size() * x.numel() // x.shape[1])
        scale = self.weight * torch.rsqrt(variance + self.eps)
        shift = self.bias - mean * scale
        return (x * scale[:, None, None] + shift[:, None, None]).to(x.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: int) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        momentum = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance * count / max(1, count - 1), momentum)


class _SumOverRanks(torch.autograd.Function):
    """The sum over the processes; each one's gradient is the sum of all processes' gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _SumOverRanks.forward(ctx, gradient)
