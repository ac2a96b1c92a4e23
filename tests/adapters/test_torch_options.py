"""foreach, capturable and compile: the same words, whichever way a step is run."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import ExponentialLR

import signcore as sc
import signcore_torch
from signcore_conformance import golden
from signcore_torch import joined

STEPS = 5
SHAPES = {"a": (5, 3), "b": (), "c": (11,), "d": (0, 2), "e": (4, 3)}
RULES = {name: golden.variants(name)[0] for name in sc.rules()}
VARIANTS = [(name, k) for name in sc.rules() for k in range(len(golden.variants(name)))]


def values(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    draw = np.random.default_rng(seed)
    return {key: torch.tensor(draw.standard_normal(shape)).to(dtype) for key, shape in SHAPES.items()}


class Training:
    """Parameters of all kinds: `e` is not contiguous, `c` has a gradient in every other step alone."""

    def __init__(self, rule: sc.Rule, dtype: torch.dtype = torch.float32, **how: Any) -> None:
        self.params = {name: torch.nn.Parameter(value.clone()) for name, value in values(0, dtype).items()}
        self.params["e"] = torch.nn.Parameter(values(0, dtype)["e"].t().contiguous().t())
        self.dtype, self.optimizer = dtype, signcore_torch.from_rule(list(self.params.items()), rule, **how)

    def step(self, k: int) -> None:
        calls: list[int] = []

        def closure() -> Any:
            for name, p in self.params.items():
                p.grad = p.detach() * 0.5 if calls else values(k + 1, self.dtype)[name]
            calls.append(1)
            if k % 2:
                self.params["c"].grad = None
            return sc.sums.norm1({name: p.detach() for name, p in self.params.items()})

        self.optimizer.step(closure)

    def words(self) -> Any:
        return signcore_torch.export(self.optimizer)[1:]


def plain(rule: sc.Rule, dtype: torch.dtype = torch.float32) -> Any:
    training = Training(rule, dtype)
    for k in range(STEPS):
        training.step(k)
    return training.words()


@pytest.mark.parametrize("how", ["foreach", "capturable"])
@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_the_words_are_those_of_one_parameter_after_the_other(name: str, variant: int, how: str, same: Any) -> None:
    rule = golden.variants(name)[variant]
    training = Training(rule, **{how: True})
    for k in range(STEPS):
        training.step(k)
    same(training.words(), plain(rule))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", golden.plain())
def test_joined_in_other_dtypes(name: str, dtype: torch.dtype, same: Any) -> None:
    rule = RULES[name]
    training = Training(rule, dtype, foreach=True)
    for k in range(STEPS):
        training.step(k)
    same(training.words(), plain(rule, dtype))


def test_elementwise_rules_are_joined_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    real = joined.delta
    monkeypatch.setattr(joined, "delta", lambda rule, *rest: (seen.append(rule.name), real(rule, *rest))[1])
    for rule in RULES.values():
        Training(rule, foreach=True).step(0)
    elementwise = {name for name in golden.plain() if set(RULES[name].kinds.values()) <= {"shared", "element", "copy"}}
    assert {"lion", "signum", "aass", "tiger"} & elementwise == {"lion", "signum", "aass"}
    assert set(seen) == elementwise


def test_dtypes_are_not_mixed_when_parameters_are_joined(same: Any) -> None:
    def made(**how: Any) -> list[Any]:
        params = [torch.nn.Parameter(torch.ones(3, dtype=dtype)) for dtype in (torch.float32, torch.float64) * 2]
        optimizer = signcore_torch.Lion(params, lr=0.1, **how)
        for k in range(3):
            for i, p in enumerate(params):
                p.grad = torch.full_like(p, (-1.0) ** (i + k) / 3)
            optimizer.step()
        return [*params, *(optimizer.state[p]["m"] for p in params)]

    same([x.detach() for x in made(foreach=True)], [x.detach() for x in made()])


@pytest.mark.parametrize("name", ["lion", "alias"])
def test_compiled_once_whatever_the_numbers(name: str, same: Any) -> None:
    rule = RULES[name]
    torch._dynamo.utils.counters.clear()
    ways = [Training(rule), Training(rule, compile=True)]
    schedulers = [ExponentialLR(training.optimizer, 0.7) for training in ways]
    for k in range(0, 8, 2):  # all parameters have gradients in even steps
        for training, scheduler in zip(ways, schedulers, strict=True):
            training.step(k)
            scheduler.step()
    same(ways[1].words(), ways[0].words())
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert not torch._dynamo.utils.counters["graph_break"]


def test_a_state_that_remembers_parameters_has_them_as_they_were(same: Any) -> None:
    # a compiled graph writes into its inputs at its end, where a parameter may be new already
    rule = sc.ALIAS(d0=0.1, l_inf0=1.0)
    plainly, compiled = Training(rule), Training(rule)
    compiled.optimizer.step = torch.compile(compiled.optimizer.step, fullgraph=True)  # type: ignore[method-assign]
    for k in (0, 2, 4):
        for training in (plainly, compiled):
            for name, p in training.params.items():
                p.grad = values(k + 1)[name]
            training.optimizer.step()
    same(compiled.words(), plainly.words())


def test_a_compiled_optimizer_is_copied_pickled_and_loaded(same: Any) -> None:
    rule = RULES["lion"]
    first = Training(rule, compile=True)
    first.step(0)
    assert pickle.loads(pickle.dumps(first.optimizer)).defaults["compile"] is True
    other = copy.deepcopy(first)
    loaded = Training(rule, compile=True)
    loaded.optimizer.load_state_dict(first.optimizer.state_dict())
    with torch.no_grad():
        for name, p in loaded.params.items():
            p.copy_(first.params[name])
    for training in (first, other, loaded):
        training.step(2)
    same(other.words(), first.words())
    same(loaded.words(), first.words())


def test_numbers_are_checked_before_a_compiled_step() -> None:
    training = Training(RULES["lion"], compile=True)
    training.step(0)
    before = {name: p.detach().clone() for name, p in training.params.items()}
    for how, bad in (("lr", -1.0), ("lr", float("nan")), ("beta1", 1.5)):
        kept = training.optimizer.param_groups[0][how]
        training.optimizer.param_groups[0][how] = bad
        with pytest.raises(ValueError, match=f"`{how}` is {bad}"):
            training.step(2)
        training.optimizer.param_groups[0][how] = kept
    assert all(torch.equal(before[name], p) for name, p in training.params.items())


@pytest.mark.parametrize("how", [{}, {"foreach": True}, {"capturable": True}])
def test_a_learning_rate_that_a_scheduler_spoils_is_an_error_at_the_step(how: dict[str, Any], same: Any) -> None:
    training = Training(RULES["signum"], **how)
    training.step(0)
    before, kept = copy.deepcopy(training.words()), training.optimizer.param_groups[0]["lr"]
    for bad in (-1.0, float("nan"), float("inf")):
        training.optimizer.param_groups[0]["lr"] = bad
        with pytest.raises(ValueError, match=r"`lr` is .*; it must be finite and in"):
            training.step(2)
    training.optimizer.param_groups[0]["lr"] = kept
    same(training.words(), before)


def test_a_closure_cannot_be_compiled() -> None:
    training = Training(RULES["monotone_signsgd"], compile=True)
    with pytest.raises(ValueError, match="`compile` is True, and MonotoneSignSGD evaluates the closure at other"):
        training.step(0)


def test_a_capture_needs_capturable(monkeypatch: pytest.MonkeyPatch) -> None:
    # stands for a CUDA graph on a machine without a device: what is tested is that the question is asked
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    for how, refused in (({}, True), ({"capturable": True}, False)):
        p = torch.nn.Parameter(torch.ones(2))
        optimizer = signcore_torch.Lion([p], lr=0.1, **how)
        p.grad = torch.ones(2)
        if refused:
            with pytest.raises(RuntimeError, match="`capturable` is False, and a CUDA graph is being captured"):
                optimizer.step()
            assert p.tolist() == [1.0, 1.0]
            assert not optimizer.state
        else:
            optimizer.step()


@pytest.mark.parametrize(("option", "value"), [("foreach", 1), ("capturable", "no"), ("compile", "yes")])
def test_options_are_true_or_false(option: str, value: Any) -> None:
    with pytest.raises(TypeError, match=f"`{option}` is {value!r}; pass True or False"):
        signcore_torch.Lion([torch.nn.Parameter(torch.ones(2))], lr=0.1, **{option: value})


def test_a_gradient_of_another_shape_is_not_hidden_by_joining() -> None:
    p = torch.nn.Parameter(torch.ones(2, 3))
    optimizer = signcore_torch.Lion([("w", p)], lr=0.1, foreach=True)
    p.grad = torch.ones(2, 3)
    optimizer.step()
    optimizer.state[p]["m"] = torch.ones(3, 2)
    with pytest.raises(ValueError, match=r"`state.m` at 'w' has shape \(3, 2\)"):
        optimizer.step()


def test_a_state_dict_from_before_the_options(same: Any) -> None:
    first, second = Training(RULES["lion"]), Training(RULES["lion"], foreach=True)
    held = first.optimizer.state_dict()
    for name in ("foreach", "capturable", "compile"):
        del held["param_groups"][0][name]
    second.optimizer.load_state_dict(held)
    assert second.optimizer.param_groups[0]["foreach"] is True
    second.step(0)
    first.step(0)
    same(second.words(), first.words())
