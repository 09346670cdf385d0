"""What a CUDA graph does, on a CPU: the operations of a call are noted with the memory that they read and write, and
done again on that memory, whatever Python would do by then."""

from itertools import chain

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from agents.noise import Noise

WAITS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)


def tensors(values):
    return [value for value in tree_leaves(values) if isinstance(value, torch.Tensor)]


def memory(tensor):
    return tensor.untyped_storage().data_ptr()


class GpuNoise(Noise):
    """Dropout drawn as on a GPU: on a CPU the number of draws is not the same from call to call."""

    def dropout_mask(self, p, *shape):
        mask = torch.full((self.runs, *shape), 1 / (1 - p))
        return mask.mul_(torch.empty_like(mask).bernoulli_(1 - p, generator=self.generators[0]))


class Tape(TorchDispatchMode):
    """A recorder for `bench.cuda_graphs`; recording leaves no trace in memory or in generators, as with CUDA."""

    def __init__(self, generators):
        super().__init__()
        self.generators = generators
        self.operations = []
        self.before = {}  # memory that was there before the recording -> a tensor of it, and what it held
        self.made = set()

    def warm_up(self, call):
        return call()

    def record(self, call):
        states = [generator.get_state() for generator in self.generators]
        with self:
            call()
        with torch.no_grad():
            for whole, held in self.before.values():
                whole.copy_(held)
        for generator, state in zip(self.generators, states, strict=True):
            generator.set_state(state)

    def replay(self):
        with torch.no_grad():
            for function, args, kwargs, results in self.operations:
                shared = {memory(tensor) for tensor in tensors((args, kwargs))}
                for new, recorded in zip(tensors(function(*args, **kwargs)), tensors(results), strict=True):
                    if memory(recorded) not in shared:
                        assert new.shape == recorded.shape, f"{function} gives another shape than when it was recorded"
                        recorded.copy_(new)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in WAITS:
            raise RuntimeError(f"{function} waits for the device")
        names = function._schema.arguments
        values = chain(zip(names, args, strict=False), ((name, kwargs.get(name.name)) for name in names[len(args) :]))
        for name, value in values:
            if name.alias_info is not None and name.alias_info.is_write:
                for tensor in tensors(value):
                    self._keep(tensor)
        results = function(*args, **kwargs)
        self.operations.append((function, args, kwargs, results))
        shared = {memory(tensor) for tensor in tensors((args, kwargs))}
        self.made |= {memory(tensor) for tensor in tensors(results)} - shared
        return results

    def _keep(self, tensor):
        where = memory(tensor)
        if where not in self.made and where not in self.before:
            whole = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
            self.before[where] = whole, whole.clone()
