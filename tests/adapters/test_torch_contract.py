"""What torch's users expect of an optimizer in every spelling, option and dtype, and what is refused; bits alone.

For the elementwise rules, on which the adapter's code is tried to the last branch; every point for every rule is in
test_torch_points.py. The reference is the functional rule on NumPy arrays.
"""

import copy
import dataclasses
import gc
import inspect
import io
import math
import pickle
import warnings

import ml_dtypes
import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch_runs import schedulers

import signcore as sc
import signcore_torch
from signcore.fields import ranges
from signcore.marks import marks
from signcore.rule import classes
from signcore_conformance import golden
from signcore_torch.options import DEFAULTS

STEPS = 4
# Not Rprop, whose least step is not the learning rate: several of these tests take a step of length zero. Its words
# are in test_every_rule.py.
RULES = [name for name in golden.plain() if name != "rprop"]
ALONE = ("ties", "aggregation")  # what changes nothing for one worker
DTYPES = ["float16", "bfloat16", "float32", "float64"]
SHAPES = [(5, 3), (), (0,), (7,)]


def options_of(name, **changes):
    """Hyperparameters that all take part, whatever their names."""
    allowed = ranges(classes()[name])
    numbers = {key: 0.5 for key, limit in allowed.items() if limit.below == 1.0}
    numbers |= {"lr": 0.01, "weight_decay": 0.1}
    if "momentum" in allowed:  # elsewhere it needs an option
        numbers |= {"dampening": 0.5}
    if changes.get("nesterov"):
        numbers |= {key: 0.0 for key in numbers if key == "dampening"}
    return numbers | changes


def rule_of(name, **changes):
    return sc.rule(name, **options_of(name, **changes))


def class_of(name):
    return getattr(signcore_torch, classes()[name].__name__)


def variants():
    """Every rule with every choice of each of its static options."""
    for name in RULES:
        cls = classes()[name]
        yield name, {}
        for field in dataclasses.fields(cls):
            for choice in () if field.name in ALONE else field.metadata.get("choices", ()):
                if choice not in (field.default, "raise"):
                    yield name, {field.name: choice}


VARIANTS = list(variants())
IDS = ["-".join([name, *(f"{k}={v}" for k, v in options.items())]) for name, options in VARIANTS]
NOISY = [name for name, options in VARIANTS if rule_of(name, **options).draws_noise]
each_rule = pytest.mark.parametrize("name", RULES)
each_variant = pytest.mark.parametrize(("name", "options"), VARIANTS, ids=IDS)
each_noisy = pytest.mark.parametrize("name", NOISY)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)


def noisy_options(name):
    return next(options for rule, options in VARIANTS if rule == name and rule_of(name, **options).draws_noise)


def to_torch(x):
    if x.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(x.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(np.array(x))


def arrays(seed, dtype="float32", shapes=SHAPES):
    """Params (seed 0) or gradients with zeros of both signs and a subnormal, as NumPy arrays."""
    draw = np.random.default_rng(seed)
    found = [np.asarray(draw.standard_normal(shape)).astype(dtype) for shape in shapes]
    found[0].reshape(-1)[:3] = np.asarray([0.0, -0.0, 1e-38 if seed else 0.5]).astype(dtype)
    return found


def parameters(dtype="float32", shapes=SHAPES):
    return [torch.nn.Parameter(to_torch(x)) for x in arrays(0, dtype, shapes)]


def give(params, grads):
    for p, g in zip(params, grads, strict=True):
        p.grad = None if g is None else to_torch(g)


def states(optimizer, params):
    """The functional state's columns, from the parameters' dicts."""
    return {name: [optimizer.state[p][name] for p in params] for name in optimizer.state[params[0]]}


def columns(state, count):
    """The same of a functional state."""
    kinds = {name: mark.kind for name, mark in marks(type(state)).items()}
    return {
        name: [getattr(state, name)] * count if kinds[name] == "shared" else getattr(state, name)
        for name in state._fields
        if getattr(state, name) is not None
    }


def run(optimizer, params, steps=range(STEPS), dtype="float32"):
    for step in steps:
        give(params, arrays(step + 1, dtype, [tuple(p.shape) for p in params]))
        optimizer.step()


def plain(node):
    """Containers of Python values, with tensors as dtype, shape and bytes."""
    if isinstance(node, torch.Tensor):
        return str(node.dtype), tuple(node.shape), bytes(node.detach().numpy().tobytes())
    if isinstance(node, dict):
        return [(key, plain(value)) for key, value in node.items()]  # the order counts
    return [plain(value) for value in node] if isinstance(node, (list, tuple)) else node


def snapshot(optimizer):
    """Everything an optimizer knows."""
    return plain([optimizer.state_dict(), optimizer.param_groups, optimizer.defaults])


def moved(rule, params, state):
    """The state under a rule with other options: in its state dtype, with streams where it draws noise."""
    fresh = rule.init(params)
    return fresh._replace(
        **{
            name: [x if x.dtype == new.dtype else x.astype(new.dtype) for x, new in zip(old, news, strict=True)]
            if isinstance(news := getattr(fresh, name), list) and old is not None
            else (news if old is None or news is None else old)
            for name, old in state._asdict().items()
        }
    )


class TestTrajectory:
    @each_dtype
    @each_variant
    def test_is_the_functional_rule(self, name, options, dtype, same):
        rule = rule_of(name, **options)
        reference = arrays(0, dtype)
        state = rule.init(reference)
        params = parameters(dtype)
        optimizer = signcore_torch.from_rule(params, rule)
        for step in range(STEPS):
            grads = arrays(step + 1, dtype)
            reference, state = rule.step(reference, grads, state)
            give(params, grads)
            optimizer.step()
            same(params, reference)
            same(states(optimizer, params), columns(state, len(params)))

    @each_rule
    def test_hostile_gradients(self, name, same):
        rule = rule_of(name)
        reference = arrays(0)
        state = rule.init(reference)
        params = parameters()
        optimizer = signcore_torch.from_rule(params, rule)
        for value in (1e38, -1e38, 1e-38, math.inf, math.nan, 1.0):
            grads = [np.full_like(x, value) for x in reference]
            with np.errstate(all="ignore"):
                reference, state = rule.step(reference, grads, state)
            give(params, grads)
            optimizer.step()
            same(params, reference)
            same(states(optimizer, params), columns(state, len(params)))


class TestT1Constructor:
    @each_rule
    def test_signature(self, name):
        cls, fields = class_of(name), {field.name: field for field in dataclasses.fields(classes()[name])}
        found = inspect.signature(cls).parameters
        assert list(found)[:2] == ["params", "lr"]
        assert set(found) == {"params", *fields, *DEFAULTS, "process_group", "check_every"}
        for key, field in fields.items():
            missing = field.default is dataclasses.MISSING
            assert found[key].default is (inspect.Parameter.empty if missing else field.default)

    @each_rule
    def test_is_a_class_of_the_package(self, name):
        cls = class_of(name)
        assert issubclass(cls, torch.optim.Optimizer)
        assert (cls.__module__, cls.__qualname__) == ("signcore_torch", classes()[name].__name__)
        assert pickle.loads(pickle.dumps(cls)) is cls
        assert cls.__name__ in signcore_torch.__all__

    @each_rule
    def test_documentation(self, name):
        doc = inspect.getdoc(class_of(name))
        assert doc.startswith(inspect.getdoc(classes()[name]).splitlines()[0])
        for field in inspect.signature(class_of(name)).parameters:
            assert field in doc, field
        assert "signcore_torch." in doc
        assert "sc." not in doc
        assert doc.index("params : iterable") < doc.index("\nlr :")

    @each_rule
    def test_ways_to_pass_parameters(self, name):
        cls, options = class_of(name), options_of(name)
        a, b = parameters()[:2]
        for params in ([a, b], (p for p in (a, b)), [{"params": [a]}, {"params": b, "lr": 0.5}], {a: 0, b: 0}.keys()):
            optimizer = cls(params, **options)
            assert [p for group in optimizer.param_groups for p in group["params"]] == [a, b]
        named = cls([("a", a), ("b", b)], **options)
        assert named.param_groups[0]["param_names"] == ["a", "b"]
        assert cls([a], 0.25, **{k: v for k, v in options.items() if k != "lr"}).defaults["lr"] == 0.25

    @each_rule
    def test_error_types_of_the_base(self, name):
        cls, options, p = class_of(name), options_of(name), parameters()[0]
        with pytest.raises(ValueError, match="empty parameter list"):
            cls([], **options)
        with pytest.raises(TypeError, match="iterable of Tensors or dicts"):
            cls(p, **options)
        with pytest.raises(TypeError, match="can only optimize Tensors"):
            cls([0.0], **options)
        with pytest.raises(TypeError, match="ordered collections"):
            cls([{"params": {p}}], **options)
        with pytest.raises(ValueError, match="non-leaf"):
            cls([p * 2], **options)
        with pytest.raises(ValueError, match="more than one parameter group"):
            cls([{"params": p}, {"params": p}], **options)
        with pytest.warns(UserWarning, match="duplicate parameters"):
            cls([p, p], **options)

    @each_rule
    def test_every_hyperparameter_is_in_defaults_and_groups(self, name):
        options = options_of(name)
        optimizer = class_of(name)([{"params": p} for p in parameters()], **options)
        for field in dataclasses.fields(classes()[name]):
            expected = options.get(field.name, field.default)
            assert optimizer.defaults[field.name] == expected
            assert all(group[field.name] == expected for group in optimizer.param_groups)

    @each_rule
    def test_numbers_are_checked(self, name):
        cls, options, params = class_of(name), options_of(name), parameters()
        for key, allowed in ranges(classes()[name]).items():
            for bad in (-0.5, math.nan, math.inf, torch.tensor(-0.5), np.float32(-0.5), "0.1", None):
                with pytest.raises((ValueError, TypeError), match=f"`{key}` is "):
                    cls(params, **options | {key: bad})
            if allowed.below == 1.0:
                with pytest.raises(ValueError, match=f"`{key}` is 1.0"):
                    cls(params, **options | {key: 1.0})
            with pytest.raises(ValueError, match=rf"`{key}` is a tensor of shape \(2,\)"):
                cls(params, **options | {key: torch.tensor([0.1, 0.2])})
            with pytest.raises(ValueError, match=f"`{key}` is "):
                cls([{"params": params, key: -1.0}], **options)
            optimizer = cls(params[:1], **options)
            before = snapshot(optimizer)
            with pytest.raises(ValueError, match=f"`{key}` is "):
                optimizer.add_param_group({"params": params[1:], key: -1.0})
            assert snapshot(optimizer) == before

    @each_rule
    def test_options_are_checked(self, name):
        cls, options = class_of(name), options_of(name)
        for field in dataclasses.fields(classes()[name]):
            if "choices" in field.metadata:
                with pytest.raises(ValueError, match=f"`{field.name}` is 'nonsense'; choose one of"):
                    cls(parameters(), **options | {field.name: "nonsense"})

    @each_rule
    def test_unknown_and_missing_keywords(self, name):
        cls = class_of(name)
        with pytest.raises(TypeError, match="'weight_decai'; did you mean 'weight_decay'"):
            cls(parameters(), **options_of(name), weight_decai=0.1)
        for field in dataclasses.fields(classes()[name]):
            if field.default is dataclasses.MISSING:
                with pytest.raises(TypeError, match=f"`{field.name}` is missing"):
                    cls(parameters())

    @each_rule
    @pytest.mark.parametrize("option", ["differentiable", "fused"])
    def test_t13_options_of_torchs_own(self, name, option):
        cls, options, params = class_of(name), options_of(name), parameters()
        with pytest.raises(TypeError, match=f"`{option}` is True; .*compile=True"):
            cls(params, **options, **{option: True})
        with pytest.raises(TypeError, match=f"`{option}` is True"):
            cls([{"params": params, option: True}], **options)
        for nothing in (False, None):
            assert option not in cls(params, **options, **{option: nothing}).defaults

    @each_rule
    def test_numpy_numbers_become_python_numbers(self, name):
        options = {key: np.float32(value) for key, value in options_of(name).items()}
        optimizer = class_of(name)([{"params": parameters(), "lr": np.float64(0.5)}], **options)
        assert {type(optimizer.param_groups[0][key]) for key in options} == {float}
        assert optimizer.defaults["lr"] == float(np.float32(0.01))

    @each_rule
    def test_a_group_is_the_callers_dict(self, name):
        group = {"params": parameters(), "tag": "mine"}
        optimizer = class_of(name)([group], **options_of(name))
        assert optimizer.param_groups[0] is group
        assert group["tag"] == "mine"

    @each_rule
    def test_setstate_fills_in_later_options(self, name):
        cls = classes()[name]
        fields = [field.name for field in dataclasses.fields(cls) if field.default is not dataclasses.MISSING]
        optimizer = class_of(name)(parameters(), **options_of(name))
        old = optimizer.__getstate__()
        for field in fields:
            del old["defaults"][field]
            for group in old["param_groups"]:
                del group[field]
        new = class_of(name).__new__(class_of(name))
        new.__setstate__(old)
        for field in dataclasses.fields(cls):
            if field.name in fields:
                assert new.param_groups[0][field.name] == new.defaults[field.name] == field.default
        run(new, new.param_groups[0]["params"])

    def test_from_rule(self):
        with pytest.raises(TypeError, match="`rule` is 'x'"):
            signcore_torch.from_rule(parameters(), "x")
        for name, options in VARIANTS:
            rule = rule_of(name, **options)
            optimizer = signcore_torch.from_rule(parameters(), rule)
            assert type(optimizer) is class_of(name)
            assert {field.name: optimizer.defaults[field.name] for field in dataclasses.fields(rule)} == (
                dataclasses.asdict(rule)
            )

    def test_a_rule_of_ones_own(self, same):
        base = classes()[RULES[0]]
        mine = type("Mine", (base,), {"__doc__": None, "__module__": "elsewhere"})
        rule = mine(lr=0.5)
        params = parameters()
        optimizer = signcore_torch.from_rule(params, rule)
        assert type(signcore_torch.from_rule(params, rule)) is type(optimizer)
        assert type(optimizer).__name__ == "Mine"
        give(params, arrays(1))
        optimizer.step()
        same(params, rule.step(arrays(0), arrays(1), rule.init(arrays(0)))[0])
        assert type(copy.deepcopy(optimizer)) is type(optimizer)

    def test_a_users_subclass(self):
        params = parameters()

        class Mine(class_of(RULES[0])):
            def __init__(self, params, extra):
                super().__init__(params, lr=0.5)
                self.extra = extra

            def step(self, closure=None):
                self.extra += 1
                return super().step(closure)

        optimizer = Mine(params, 1)
        run(optimizer, params, range(2))
        assert optimizer.extra == 3
        assert optimizer.state[params[0]]["step"] == 2

    def test_repr(self):
        for name in RULES:
            assert "lr: 0.01" in repr(class_of(name)(parameters(), **options_of(name)))


class TestT2Step:
    @each_rule
    def test_closure(self, name):
        params = parameters(shapes=[(3,)])
        optimizer = class_of(name)(params, **options_of(name))
        modes = []

        def closure():
            modes.append(torch.is_grad_enabled())
            optimizer.zero_grad()
            loss = (params[0] ** 2).sum()
            loss.backward()
            return loss

        with torch.no_grad():
            loss = optimizer.step(closure)
            assert not torch.is_grad_enabled()
        assert modes == [True]
        assert torch.is_tensor(loss)
        assert loss.requires_grad
        assert optimizer.step() is None
        assert not params[0].grad.requires_grad
        assert all(not value.requires_grad for value in optimizer.state[params[0]].values())

    @each_rule
    def test_hooks(self, name):
        params = parameters()
        optimizer = class_of(name)(params, **options_of(name))
        give(params, arrays(1))
        calls = []
        hooks = [
            register_optimizer_step_pre_hook(lambda *a: calls.append("global pre")),
            optimizer.register_step_pre_hook(lambda opt, args, kwargs: calls.append(("pre", opt, args, kwargs))),
            optimizer.register_step_post_hook(lambda opt, args, kwargs: calls.append("post")),
            register_optimizer_step_post_hook(lambda *a: calls.append("global post")),
        ]
        try:
            optimizer.step(None)
        finally:
            for hook in hooks:
                hook.remove()
        assert calls == ["global pre", ("pre", optimizer, (optimizer, None), {}), "post", "global post"]
        optimizer.step()
        assert len(calls) == 4

    @each_rule
    def test_step_is_wrapped_once(self, name):
        cls = class_of(name)
        cls(parameters(), **options_of(name))
        step = cls.step
        assert step.hooked
        optimizer = cls(parameters(), **options_of(name))
        pickle.loads(pickle.dumps(optimizer))
        assert cls.step is step
        assert "step" not in vars(optimizer)

    @each_rule
    def test_writes_in_place(self, name):
        params = parameters()
        optimizer = class_of(name)(params, **options_of(name))
        run(optimizer, params, range(1))
        before = [p.data_ptr() for p in params] + [v.data_ptr() for p in params for v in optimizer.state[p].values()]
        run(optimizer, params, range(1, 3))
        after = [p.data_ptr() for p in params] + [v.data_ptr() for p in params for v in optimizer.state[p].values()]
        assert before == after


class TestT3Gradients:
    @each_rule
    def test_no_gradient_no_state(self, name, same):
        params = parameters()
        optimizer = class_of(name)(params, **options_of(name))
        optimizer.step()
        assert not optimizer.state
        give(params[1:], arrays(1)[1:])
        optimizer.step()
        same(params[0], arrays(0)[0])
        assert set(optimizer.state) == set(params[1:])

    @each_variant
    def test_late_and_absent_gradients(self, name, options, same):
        """As the functional rule on the whole group, with None for gradients that are not there."""
        rule = rule_of(name, **options)
        reference, params = arrays(0), parameters()
        state = rule.init(reference)
        optimizer = signcore_torch.from_rule(params, rule)
        for step, absent in enumerate([{1, 3}, {1}, {0, 1}, set(), {2}]):
            grads = [None if i in absent else g for i, g in enumerate(arrays(step + 1))]
            reference, state = rule.step(reference, grads, state)
            give(params, grads)
            optimizer.step()
            same(params, reference)
            wanted = columns(state, len(params))
            for i, p in enumerate(params):
                if p in optimizer.state:
                    same(optimizer.state[p], {key: column[i] for key, column in wanted.items()})
        assert len(optimizer.state) == len(params)

    @each_variant
    def test_gradients_are_not_written(self, name, options, same):
        params = parameters()
        optimizer = class_of(name)(params, **options_of(name, **options))
        for step in range(2):
            give(params, arrays(step + 1))
            held = [p.grad for p in params]
            optimizer.step()
            assert all(p.grad is g for p, g in zip(params, held, strict=True))
            same(held, arrays(step + 1))

    @each_rule
    def test_sparse_gradients(self, name, same):
        params = parameters(shapes=[(3, 2), (2,)])
        groups = [{"params": params[1:]}, {"params": params[:1]}]
        optimizer = class_of(name)(groups, **options_of(name))
        params[1].grad = torch.ones(2)
        params[0].grad = torch.ones(3, 2).to_sparse()
        with pytest.raises(RuntimeError, match=r"`grads` at '1' is torch.sparse_coo.*to_dense"):
            optimizer.step()
        same(params, arrays(0, shapes=[(3, 2), (2,)]))
        assert not optimizer.state

    @each_rule
    @pytest.mark.parametrize("dtype", ["complex64", "int32", "bool", "float8_e4m3fn"])
    def test_parameters_that_are_not_computed_with(self, name, dtype):
        """Refused when they are given: without a gradient no step would ever look at them."""
        cls, options = class_of(name), options_of(name)
        p, bad = parameters(shapes=[(3,)])[0], torch.ones(3).to(getattr(torch, dtype))
        match = f"has dtype {dtype}; signcore computes with float16, .*: convert the parameter, or leave it out"
        for index, params in [(0, [bad]), (1, [p, bad]), (1, [{"params": p}, {"params": bad}]), (1, iter([p, bad]))]:
            with pytest.raises(TypeError, match=rf"`params` at '{index}' {match}"):
                cls(params, **options)
        with pytest.raises(TypeError, match=f"`params` at 'layer.bad' {match}"):
            cls([("layer.good", p), ("layer.bad", bad)], **options)
        optimizer = cls([p], **options)
        before = snapshot(optimizer)
        for params in (bad, [bad], iter([bad])):
            group = {"params": params}
            with pytest.raises(TypeError, match=f"`params` at '1' {match}"):
                optimizer.add_param_group(group)
            assert snapshot(optimizer) == before
            assert list(group) == ["params"]
        q = parameters(shapes=[(3,)])[0]
        optimizer.add_param_group({"params": iter([q])})
        assert optimizer.param_groups[1]["params"] == [q]

    @each_rule
    @pytest.mark.parametrize("named", [False, True])
    def test_errors_name_the_parameter(self, name, named, same):
        """Its own name, or its index over all groups, as in a state_dict; not that in what a step computes."""
        called = ["enc.z", "enc.a", "dec.z", "dec.a"] if named else ["0", "1", "2", "3"]

        def make(**changes):
            params = parameters()
            given = list(zip(called, params, strict=True)) if named else params
            groups = [{"params": given[:2]}, {"params": given[2:]}]
            return params, class_of(name)(groups, **options_of(name, **changes))

        def refused(kind, match):
            before, held = snapshot(optimizer), [p.detach().clone() for p in params]
            with pytest.raises(kind, match=match) as caught:
                optimizer.step()
            assert snapshot(optimizer) == before
            same([p.detach() for p in params], held)
            assert caught.value.__suppress_context__ or caught.value.__context__ is None

        for first in (0, 2):  # at the first step, and with a state
            for j in (1, 3):
                params, optimizer = make(nonfinite="raise")
                run(optimizer, params, range(first))
                give(params, [None if i != j else np.full_like(x, math.nan) for i, x in enumerate(arrays(1))])
                params[1].grad = params[1].grad if j == 1 else torch.full_like(params[1], 0.5)
                refused(FloatingPointError, f"`grads` at '{called[j]}' holds inf or NaN")

                params, optimizer = make()
                run(optimizer, params, range(first))
                params[j - 1].grad = None
                params[j].data = params[j].data.to(torch.complex64)
                params[j].grad = torch.ones_like(params[j])
                with pytest.raises(TypeError, match=f"`params` at '{called[j]}' has dtype complex64"):
                    optimizer.step()

                params, optimizer = make()
                run(optimizer, params, range(first))
                give(params, arrays(1))
                params[j - 1].grad = None
                params[j].grad = params[j].grad.to_sparse()
                refused(RuntimeError, f"`grads` at '{called[j]}' is torch.sparse_coo")
        params, optimizer = make()
        run(optimizer, params, range(2))
        for field, value in optimizer.state[params[3]].items():
            if field != "step":  # which is one of the group, not of a parameter
                optimizer.state[params[3]][field] = torch.zeros(5, dtype=value.dtype)
                refused(ValueError, rf"`state\.{field}` at '{called[3]}' ")
                optimizer.state[params[3]][field] = value

    @each_rule
    def test_a_warning_names_the_parameter(self, name):
        params = parameters(shapes=[(3,), (3,)])
        params[1].data.fill_(1e-40)
        optimizer = class_of(name)(params, **options_of(name))
        params[1].grad = torch.ones(3)
        with pytest.warns(UserWarning, match="`params` at '1' holds subnormal numbers"):
            optimizer.step()

    @each_rule
    def test_two_parameters_of_one_name(self, name):
        params = parameters(shapes=[(3,), (3,)])
        optimizer = class_of(name)([("w", p) for p in params], **options_of(name))
        give(params, arrays(1, shapes=[(3,), (3,)]))
        with pytest.raises(ValueError, match="two leaves are called 'w'; rename one"):
            optimizer.step()
        assert not optimizer.state

    @each_variant
    def test_layout_does_not_matter(self, name, options, same):
        plain, strided = parameters(shapes=[(4, 6), (4, 6)])[:1], torch.empty(6, 8)[:, ::2].t()
        strided.copy_(plain[0].detach())
        strided.requires_grad_()
        assert not strided.is_contiguous()
        optimizers = [class_of(name)([p], **options_of(name, **options)) for p in (plain[0], strided)]
        for step in range(STEPS):
            g = arrays(step + 1, shapes=[(4, 6)])[0]
            plain[0].grad = to_torch(g)
            strided.grad = torch.empty(6, 4).t().copy_(to_torch(g))
            assert not strided.grad.is_contiguous()
            for optimizer in optimizers:
                optimizer.step()
        same(plain[0].detach(), strided.detach().contiguous())
        same(
            dict(optimizers[0].state[plain[0]]),
            {key: value.contiguous() for key, value in optimizers[1].state[strided].items()},
        )

    @each_rule
    def test_channels_last(self, name, same):
        p = torch.nn.Parameter(torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)))
        q = torch.nn.Parameter(p.detach().to(memory_format=torch.channels_last))
        for x in (p, q):
            optimizer = class_of(name)([x], **options_of(name))
            for _ in range(2):
                x.grad = torch.linspace(-1, 1, x.numel()).reshape(x.shape)
                optimizer.step()
        same(p.detach(), q.detach().contiguous())

    @each_rule
    def test_an_error_changes_nothing(self, name, same):
        """Also not in the groups before the one that is wrong."""
        params = parameters()
        optimizer = class_of(name)([{"params": params[:2]}, {"params": params[2:]}], **options_of(name))
        run(optimizer, params, range(1))
        held, before = [p.detach().clone() for p in params], snapshot(optimizer)
        give(params, arrays(2))

        def unchanged(match, kind=ValueError):
            with pytest.raises(kind, match=match):
                optimizer.step()
            same([p.detach() for p in params], held)

        group = optimizer.param_groups[1]
        for key, bad in {"lr": -1.0, "weight_decay": math.nan, "nonfinite": "never"}.items():
            good, group[key] = group[key], bad
            unchanged(f"`{key}` is ")
            group[key] = good
            assert snapshot(optimizer) == before
        group["nonfinite"] = "raise"
        params[3].grad[0] = math.nan
        unchanged("`grads` at '3' holds inf or NaN", FloatingPointError)
        group["nonfinite"] = "propagate"
        assert snapshot(optimizer) == before

    @each_rule
    def test_raise_at_the_first_step_leaves_no_state(self, name):
        params = parameters()
        optimizer = class_of(name)(params, **options_of(name, nonfinite="raise"))
        give(params, [np.full_like(x, math.inf) for x in arrays(0)])
        with pytest.raises(FloatingPointError, match="`grads`"):
            optimizer.step()
        assert not optimizer.state

    @each_rule
    def test_holds_no_temporaries(self, name):
        """Nothing but parameters, gradients and state stays alive between steps."""
        params = parameters(shapes=[(1234,)])
        optimizer = class_of(name)(params, **options_of(name))
        run(optimizer, params, range(2))
        gc.collect()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # isinstance on torch's deprecated objects
            alive = sum(type(x) in (torch.Tensor, torch.nn.Parameter) and x.shape == (1234,) for x in gc.get_objects())
        assert alive == 2 + sum(value.shape == (1234,) for value in optimizer.state[params[0]].values())


class TestT4Groups:
    @each_variant
    def test_groups_are_separate_optimizers(self, name, options, same):
        together, apart = parameters(), parameters()
        names = [f"layer.{i}" for i in range(len(SHAPES))]  # names, because an index would key other noise
        first, second = options_of(name, **options), options_of(name, **options) | {"lr": 0.5, "weight_decay": 0.0}
        named = [list(zip(names, params, strict=True)) for params in (together, apart)]
        one = class_of(name)(
            [{"params": named[0][:2]}, {"params": named[0][2:], "lr": 0.5, "weight_decay": 0.0}], **first
        )
        two = [class_of(name)(named[1][:2], **first), class_of(name)(named[1][2:], **second)]
        for step in range(STEPS):
            give(together, arrays(step + 1))
            give(apart, arrays(step + 1))
            one.step()
            for optimizer in two:
                optimizer.step()
            same(together, apart)
        for p, q in zip(together, apart, strict=True):
            same(dict(one.state[p]), dict({**two[0].state, **two[1].state}[q]))

    @each_noisy
    def test_noise_is_keyed_by_name_or_index(self, name, same, differ):
        rule = rule_of(name, **noisy_options(name), lr=0.5)
        zeros = [np.zeros_like(x) for x in arrays(0)]

        def one_step(params, flat):
            optimizer = signcore_torch.from_rule(params, rule)
            give(flat, zeros)
            optimizer.step()
            return [p.detach() for p in flat]

        def named(names):
            params = parameters()
            return one_step(list(zip(names, params, strict=True)), params)

        flat = parameters()
        unnamed = one_step(flat, flat)
        same(unnamed, rule.step(arrays(0), zeros, rule.init(arrays(0)))[0])
        flat = parameters()
        same(unnamed, one_step([{"params": flat[:1]}, {"params": flat[1:]}], flat))
        same(unnamed, named(["0", "1", "2", "3"]))
        assert differ(unnamed, named(["a", "b", "c", "d"]))
        keys = rule.init(dict(zip("abcd", arrays(0), strict=True)))
        stepped, _ = rule.step(dict(zip("abcd", arrays(0), strict=True)), dict(zip("abcd", zeros, strict=True)), keys)
        same(named(["a", "b", "c", "d"]), list(stepped.values()))

    @each_rule
    def test_any_number_may_change_between_steps(self, name, same):
        rule = rule_of(name)
        reference, params = arrays(0), parameters()
        state = rule.init(reference)
        optimizer = signcore_torch.from_rule(params, rule)
        for step, (key, factor) in enumerate((k, f) for k in ranges(type(rule)) for f in (0.5, 0.0, 0.25)):
            hyper = {key: getattr(rule, key) * factor}
            optimizer.param_groups[0].update(hyper)
            grads = arrays(step + 1)
            give(params, grads)
            optimizer.step()
            reference, state = rule.step(reference, grads, state, hyper=hyper)
            same(params, reference)
            same(states(optimizer, params), columns(state, len(params)))
            optimizer.param_groups[0][key] = getattr(rule, key)

    @each_variant
    def test_any_option_may_change_between_steps(self, name, options, same):
        rules = [rule_of(name), rule_of(name, **options), rule_of(name)]
        reference, params = arrays(0), parameters()
        state = rules[0].init(reference)
        optimizer = signcore_torch.from_rule(params, rules[0])
        for step, rule in enumerate(rules):
            optimizer.param_groups[0].update(dataclasses.asdict(rule))
            state = moved(rule, reference, state)
            grads = arrays(step + 1)
            give(params, grads)
            optimizer.step()
            reference, state = rule.step(reference, grads, state)
            same(params, reference)

    @each_rule
    def test_add_param_group_late(self, name, same):
        rule = rule_of(name)
        reference, params = arrays(0), parameters()
        optimizer = signcore_torch.from_rule(params[:2], rule)
        first, second = rule.init(reference[:2]), rule.init(reference[2:])
        for step in range(STEPS):
            grads = arrays(step + 1)
            give(params, grads)
            if step == 2:
                optimizer.add_param_group({"params": params[2:], "lr": 0.5})
            optimizer.step()
            reference[:2], first = rule.step(reference[:2], grads[:2], first)
            if step >= 2:
                reference[2:], second = rule.step(reference[2:], grads[2:], second, hyper={"lr": 0.5})
            same(params, reference)

    @each_dtype
    @each_rule
    def test_mixed_dtypes_in_a_group(self, name, dtype, same):
        rule = rule_of(name)
        reference = [arrays(0, dtype)[0], arrays(0)[3]]
        params = [torch.nn.Parameter(to_torch(x)) for x in reference]
        state = rule.init(reference)
        optimizer = signcore_torch.from_rule(params, rule)
        for step in range(STEPS):
            grads = [arrays(step + 1, dtype)[0], arrays(step + 1)[3]]
            give(params, grads)
            optimizer.step()
            reference, state = rule.step(reference, grads, state)
        same(params, reference)


class TestT5LearningRates:
    @each_dtype
    @each_rule
    def test_tensors_of_one_element(self, name, dtype, same):
        """Of the compute dtype: a float64 parameter needs a float64 tensor for a number like 0.1."""
        like = torch.float64 if dtype == "float64" else torch.float32
        trajectories = []
        for spell in (float, lambda v: torch.tensor(v, dtype=like), lambda v: torch.tensor([v], dtype=torch.float64)):
            params = parameters(dtype)
            options = {key: spell(value) for key, value in options_of(name).items()}
            optimizer = class_of(name)(params, **options)
            run(optimizer, params, dtype=dtype)
            trajectories.append([params, states(optimizer, params)])
            assert optimizer.param_groups[0]["lr"] is options["lr"]
        same(trajectories[0], trajectories[1])
        same(trajectories[0], trajectories[2])

    @pytest.mark.parametrize("kind", list(schedulers()))
    def test_schedulers(self, representative, kind, same):
        name = representative
        rule = rule_of(name)
        trajectories = []
        for tensor in (False, True):
            reference, params = arrays(0), parameters()
            half = [reference[:2], reference[2:]]
            per_group = [rule.init(part) for part in half]
            lr = torch.tensor(0.01, dtype=torch.float64) if tensor else 0.01
            options = options_of(name) | {"lr": lr}
            optimizer = class_of(name)([{"params": params[:2]}, {"params": params[2:]}], **options)
            scheduler = schedulers()[kind](optimizer)
            assert all("initial_lr" in group for group in optimizer.param_groups) or kind == "ReduceLROnPlateau"
            rates = []
            for step in range(6):
                grads = arrays(step + 1)
                give(params, grads)
                rates.append(float(optimizer.param_groups[0]["lr"]))
                for i, part in enumerate((slice(0, 2), slice(2, 4))):
                    hyper = {"lr": float(optimizer.param_groups[i]["lr"])}
                    half[i], per_group[i] = rule.step(half[i], grads[part], per_group[i], hyper=hyper)
                optimizer.step()
                scheduler.step(*([1.0] if kind == "ReduceLROnPlateau" else []))
                same(params, [*half[0], *half[1]])
            assert len(set(rates)) > 1
            trajectories.append(rates)
            if tensor:
                assert all(torch.is_tensor(group["lr"]) for group in optimizer.param_groups)

    @each_rule
    def test_cycled_momentum(self, name):
        """torch's schedulers cycle a hyperparameter called momentum, and say so where there is none."""
        optimizer = class_of(name)(parameters(), **options_of(name))
        if "momentum" in ranges(classes()[name]):
            lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=8)
            assert optimizer.param_groups[0]["momentum"] == 0.95
        else:
            with pytest.raises(ValueError, match="momentum"):
                lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=8)

    @each_rule
    def test_initial_lr_survives(self, name):
        optimizer = class_of(name)(parameters(), **options_of(name))
        lr_scheduler.ExponentialLR(optimizer, 0.5)
        new = class_of(name)(parameters(), **options_of(name))
        new.load_state_dict(optimizer.state_dict())
        assert new.param_groups[0]["initial_lr"] == 0.01
        lr_scheduler.ExponentialLR(new, 0.5, last_epoch=3)

    @each_rule
    def test_schedules_of_the_core(self, name, same, tmp_path):
        rule = rule_of(name, lr=sc.schedules.linear_warmup(0.1, 2, sc.schedules.cosine(0.1, total_steps=5)))
        reference, params = arrays(0), parameters()
        state = rule.init(reference)
        optimizer = signcore_torch.from_rule(params, rule)
        for step in range(6):
            grads = arrays(step + 1)
            give(params, grads)
            optimizer.step()
            reference, state = rule.step(reference, grads, state)
            same(params, reference)
        torch.save(optimizer.state_dict(), tmp_path / "state.pt")
        loaded = torch.load(tmp_path / "state.pt", weights_only=True)
        assert loaded["param_groups"][0]["lr"] == rule.lr


def saved(state_dict):
    buffer = io.BytesIO()
    torch.save(state_dict, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


COPIES = {
    "load": lambda optimizer, make: loaded_into(make(), optimizer.state_dict()),
    "weights_only": lambda optimizer, make: loaded_into(make(), saved(optimizer.state_dict())),
    "deepcopy": lambda optimizer, make: copy.deepcopy(optimizer),
    "pickle": lambda optimizer, make: pickle.loads(pickle.dumps(optimizer)),
}


def loaded_into(optimizer, state_dict):
    optimizer.load_state_dict(state_dict)
    return optimizer


class TestT6T7StateDict:
    @each_rule
    def test_deterministic(self, name):
        found = []
        for _ in range(2):
            params = parameters()
            optimizer = class_of(name)(params, **options_of(name))
            run(optimizer, params)
            found.append(plain(optimizer.state_dict()))
            assert list(optimizer.state_dict()["state"]) == list(range(len(params)))
        assert found[0] == found[1]

    @pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
    @each_variant
    def test_continuing_is_never_having_stopped(self, name, options, dtype, same):
        params = parameters(dtype)
        options = options_of(name, **options)
        optimizer = class_of(name)([{"params": params[:3]}, {"params": params[3:], "lr": 0.5}], **options)
        run(optimizer, params, range(3), dtype)

        def make():
            fresh = [torch.nn.Parameter(p.detach().clone()) for p in params]
            return class_of(name)([{"params": fresh[:3]}, {"params": fresh[3:]}], **options)

        continued = []
        for way in COPIES.values():
            other = way(optimizer, make)
            theirs = [p for group in other.param_groups for p in group["params"]]
            mine, held = states(optimizer, params), copy.deepcopy([params, states(optimizer, params)])
            same(mine, states(other, theirs))
            assert {k: v for k, v in other.param_groups[1].items() if k != "params"} == (
                {k: v for k, v in optimizer.param_groups[1].items() if k != "params"}
            )
            run(other, theirs, range(3, 6), dtype)
            same([params, mine], held)  # no aliasing
            continued.append([theirs, states(other, theirs)])
        run(optimizer, params, range(3, 6), dtype)
        for found in continued:
            same([params, states(optimizer, params)], found)

    @each_rule
    def test_groups_dicts_are_not_shared(self, name):
        optimizer = class_of(name)(parameters(), **options_of(name) | {"lr": torch.tensor(0.01)})
        state_dict = optimizer.state_dict()
        other = loaded_into(class_of(name)(parameters(), **options_of(name)), state_dict)
        other.param_groups[0]["lr"].fill_(0.5)
        other.param_groups[0]["weight_decay"] = 0.75
        assert float(optimizer.param_groups[0]["lr"]) == float(torch.tensor(0.01))
        assert optimizer.param_groups[0]["weight_decay"] == 0.1
        assert "Packed" not in repr(state_dict)

    @each_noisy
    @each_dtype
    def test_dtypes_survive(self, name, dtype, same):
        params = parameters(dtype)
        optimizer = class_of(name)(params, **options_of(name, **noisy_options(name)))
        run(optimizer, params, dtype=dtype)
        for p in params:
            optimizer.state[p]["step"].fill_(16777217)
        state_dict = saved(optimizer.state_dict())
        fresh = parameters(dtype)
        other = loaded_into(class_of(name)(fresh, **options_of(name)), state_dict)
        same(states(optimizer, params), states(other, fresh))
        for p in fresh:
            assert int(other.state[p]["step"]) == 16777217
            for field, kind in rule_of(name, **noisy_options(name)).kinds.items():
                value = other.state[p][field]
                if kind == "element":
                    assert value.dtype == (torch.float64 if dtype == "float64" else torch.float32)
                else:
                    assert value.dtype == torch.int32

    @each_rule
    def test_python_counters(self, name, same):
        params = parameters()
        optimizer = class_of(name)(params, **options_of(name))
        run(optimizer, params)
        state_dict = copy.deepcopy(optimizer.state_dict())
        for own in state_dict["state"].values():
            own["step"] = own["step"].item()
        fresh = [torch.nn.Parameter(p.detach().clone()) for p in params]
        other = loaded_into(class_of(name)(fresh, **options_of(name)), state_dict)
        for p in fresh:
            assert other.state[p]["step"].dtype == torch.int32
        run(other, fresh)
        run(optimizer, params)
        same(params, fresh)

    @each_rule
    def test_older_state_dict(self, name):
        """One that was written before an option existed."""
        params = parameters()
        optimizer = class_of(name)(params, **options_of(name))
        run(optimizer, params)
        state_dict = copy.deepcopy(optimizer.state_dict())
        for option in ("maximize", "nonfinite", "state_dtype"):
            for group in state_dict["param_groups"]:
                del group[option]
        optimizer.load_state_dict(state_dict)
        run(optimizer, params)
        assert optimizer.param_groups[0]["maximize"] is False

    @each_rule
    def test_hooks(self, name):
        params = parameters()
        optimizer = class_of(name)(params, **options_of(name))
        run(optimizer, params)
        calls = []
        optimizer.register_state_dict_pre_hook(lambda opt: calls.append("save pre"))
        optimizer.register_state_dict_post_hook(lambda opt, d: calls.append("save post"))
        optimizer.register_load_state_dict_pre_hook(lambda opt, d: {**d, "state": {0: d["state"][0]}})
        optimizer.register_load_state_dict_post_hook(
            lambda opt: calls.append({type(v) for own in opt.state.values() for v in own.values()})
        )
        optimizer.load_state_dict(optimizer.state_dict())
        assert calls == ["save pre", "save post", {torch.Tensor}]
        assert list(optimizer.state) == params[:1]
        assert len(optimizer._optimizer_load_state_dict_pre_hooks) == 1

    @each_rule
    def test_another_optimizers_state(self, name):
        params = parameters()
        optimizer = class_of(name)(params, **options_of(name))
        run(optimizer, params)
        before = snapshot(optimizer)
        adam = torch.optim.Adam(parameters())
        run(adam, adam.param_groups[0]["params"])
        others = [adam.state_dict()]
        for other in set(RULES) - {name}:
            fresh = parameters()
            others.append(class_of(other)(fresh, **options_of(other)).state_dict())
        for state_dict in others:
            with pytest.raises(ValueError, match=f"`state_dict` holds the state of .*, this optimizer is '{name}'"):
                optimizer.load_state_dict(state_dict)
            assert snapshot(optimizer) == before
        with pytest.raises(ValueError, match="`state_dict` has the keys"):
            optimizer.load_state_dict({"model": 0})

    @each_rule
    def test_other_parameters_state(self, name):
        params = parameters()
        optimizer = class_of(name)(params, **options_of(name))
        run(optimizer, params)
        before = snapshot(optimizer)

        def refused(match, state_dict):
            with pytest.raises(ValueError, match=match):
                optimizer.load_state_dict(state_dict)
            assert snapshot(optimizer) == before

        fewer = parameters()[:2]
        refused(
            r'`state_dict\["param_groups"\]\[0\]\["params"\]` has 2 entries for 4 parameters',
            class_of(name)(fewer, **options_of(name)).state_dict(),
        )
        groups = [{"params": p} for p in parameters()]
        refused(
            r'`state_dict\["param_groups"\]` has 4 entries for 1 groups',
            class_of(name)(groups, **options_of(name)).state_dict(),
        )
        good = optimizer.state_dict()
        for field, value in good["state"][0].items():
            half = 0.5 if value.dtype == torch.int32 else 0.1
            for wrong in (torch.zeros(9, 9), torch.full(value.shape, half, dtype=torch.float64)):
                bad = copy.deepcopy(good)
                bad["state"][0][field] = wrong
                refused(rf'`state_dict\["state"\]\[0\]\["{field}"\]` (has shape|is torch.float64)', bad)
            bad = copy.deepcopy(good)
            bad["state"][0] = {key: value for key, value in bad["state"][0].items() if key != field} or {"more": 0}
            refused(rf"""`state_dict\["state"\]\[0\]` lacks \['{field}'\].*must have the fields""", bad)
        bad = copy.deepcopy(good)
        bad["state"][1]["more"] = torch.zeros(())
        refused(r"""`state_dict\["state"\]\[1\]` has \['more'\], unknown""", bad)
        bad = copy.deepcopy(good)
        bad["state"][1]["step"] += 1
        refused(r'`state_dict\["state"\]\[1\]\["step"\]` is 5, that of another parameter of the group 4', bad)
        bad = copy.deepcopy(good)
        bad["param_groups"][0]["lr"] = -1.0
        refused("`lr` is -1.0", bad)

    @each_rule
    def test_damaged(self, name):
        """What is no state_dict is refused with the place; nothing of it is loaded."""
        params = parameters()
        optimizer = class_of(name)([{"params": params[:2]}, {"params": params[2:]}], **options_of(name))
        run(optimizer, params)
        before, good = snapshot(optimizer), optimizer.state_dict()

        def refused(kind, where, *keys, to):
            bad = {"root": copy.deepcopy(good)}
            node, path = bad, ["root", *keys]
            for key in path[:-1]:
                node = node[key]
            node[path[-1]] = to
            with pytest.raises(kind) as caught:
                optimizer.load_state_dict(bad["root"])
            assert str(caught.value).startswith(where), caught.value
            assert "; nothing was loaded: " in str(caught.value)
            assert snapshot(optimizer) == before

        for to in (None, 3, [], [good], "state"):
            refused(TypeError, "`state_dict` is ", to=to)
        refused(ValueError, "`state_dict` has the keys ['state'], not", to={"state": {}})
        for to in (None, 3, [], "x"):
            refused(TypeError, '`state_dict["state"]` is ', "state", to=to)
        for to in (None, 3, {}, "x"):
            refused(TypeError, '`state_dict["param_groups"]` is ', "param_groups", to=to)
        for to in (None, 3, [], "x"):
            refused(TypeError, '`state_dict["param_groups"][1]` is ', "param_groups", 1, to=to)
        for to in (None, 3, torch.ones(2), [], "x"):
            refused(TypeError, '`state_dict["state"][0]` is ', "state", 0, to=to)
        refused(
            ValueError,
            "`state_dict[\"param_groups\"][1]` has no 'params', only ['lr']",
            "param_groups",
            1,
            to={"lr": 1},
        )
        listed = ("param_groups", 1, "params")
        place = '`state_dict["param_groups"][1]["params"]'
        for to in (None, 3, "23", {2, 3}):
            refused(TypeError, f"{place}` is ", *listed, to=to)
        for to in ([2], [2, 3, 4], []):
            refused(ValueError, f"{place}` has {len(to)} entries for 2 parameters", *listed, to=to)
        for to in (None, [3], 0.5):
            refused(TypeError, f"{place}[1]` is {to!r}, it must be a parameter's key", *listed, 1, to=to)
        names = ("param_groups", 1, "param_names")
        refused(TypeError, '`state_dict["param_groups"][1]["param_names"]` is 3', *names, to=3)
        refused(ValueError, '`state_dict["param_groups"][1]["param_names"]` has 1 entries', *names, to=["a"])
        for field in good["state"][0]:
            for to in (None, "x", {}, object(), [[1], [2, 3]], 2**70):
                refused((TypeError, ValueError), f'`state_dict["state"][0]["{field}"]` ', "state", 0, field, to=to)
            shape = good["state"][0][field].shape
            for to in (
                torch.zeros(shape, dtype=torch.complex64),
                torch.zeros(shape, dtype=torch.bool),
                torch.zeros(shape).to_sparse(),
                torch.zeros(shape, device="meta"),
            ):
                refused(TypeError, f'`state_dict["state"][0]["{field}"]` is ', "state", 0, field, to=to)

    @each_rule
    def test_states_of_no_parameter(self, name):
        """They would be kept where no step finds them, and momentum would start from zero."""
        params = parameters()
        optimizer = class_of(name)([{"params": params[:2]}, {"params": params[2:]}], **options_of(name))
        run(optimizer, params)
        before, good = snapshot(optimizer), optimizer.state_dict()

        def refused(match, state, *listed):
            bad = copy.deepcopy({**good, "state": state})
            for group, keys in zip(bad["param_groups"], listed, strict=False):
                group["params"] = keys
            with pytest.raises(ValueError, match=match):
                optimizer.load_state_dict(bad)
            assert snapshot(optimizer) == before

        own = good["state"]
        refused(
            r"""`state_dict\["state"\]` has the keys \['0', '1', '2', '3'\], which 'params' of no group lists \(they """
            r"list \[0, 1, 2, 3\]\); nothing was loaded: .* integers",
            {str(key): value for key, value in own.items()},
        )
        refused(r"has the keys \[7\], which", own | {7: own[0]})
        refused(r"has the keys \[3\], which .* list \[0, 1, 2, 4\]", own, [0, 1], [2, 4])
        twice = r'`state_dict\["param_groups"\]\[{}\]\["params"\]\[1\]` is 0, which another parameter has already'
        refused(twice.format(0), {0: own[0]}, [0, 0])
        refused(twice.format(1), {0: own[0]}, [0, 1], [2, 0])

    @each_rule
    def test_forms_that_torch_allows(self, name, same):
        """Parameters that have not joined, other keys, a hook that adapts, a parameter that was given twice."""
        params = parameters()
        optimizer = class_of(name)(params, **options_of(name))
        give(params, [*arrays(1)[:2], None, None])
        optimizer.step()
        good = optimizer.state_dict()
        assert list(good["state"]) == [0, 1]

        def named(state_dict):
            state = {f"layer.{key}": own for key, own in state_dict["state"].items()}
            groups = [{**g, "params": [f"layer.{key}" for key in g["params"]]} for g in state_dict["param_groups"]]
            return {"state": state, "param_groups": groups}

        for made in (good, named(good), {**good, "state": good["state"] | {3: {}}}):
            fresh = [torch.nn.Parameter(p.detach().clone()) for p in params]
            other = loaded_into(class_of(name)(fresh, **options_of(name)), made)
            same(states(optimizer, params[:2]), states(other, fresh[:2]))
            for grown, p in ((other, fresh), (copy.deepcopy(optimizer), None)):
                run(grown, p or grown.param_groups[0]["params"])
            same(fresh, grown.param_groups[0]["params"])
        other = class_of(name)(parameters(), **options_of(name))
        other.register_load_state_dict_pre_hook(
            lambda opt, d: {**d, "state": {int(k): v for k, v in d["state"].items()}}
        )
        other.load_state_dict({**good, "state": {str(key): own for key, own in good["state"].items()}})
        same(states(optimizer, params[:2]), states(other, other.param_groups[0]["params"][:2]))
        with pytest.warns(UserWarning, match="duplicate parameters"):
            optimizer = class_of(name)([params[0], params[0]], **options_of(name))
        assert optimizer.state_dict()["param_groups"][0]["params"] == [1, 1]
        optimizer.load_state_dict(optimizer.state_dict())


class TestT8DistributedCheckpoint:
    @each_rule
    @pytest.mark.parametrize("tensor", [False, True])
    def test_materialising_the_state_changes_no_parameter(self, name, tensor, same):
        options = options_of(name) | {"lr": torch.tensor(0.01) if tensor else 0.01}
        params = parameters()
        optimizer = class_of(name)(params, **options)
        for group in optimizer.param_groups:
            group["lr"] = torch.tensor(0.0) if tensor else 0.0
        held = [p.detach().clone() for p in params]
        give(params, [np.zeros_like(x) for x in arrays(0)])
        optimizer.step(closure=None)
        same([p.detach() for p in params], held)

    @each_rule
    def test_round_trip(self, name, same):
        api = pytest.importorskip("torch.distributed.checkpoint.state_dict")
        torch.manual_seed(0)
        models = [torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)) for _ in range(2)]
        models[1].load_state_dict(models[0].state_dict())
        first, second = (class_of(name)(m.parameters(), **options_of(name)) for m in models)

        def train(model, optimizer, seed):
            optimizer.zero_grad()
            x = torch.randn(5, 3, generator=torch.Generator().manual_seed(seed))
            model(x).square().sum().backward()
            optimizer.step()

        for seed in range(3):
            train(models[0], first, seed)
        found = api.get_optimizer_state_dict(models[0], first)
        models[1].load_state_dict(models[0].state_dict())
        api.set_optimizer_state_dict(models[1], second, copy.deepcopy(found))
        for model, optimizer in zip(models, (first, second), strict=True):
            train(model, optimizer, 3)
        same(*([p.detach() for p in model.parameters()] for model in models))


class TestT9GradScaler:
    @each_rule
    def test_scaled_steps_and_skipped_steps(self, name, same):
        rule = rule_of(name)
        reference, params = arrays(0), parameters()
        state = rule.init(reference)
        optimizer = signcore_torch.from_rule(params, rule)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        for step in range(STEPS):
            grads = arrays(step + 1)
            scaler.scale(torch.zeros(()))  # makes the scale
            give(params, [g * np.float32(scaler.get_scale()) for g in grads])
            if step == 1:
                params[0].grad.reshape(-1)[3] = math.inf
            scaler.step(optimizer)
            scaler.update()
            if step != 1:
                reference, state = rule.step(reference, grads, state)
            same(params, reference)
            same(states(optimizer, params), columns(state, len(params)))
        assert scaler.get_scale() == 512.0


class TestNonfinite:
    @each_rule
    def test_skip(self, name, same):
        params = parameters()
        optimizer = class_of(name)(
            [{"params": params[:2]}, {"params": params[2:]}], **options_of(name, nonfinite="skip")
        )
        run(optimizer, params)
        give(params, arrays(9))
        params[0].grad[0, 0] = math.nan
        held = copy.deepcopy([[p.detach() for p in params], states(optimizer, params)])
        optimizer.step()
        same(
            [[p.detach() for p in params[:2]], states(optimizer, params[:2])],
            [held[0][:2], {key: column[:2] for key, column in held[1].items()}],
        )
        assert int(optimizer.state[params[2]]["step"]) == STEPS + 1  # each group decides for itself


CHEAP = min(RULES, key=lambda name: len(classes()[name].State._fields))  # it compiles in seconds


def compiled_variants():
    """One per rule, and the paths of the adapter that only exist under a compiler."""
    yield from ((name, {}, "float32", 1) for name in RULES)
    yield CHEAP, {"nonfinite": "skip"}, "bfloat16", 2
    yield CHEAP, noisy_options(CHEAP), "float32", 2


# inductor expands what is used twice until it has this many operations: the default of 30 makes long chains slow.
QUICKLY = {"realize_opcount_threshold": 8}


@pytest.fixture
def counters():
    """What torch.compile counts, from zero."""
    torch._dynamo.reset()
    found = torch._dynamo.utils.counters
    found.clear()
    return found


@pytest.mark.filterwarnings("ignore")  # inductor's own, about this machine
class TestT10Compile:
    @pytest.mark.parametrize(("name", "options", "dtype", "groups"), list(compiled_variants()))
    def test_same_bits_in_one_graph(self, name, options, dtype, groups, same, counters):
        shapes = [(5,), (4,)][:groups]
        rule = rule_of(name, **options)
        references = [{str(i): x} for i, x in enumerate(arrays(0, dtype, shapes))]  # a parameter per group
        wanted = [rule.init(reference) for reference in references]
        params = parameters(dtype, shapes)
        optimizer = signcore_torch.from_rule([{"params": [p]} for p in params], rule)
        step = torch.compile(optimizer.step, fullgraph=True, options=QUICKLY)
        graphs = []
        for k, lr in enumerate([0.1, 0.05, 0.025, 0.0125]):
            grads = arrays(k + 1, dtype, shapes)
            give(params, grads)
            for group in optimizer.param_groups:
                group["lr"] = lr
            step()
            graphs.append(counters["stats"]["unique_graphs"])
            for i, g in enumerate(grads):
                references[i], wanted[i] = rule.step(references[i], {str(i): g}, wanted[i], hyper={"lr": lr})
                same(params[i], references[i][str(i)])
                for field, value in optimizer.state[params[i]].items():
                    expected = getattr(wanted[i], field)
                    same(value, expected[str(i)] if isinstance(expected, dict) else expected)
        assert graphs[1:] == [2, 2, 2]  # the second step finds that lr is no constant
        assert not counters["graph_break"]

    def test_a_tensor_learning_rate_needs_one_graph(self, counters):
        params = parameters(shapes=[(4,)])
        optimizer = class_of(CHEAP)(params, **options_of(CHEAP) | {"lr": torch.tensor(0.1)})
        step = torch.compile(optimizer.step, fullgraph=True)  # before a scheduler puts its own function there
        scheduler = lr_scheduler.ExponentialLR(optimizer, 0.5)
        for k in range(3):
            give(params, arrays(k + 1, shapes=[(4,)]))
            step()
            scheduler.step()
        assert counters["stats"]["unique_graphs"] == 1
        assert float(optimizer.param_groups[0]["lr"]) == float(torch.tensor(0.1)) / 8

    def test_inside_a_compiled_function(self, same, counters):
        rule = rule_of(CHEAP)
        reference, params = arrays(0, shapes=[(4,)]), parameters(shapes=[(4,)])
        state = rule.init(reference)
        optimizer = signcore_torch.from_rule(params, rule)
        step = torch.compile(lambda: optimizer.step(), fullgraph=True)
        for k in range(3):
            grads = arrays(k + 1, shapes=[(4,)])
            give(params, grads)
            step()
            reference, state = rule.step(reference, grads, state)
            same(params, reference)
        assert counters["stats"]["unique_graphs"] == 1
