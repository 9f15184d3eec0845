"""Several processes that do together what one would do alone: the same noise, and nothing computed twice."""

import contextlib
from collections.abc import Callable

import torch
from accelerate import Accelerator, PartialState
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
DRAWN_IN_PLACE = {aten.exponential_.default, aten.bernoulli_.float, aten.normal_.default, aten.uniform_.default}
DRAWN_ANEW = {
    aten.rand.default,
    aten.randn.default,
    aten.randint.default,
    aten.randint.low,
}
DRAWN_ALIKE = {aten.rand_like.default, aten.randn_like.default}


def shared_noise(batch_size: int, accelerator: Accelerator):
    """In several processes, a context in which each draws the noise of the whole batch and keeps its share of it, so that
    they see what one process would see. All of them have to be seeded alike."""
    if accelerator.num_processes == 1:
        return contextlib.nullcontext()
    return SharedNoise(batch_size // accelerator.num_processes, accelerator.process_index, accelerator.num_processes)


class SharedNoise(TorchDispatchMode):
    """Every random tensor whose first dimension is a process's `share` of the batch is drawn for the whole batch."""

    def __init__(self, share: int, process: int, num_processes: int):
        super().__init__()
        self.share = share
        self.num_processes = num_processes
        self.mine = slice(process * share, (process + 1) * share)

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if op in DRAWN_ANEW:
            *numbers, size = args
            if self.is_batch(size):
                return op(*numbers, self.whole(size), **kwargs)[self.mine]
        elif op in DRAWN_ALIKE:
            if self.is_batch(args[0].shape):
                return op(self.empty_whole(args[0]), **kwargs)[self.mine]
        elif op in DRAWN_IN_PLACE:
            if self.is_batch(args[0].shape):
                return args[0].copy_(op(self.empty_whole(args[0]), *args[1:], **kwargs)[self.mine])
        return op(*args, **kwargs)

    def is_batch(self, size) -> bool:
        return len(size) > 0 and size[0] == self.share

    def whole(self, size) -> list[int]:
        return [self.num_processes * size[0], *size[1:]]

    def empty_whole(self, x: Tensor) -> Tensor:
        """Uninitialised, for the whole batch, laid out in memory like x, since that is the order noise is drawn in."""
        layout = torch.channels_last if x.ndim == 4 and not x.is_contiguous() else torch.contiguous_format
        return x.new_empty(self.whole(x.shape)).contiguous(memory_format=layout)


def computed_once(compute: Callable[[], Tensor], like: Callable[[], tuple[tuple, torch.dtype]]) -> Tensor:
    """compute(), by the first process; the others wait for it and receive a copy, of the shape and type that like() says."""
    state = PartialState()
    if state.num_processes == 1:
        return compute()
    if state.is_main_process:
        result = compute().contiguous()
    else:
        shape, dtype = like()
        result = torch.empty(shape, dtype=dtype, device=state.device)
    torch.distributed.broadcast(result, 0)
    return result
