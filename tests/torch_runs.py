"""Trainings of every rule through signcore_torch, and the same on NumPy, on which its contract is tried."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch.optim import lr_scheduler

import signcore as sc
import signcore_torch
from signcore.fields import ranges
from signcore.marks import WHOLE
from signcore.rule import classes
from signcore_conformance import golden

STEPS = 4
RULES = sc.rules()
SHAPES = {"a": (5, 3), "b": (), "c": (0, 2), "d": (4, 3)}
SUBNORMAL = 1e-39
Words = list[tuple[str, tuple[int, ...], bytes]]


def rule_of(name: str, **changes: Any) -> sc.Rule:
    """A rule with the hyperparameters of its golden file; torch's parameter group is the tree that it sees."""
    rule = golden.variants(name)[0].replace(**changes)
    return rule.replace(scope="global") if getattr(rule, "scope", None) == "group" else rule


def class_of(name: str) -> Any:
    """The rule's optimizer."""
    return getattr(signcore_torch, classes()[name].__name__)


def options_of(name: str, **changes: Any) -> dict[str, Any]:
    """Keywords of the optimizer's constructor."""
    rule = rule_of(name)
    return {field.name: getattr(rule, field.name) for field in fields(rule)} | changes


def numbers_of(name: str) -> dict[str, float]:
    """Hyperparameters that may change between steps, but those that are None."""
    rule = rule_of(name)
    return {key: getattr(rule, key) for key in ranges(type(rule)) if getattr(rule, key) is not None}


def tree(seed: int, shapes: Mapping[str, tuple[int, ...]] = SHAPES, dtype: str = "float32") -> dict[str, Any]:
    """Params (seed 0) or gradients with zeros of both signs, and one subnormal among gradients."""
    draw = np.random.default_rng(seed)
    found = {key: np.asarray(draw.standard_normal(shape)).astype(dtype) for key, shape in shapes.items()}
    first = next(iter(found.values())).reshape(-1)
    first[:3] = np.asarray([0.0, -0.0, SUBNORMAL if seed else 0.5]).astype(dtype)
    return found


def to_torch(array: Any) -> torch.Tensor:
    """A tensor of the same words; bfloat16 arrays are none of NumPy's own."""
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(np.array(array))


def loss_at(step: int) -> np.float32:
    """What a closure returns at the first call of a step; a number of its own, so that parts of a model agree on it."""
    return np.float32(3.0) / np.float32(step + 1)


class Training:
    """Parameters `a` to `d`, which is not contiguous, their optimizer, and the closure that rules may need.

    A closure's further calls, at parameters that a rule tries, return a lower loss each: a rule that tries accepts.
    """

    def __init__(
        self, name: str, rule: sc.Rule | None = None, dtype: str = "float32", keys: Iterable[str] = SHAPES, **how: Any
    ) -> None:
        self.name, self.dtype, self.keys = name, dtype, list(keys)
        self.rule = rule_of(name) if rule is None else rule
        start = tree(0, dtype=dtype)
        self.params = {key: torch.nn.Parameter(to_torch(start[key])) for key in self.keys}
        if "d" in self.params:
            self.params["d"] = torch.nn.Parameter(to_torch(start["d"]).t().contiguous().t())
        self.optimizer = self.made(list(self.params.items()), **how)

    def made(self, params: Any, **how: Any) -> Any:
        """An optimizer like this training's own."""
        return signcore_torch.from_rule(params, self.rule, **how)

    @property
    def group(self) -> dict[str, Any]:
        """The first parameter group."""
        return self.optimizer.param_groups[0]

    def give(self, step: int, absent: Iterable[str] = (), scale: float = 1.0) -> None:
        """Write a step's gradients, None for those that are absent."""
        grads = tree(step + 1, dtype=self.dtype)
        for key, p in self.params.items():
            p.grad = None if key in absent else to_torch(grads[key]).mul(scale)

    def step(self, step: int, absent: Iterable[str] = ()) -> Any:
        """One step with a closure."""
        calls: list[int] = []

        def closure() -> Any:
            if not calls:
                self.give(step, absent)
            calls.append(1)
            return loss_at(step) / np.float32(len(calls))

        return self.optimizer.step(closure)

    def run(self, steps: Iterable[int] = range(STEPS)) -> Training:
        for step in steps:
            self.step(step)
        return self

    def words(self) -> Words:
        """Dtype, shape and bytes of every parameter, and of every field of its state."""
        found: list[Any] = []
        for p in self.params.values():
            found += [p, *(self.optimizer.state[p].values() if p in self.optimizer.state else [])]
        return [word_of(x) for x in found]

    def twin(self) -> Training:
        """A training from the same parameters, with an optimizer that has made no step."""
        other = Training.__new__(Training)
        other.name, other.rule, other.dtype, other.keys = self.name, self.rule, self.dtype, self.keys
        other.params = {key: torch.nn.Parameter(p.detach().clone()) for key, p in self.params.items()}
        other.optimizer = other.made(list(other.params.items()))
        return other

    def adopt(self, optimizer: Any) -> Training:
        """A training with a copy of this one's optimizer, whose parameters are copies as well."""
        other = Training.__new__(Training)
        other.name, other.rule, other.dtype, other.keys = self.name, self.rule, self.dtype, self.keys
        flat = [p for group in optimizer.param_groups for p in group["params"]]
        other.params, other.optimizer = dict(zip(self.keys, flat, strict=True)), optimizer
        return other


def word_of(x: Any) -> tuple[str, tuple[int, ...], bytes]:
    """Dtype, shape and bytes of a tensor or an array."""
    if isinstance(x, torch.Tensor):
        x = x.detach().contiguous()
        raw = x.reshape(-1).view(torch.uint8).numpy().tobytes() if x.numel() else b""
        return str(x.dtype).removeprefix("torch."), tuple(x.shape), raw
    x = np.asarray(x)
    return x.dtype.name, x.shape, x.tobytes()


def extras(rule: sc.Rule, step: int) -> dict[str, Any]:
    """What the closure of a training tells a rule, for `rule.step`."""
    calls = [1]

    def value_fn(params: Any) -> Any:
        calls.append(1)
        return loss_at(step) / np.float32(len(calls))

    return {key: {"value": loss_at(step), "value_fn": value_fn}[key] for key in rule.needs}


class OnNumPy:
    """The same training by the functional rule."""

    def __init__(self, rule: sc.Rule, dtype: str = "float32", keys: Iterable[str] = SHAPES) -> None:
        self.rule, self.dtype, self.keys = rule, dtype, list(keys)
        start = tree(0, dtype=dtype)
        self.params: Any = {key: start[key] for key in self.keys}
        self.state = rule.init(self.params)

    def step(self, step: int, absent: Iterable[str] = (), **given: Any) -> None:
        grads = tree(step + 1, dtype=self.dtype)
        held = {key: None if key in absent else grads[key] for key in self.keys}
        more = extras(self.rule, step)
        self.params, self.state = self.rule.step(self.params, held, self.state, **more, **given)

    def words(self) -> Words:
        def found() -> Iterator[Any]:
            for key in self.keys:
                yield self.params[key]
                for name, kind in self.rule.kinds.items():
                    yield getattr(self.state, name) if kind in WHOLE else getattr(self.state, name)[key]

        return [word_of(x) for x in found()]


def schedulers() -> dict[str, Any]:
    """Constructors of torch's learning-rate schedulers, with settings that move within a few steps."""
    s = lr_scheduler
    return {
        "LambdaLR": lambda o: s.LambdaLR(o, [lambda k: 0.5**k] * len(o.param_groups)),
        "MultiplicativeLR": lambda o: s.MultiplicativeLR(o, lambda k: 0.75),
        "StepLR": lambda o: s.StepLR(o, 2),
        "MultiStepLR": lambda o: s.MultiStepLR(o, [1, 3]),
        "ConstantLR": lambda o: s.ConstantLR(o, total_iters=2),
        "LinearLR": lambda o: s.LinearLR(o, total_iters=3),
        "ExponentialLR": lambda o: s.ExponentialLR(o, 0.5),
        "PolynomialLR": lambda o: s.PolynomialLR(o, total_iters=4),
        "CosineAnnealingLR": lambda o: s.CosineAnnealingLR(o, 5),
        "CosineAnnealingWarmRestarts": lambda o: s.CosineAnnealingWarmRestarts(o, 2),
        "OneCycleLR": lambda o: s.OneCycleLR(o, 0.1, total_steps=8, cycle_momentum=False),
        "CyclicLR": lambda o: s.CyclicLR(o, 0.01, 0.1, step_size_up=2, cycle_momentum=False),
        "ChainedScheduler": lambda o: s.ChainedScheduler([s.ExponentialLR(o, 0.5), s.ConstantLR(o, total_iters=2)]),
        "SequentialLR": lambda o: s.SequentialLR(
            o, [s.ConstantLR(o, total_iters=2), s.ExponentialLR(o, 0.5)], milestones=[2]
        ),
        "ReduceLROnPlateau": lambda o: s.ReduceLROnPlateau(o, patience=0),
    }
