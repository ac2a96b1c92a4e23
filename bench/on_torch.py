"""What is timed on torch: the core and the adapter, and what a user would otherwise take, eager and compiled."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import torch
from sets import Shape
from timing import Contestant
from torch.utils._python_dispatch import TorchDispatchMode

import signcore as sc
import signcore_torch

Tensors = list[torch.Tensor]


def versions() -> dict[str, str]:
    found = {"torch": torch.__version__, "torch threads": str(torch.get_num_threads())}
    if find_spec("pytorch_optimizer"):
        found["pytorch-optimizer"] = version("pytorch-optimizer")
    return found


def arrays(shapes: list[Shape], seed: int) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


# -- hand-written: in place, with the multi-tensor operations that torch.optim uses itself -------------------


def _sgd(params: Tensors, grads: Tensors, averages: Tensors, lr: float) -> None:
    torch._foreach_add_(params, grads, alpha=-lr)


def _signsgd(params: Tensors, grads: Tensors, averages: Tensors, lr: float) -> None:
    torch._foreach_add_(params, torch._foreach_sign(grads), alpha=-lr)


def _signum(params: Tensors, grads: Tensors, averages: Tensors, lr: float) -> None:
    torch._foreach_lerp_(averages, grads, 1 - 0.9)
    torch._foreach_add_(params, torch._foreach_sign(averages), alpha=-lr)


def _lion(params: Tensors, grads: Tensors, averages: Tensors, lr: float) -> None:
    direction = torch._foreach_lerp(averages, grads, 1 - 0.9)
    torch._foreach_sign_(direction)
    torch._foreach_add_(params, direction, alpha=-lr)
    torch._foreach_lerp_(averages, grads, 1 - 0.99)


def _aass(params: Tensors, grads: Tensors, averages: Tensors, lr: float) -> None:
    torch._foreach_lerp_(averages, torch._foreach_sign(grads), 1 - 0.9)
    response = torch._foreach_clamp_max(averages, 1 - 1e-6)
    torch._foreach_clamp_min_(response, -1 + 1e-6)
    torch._foreach_asin_(response)
    torch._foreach_add_(params, response, alpha=-lr * 4 / math.pi)


Step = Callable[[Tensors], object]
HandWritten = Callable[[Tensors, Tensors, Tensors, float], None]
PEERS: dict[str, HandWritten] = {"sgd": _sgd, "signsgd": _signsgd, "signum": _signum, "lion": _lion, "aass": _aass}


def _hand_written(step: HandWritten, lr: float, shapes: list[Shape]) -> Step:
    params = arrays(shapes, 0)
    averages = [torch.zeros_like(p) for p in params]
    return lambda grads: step(params, grads, averages, lr)


# -- optimizers ----------------------------------------------------------------------------------------------


def _optimizer(build: Callable[[Tensors], Any], shapes: list[Shape]) -> Step:
    params: Tensors = [torch.nn.Parameter(p) for p in arrays(shapes, 0)]
    optimizer = build(params)
    step = optimizer.step

    def with_gradients(grads: Tensors) -> None:
        for p, g in zip(params, grads, strict=True):
            p.grad = g
        step()

    return with_gradients


def _published(name: str, lr: float) -> Iterator[tuple[str, Callable[[Tensors], Any]]]:
    """The optimizer class that a user would take, if somebody publishes one for this rule; AdamW for the scale."""
    if name == "sgd":
        yield "torch.optim.SGD", lambda params: torch.optim.SGD(params, lr=lr, foreach=True)
    yield "torch.optim.AdamW", lambda params: torch.optim.AdamW(params, lr=lr, foreach=True)
    if not find_spec("pytorch_optimizer"):
        return
    import pytorch_optimizer as published

    if name in {"signsgd", "signum"}:
        momentum = 0.9 if name == "signum" else 0.0
        yield "pytorch-optimizer SignSGD", lambda params: published.SignSGD(params, lr=lr, momentum=momentum)
    if name == "lion":
        yield "pytorch-optimizer Lion", lambda params: published.Lion(params, lr=lr)


# -- ours ----------------------------------------------------------------------------------------------------


def _core(rule: sc.Rule, shapes: list[Shape]) -> Step:
    params = arrays(shapes, 0)
    state = rule.init(params)

    def step(grads: Tensors) -> None:
        nonlocal params, state
        params, state = rule.step(params, grads, state)

    return step


def _core_compiled(rule: sc.Rule, shapes: list[Shape]) -> Step:
    """The pure step with its results written back, which the compiler turns into a step in place."""
    params = arrays(shapes, 0)
    state = rule.init(params)

    def in_place(params: Tensors, grads: Tensors, state: Any) -> None:
        new_params, new_state = rule.step(params, grads, state)
        for old, new in zip(_leaves((params, state)), _leaves((new_params, new_state)), strict=True):
            old.copy_(new)

    compiled = torch.compile(in_place, fullgraph=True)
    return lambda grads: compiled(params, grads, state)


def _leaves(tree: Any) -> Tensors:
    if tree is None:
        return []
    return [tree] if isinstance(tree, torch.Tensor) else [leaf for node in tree for leaf in _leaves(node)]


def _ours(rule: sc.Rule, shapes: list[Shape]) -> Iterator[Contestant]:
    yield Contestant("core", "eager", True, _core(rule, shapes))
    if len(shapes) == 1:  # it compiles as long as the adapter, which on 150 tensors takes minutes
        yield Contestant("core", "compiled", True, _core_compiled(rule, shapes))

    def run_as(**how: bool) -> Step:
        return _optimizer(lambda params: signcore_torch.from_rule(params, rule, **how), shapes)

    yield Contestant("adapter", "eager", True, run_as())
    yield Contestant("adapter, foreach=True", "eager", True, run_as(foreach=True))
    yield Contestant("adapter, compile=True", "compiled", True, run_as(compile=True))


def contestants(name: str, lr: float, shapes: list[Shape]) -> Iterator[Contestant]:
    torch.compiler.reset()
    found = list(_ours(sc.rule(name, lr=lr), shapes))
    if name in PEERS:
        hand = PEERS[name]
        found.append(Contestant("hand-written foreach", "eager", False, _hand_written(hand, lr, shapes)))
        compiled = torch.compile(_hand_written(hand, lr, shapes))
        found.append(Contestant("hand-written, compiled", "compiled", False, compiled))
    for label, build in _published(name, lr):
        found.append(Contestant(label, "eager", False, _optimizer(build, shapes)))
    for contestant in found:
        contestant.extra = functools.partial(_extra, contestant.step)
        if contestant.mode == "eager":
            contestant.traffic = functools.partial(_traffic, contestant.step)
    yield from found


def unavailable(name: str) -> list[str]:
    """Peers that a user could have and this machine has not."""
    if name in {"signsgd", "signum", "lion"} and not find_spec("pytorch_optimizer"):
        return ["pytorch-optimizer, which is not installed"]
    return []


class _Traffic(TorchDispatchMode):
    """Bytes that the operations read and write, each operand counted once per operation."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        schema = func._schema
        if any(value.alias_info and not value.alias_info.is_write for value in schema.returns):
            return out  # a view moves nothing
        for declared, value in zip(schema.arguments, args, strict=False):
            moved = sum(tensor.nbytes for tensor in _operands(value))
            if declared.alias_info and declared.alias_info.is_write:
                # written, and read before that unless the operation only overwrites
                self.total += moved if schema.name in {"aten::copy_", "aten::fill_", "aten::zero_"} else 2 * moved
            else:
                self.total += moved
        if not any(value.alias_info for value in schema.returns):
            self.total += sum(tensor.nbytes for tensor in _operands(out))
        return out


def _operands(value: Any) -> Tensors:
    if isinstance(value, torch.Tensor):
        return [value]
    return [x for x in value if isinstance(x, torch.Tensor)] if isinstance(value, (list, tuple)) else []


def _traffic(step: Step, grads: Tensors) -> float:
    with torch.no_grad(), _Traffic() as traffic:
        step(grads)
    return traffic.total


def _extra(step: Step, grads: Tensors) -> float:
    """The most bytes that a step holds at a time beside those it found, as torch's allocator reports them."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
        step(grads)
    recorder = seen.profiler
    assert recorder is not None
    events = [event for event in recorder.kineto_results.events() if event.name() == "[memory]"]
    sums = itertools.accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
    return max(sums, default=0)
