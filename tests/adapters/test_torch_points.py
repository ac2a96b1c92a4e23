"""What torch's users expect of an optimizer: points T1 to T10 and T13 of its contract, for every rule; bits alone.

A test is named after its point, and the case after the rule. T11 is in test_torch_distributed.py; spellings, damaged
state_dicts and layouts, which depend on no rule's arithmetic, are in test_torch_contract.py and test_torch_options.py.
"""

import copy
import dataclasses
import inspect
import io
import math
import pickle
import re

import pytest
import torch
from torch.optim import lr_scheduler
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch_runs import (
    RULES,
    SHAPES,
    STEPS,
    OnNumPy,
    Training,
    class_of,
    loss_at,
    numbers_of,
    options_of,
    rule_of,
    schedulers,
    word_of,
)

import signcore_torch
from signcore import checkpoint
from signcore.fields import ranges
from signcore.rule import classes
from signcore_torch.options import DEFAULTS

DTYPES = ["float16", "float32", "float64"]  # bfloat16 is no dtype of NumPy's; T7 is about it

# Where a part of a point cannot be had, and why; the case's id ends in "-not-applicable", and it asserts the error that
# says so.
NOT_APPLICABLE = {
    ("t4", name): "it accepts or rejects one step of all parameters together, so it asks for one parameter group"
    for name in RULES
    if "value_fn" in rule_of(name).needs
}
NOT_APPLICABLE |= {
    ("t9", name): "it needs the closure's loss, and torch's GradScaler takes no closures; it is skipped as others are, "
    "but a step that the scaler does take asks for the closure"
    for name in RULES
    if rule_of(name).needs
}
NO_MOMENTUM = "it has no hyperparameter called `momentum`, which OneCycleLR and CyclicLR cycle unless they are told "
NO_MOMENTUM += "`cycle_momentum=False`; torch's own error says so"
NOT_APPLICABLE |= {("t5", name): NO_MOMENTUM for name in RULES if "momentum" not in numbers_of(name)}


def each_rule(point=None):
    """Every rule, with those that the point does not apply to marked."""
    cases = [pytest.param(n, id=f"{n}-not-applicable" if (point, n) in NOT_APPLICABLE else n) for n in RULES]
    return pytest.mark.parametrize("name", cases)


def decaying(name):
    """The rule with weight decay, where it has any."""
    try:
        return rule_of(name, weight_decay=0.125)
    except ValueError:
        return rule_of(name)


def maximizing(name):
    """The rule with `maximize`, and for those that bound the loss, which is negated, a bound below it."""
    bound = {"lower_bound": -8.0} if "lower_bound" in numbers_of(name) else {}
    return rule_of(name, maximize=True, **bound)


def known(training):
    """Everything that a step or a load may change: parameters, state, groups, defaults."""
    optimizer = training.optimizer
    held = [
        [(key, repr(word_of(x) if torch.is_tensor(x) else x)) for key, x in sorted(group.items()) if key != "params"]
        for group in (*optimizer.param_groups, optimizer.defaults)
    ]
    return training.words(), held


def refused(training, kind, match, action, *arguments):
    """The action raises, and nothing is changed."""
    before = known(training)
    with pytest.raises(kind, match=match):
        action(*arguments)
    assert known(training) == before


# -- T1: the constructor --------------------------------------------------------------------------------------


@each_rule()
def test_t1_tensors_dicts_and_named_tensors(name):
    cls, options = class_of(name), options_of(name)
    a, b = (torch.nn.Parameter(torch.ones(2)) for _ in "ab")
    for params in ([a, b], iter([a, b]), [{"params": [a]}, {"params": b, "lr": 0.5}], iter([{"params": [a, b]}])):
        optimizer = cls(params, **options)
        assert isinstance(optimizer, torch.optim.Optimizer)
        assert [p for group in optimizer.param_groups for p in group["params"]] == [a, b]
    for named in ([("a", a), ("b", b)], [{"params": [("a", a), ("b", b)]}]):
        assert cls(named, **options).param_groups[0]["param_names"] == ["a", "b"]


@each_rule()
def test_t1_errors_are_of_the_base_classs_types(name):
    cls, options, p = class_of(name), options_of(name), torch.nn.Parameter(torch.ones(2))
    for kind, match, params in (
        (ValueError, "empty parameter list", []),
        (TypeError, "iterable of Tensors or dicts", p),
        (TypeError, "can only optimize Tensors", [0.0]),
        (TypeError, "ordered collections", [{"params": {p}}]),
        (ValueError, "non-leaf", [p * 2]),
        (ValueError, "more than one parameter group", [{"params": p}, {"params": p}]),
    ):
        with pytest.raises(kind, match=match):
            cls(params, **options)
    for key, limit in ranges(classes()[name]).items():
        for bad in (limit.minimum - 1.0, math.nan, "0.1"):
            with pytest.raises((ValueError, TypeError), match=f"`{key}` is "):
                cls([p], **options | {key: bad})
    with pytest.raises(TypeError, match="'weight_decai'; did you mean 'weight_decay'"):
        cls([p], **options, weight_decai=0.1)


@each_rule()
def test_t1_every_hyperparameter_is_in_defaults_and_may_be_missing_in_what_was_pickled(name):
    fields = dataclasses.fields(classes()[name])
    training = Training(name)
    found = inspect.signature(class_of(name)).parameters
    assert list(found)[:2] == ["params", "lr"]
    assert set(found) == {"params", *DEFAULTS, "process_group", "check_every", *(field.name for field in fields)}
    for field in fields:
        expected = getattr(training.rule, field.name)
        assert training.optimizer.defaults[field.name] == training.group[field.name] == expected
    old = training.optimizer.__getstate__()
    later = [field for field in fields if field.default is not dataclasses.MISSING]
    for field in later:
        del old["defaults"][field.name], old["param_groups"][0][field.name]
    new = class_of(name).__new__(class_of(name))
    new.__setstate__(old)
    for field in later:
        assert new.param_groups[0][field.name] == new.defaults[field.name] == field.default


# -- T2: closures and hooks -----------------------------------------------------------------------------------


@each_rule()
def test_t2_closures_have_gradients_enabled_and_their_loss_is_returned(name):
    p = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer, modes = class_of(name)([p], **options_of(name)), []

    def closure():
        modes.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = (p**2).sum()
        loss.backward()
        return loss

    with torch.no_grad():
        loss = optimizer.step(closure)
        assert not torch.is_grad_enabled()
    assert set(modes) == {True}
    assert loss.item() == 5.0
    assert loss.requires_grad
    assert p.grad.tolist() == [2.0, -4.0]
    assert not any(value.requires_grad for value in optimizer.state[p].values())


@each_rule()
def test_t2_hooks_fire_once_each_and_in_torchs_order(name):
    training, calls = Training(name), []
    optimizer = training.optimizer
    hooks = [
        register_optimizer_step_pre_hook(lambda *a: calls.append("global pre")),
        optimizer.register_step_pre_hook(lambda *a: calls.append("pre")),
        optimizer.register_step_post_hook(lambda *a: calls.append("post")),
        register_optimizer_step_post_hook(lambda *a: calls.append("global post")),
    ]
    try:
        training.step(0)
    finally:
        for hook in hooks:
            hook.remove()
    assert calls == ["global pre", "pre", "post", "global post"]
    wrapped = type(optimizer).step
    assert wrapped.hooked
    Training(name)
    assert type(optimizer).step is wrapped
    assert "step" not in vars(optimizer)


@each_rule()
def test_t2_a_loss_that_is_needed_and_does_not_come(name):
    training, reference = Training(name), OnNumPy(rule_of(name))

    def closure():
        training.give(0)

    if training.rule.needs:
        training.give(0)
        refused(training, TypeError, "`value.*in torch a closure", training.optimizer.step)
        refused(training, TypeError, "`value.*in torch a closure", training.optimizer.step, closure)
        assert not training.optimizer.state
    else:
        assert training.optimizer.step(closure) is None
        reference.step(0)
        assert training.words() == reference.words()


# -- T3: gradients --------------------------------------------------------------------------------------------


@each_rule()
def test_t3_a_parameter_without_a_gradient_is_skipped_and_has_no_state(name):
    training, reference = Training(name), OnNumPy(rule_of(name))
    for step, absent in enumerate((["b", "d"], ["b"], ["a"], [])):
        training.step(step, absent)
        reference.step(step, absent)
        here = {key for key, p in training.params.items() if p in training.optimizer.state}
        assert here == set(SHAPES) - ({"b", "d"} if step == 0 else {"b"} if step < 2 else set())
        assert [word_of(p) for p in training.params.values()] == [word_of(x) for x in reference.params.values()]
    assert training.words() == reference.words()


@pytest.mark.parametrize("maximize", [False, True])
@each_rule()
def test_t3_gradients_are_not_written(name, maximize):
    training = Training(name, maximizing(name) if maximize else decaying(name))
    training.give(0)
    held = {key: p.grad for key, p in training.params.items()}
    words = [word_of(g) for g in held.values()]
    training.optimizer.step(lambda: loss_at(0))
    assert all(training.params[key].grad is g for key, g in held.items())
    assert [word_of(g) for g in held.values()] == words


@each_rule()
def test_t3_sparse_gradients_and_complex_parameters_are_clear_errors(name):
    training = Training(name)
    training.step(0)
    training.give(1)
    training.params["a"].grad = training.params["a"].grad.to_sparse()
    match = r"`grads` at 'a' is torch.sparse_coo.*to_dense"
    refused(training, RuntimeError, match, training.optimizer.step, lambda: loss_at(1))
    with pytest.raises(TypeError, match="`params` at 'z' has dtype complex64; signcore computes with float16"):
        class_of(name)([("z", torch.ones(2, dtype=torch.complex64))], **options_of(name))


@pytest.mark.parametrize("dtype", DTYPES)
@each_rule()
def test_t3_strides_empty_and_single_tensors_have_the_rules_bits(name, dtype):
    training, reference = Training(name, dtype=dtype), OnNumPy(rule_of(name), dtype)
    assert not training.params["d"].is_contiguous()
    for step in range(STEPS):
        training.step(step)
        reference.step(step)
        assert training.words() == reference.words()


@each_rule()
def test_t3_a_parameter_that_two_modules_share_is_one(name):
    def trained(tied):
        encoder = torch.nn.Linear(3, 3, bias=False)
        with torch.no_grad():
            encoder.weight.copy_(torch.linspace(-1, 1, 9).reshape(3, 3))
        model = torch.nn.Sequential(encoder, torch.nn.Linear(3, 3, bias=False) if tied else encoder)
        if tied:
            model[1].weight = encoder.weight
        optimizer = class_of(name)(model.parameters(), **options_of(name))

        def closure():
            optimizer.zero_grad()
            loss = model(torch.ones(2, 3)).abs().sum()
            loss.backward()
            return loss

        for _ in range(2):
            optimizer.step(closure)
        (p,) = optimizer.state
        return [word_of(x) for x in (p, *optimizer.state[p].values())]

    assert trained(tied=True) == trained(tied=False)


# -- T4: parameter groups -------------------------------------------------------------------------------------


@each_rule("t4")
def test_t4_groups_are_separate_optimizers(name):
    together = Training(name)
    parts = ["a", "b"], ["c", "d"]
    groups = [{"params": [(key, together.params[key]) for key in part]} for part in parts]
    groups[1] |= {"lr": 0.25, "weight_decay": decaying(name).weight_decay}
    together.optimizer = class_of(name)(groups, **options_of(name))
    if ("t4", name) in NOT_APPLICABLE:
        together.give(0)
        match = "`params` has 2 groups, and .* pass one group"
        refused(together, ValueError, match, together.optimizer.step, lambda: loss_at(0))
        return
    rules = rule_of(name), decaying(name).replace(lr=0.25)
    apart = [Training(name, rule, keys=part) for rule, part in zip(rules, parts, strict=True)]
    for step in range(STEPS):
        for training in (together, *apart):
            training.step(step)
        assert together.words() == apart[0].words() + apart[1].words()


@each_rule()
def test_t4_any_number_may_change_between_steps(name):
    training, reference = Training(name), OnNumPy(rule_of(name))
    for step, (key, value) in enumerate(numbers_of(name).items()):
        changed = value * 0.5 or 0.125
        training.group[key] = changed
        training.give(step)
        try:
            training.rule.replace(**{key: changed})
        except ValueError as error:  # out of range, or it contradicts another
            refused(training, ValueError, re.escape(str(error)), training.optimizer.step, lambda k=step: loss_at(k))
        else:
            training.step(step)
            reference.step(step, hyper={key: changed})
        training.group[key] = value
        assert training.words() == reference.words()


@each_rule("t4")
def test_t4_a_group_may_be_added_late(name):
    training = Training(name)
    first, late = {key: training.params[key] for key in "ab"}, {key: training.params[key] for key in "cd"}
    training.optimizer = training.made(list(first.items()))
    training.run(range(2))
    group = {"params": list(late.items()), "lr": 0.25}
    training.optimizer.add_param_group(group)
    if ("t4", name) in NOT_APPLICABLE:
        match = "`params` has 2 groups, and .* pass one group"
        refused(training, ValueError, match, training.optimizer.step, lambda: loss_at(2))
        return
    references = OnNumPy(training.rule, keys="ab"), OnNumPy(training.rule.replace(lr=0.25), keys="cd")
    training.run(range(2, STEPS))
    for step in range(STEPS):
        references[0].step(step)
        if step >= 2:
            references[1].step(step)
    assert training.words() == references[0].words() + references[1].words()


# -- T5: learning rates ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (1,)], ids=["scalar", "vector"])
@each_rule()
def test_t5_numbers_may_be_tensors_of_one_element(name, shape):
    tensors = {key: torch.full(shape, value, dtype=torch.float64) for key, value in numbers_of(name).items()}
    training = Training(name)
    training.optimizer = class_of(name)(list(training.params.items()), **options_of(name) | tensors)
    assert training.group["lr"] is tensors["lr"]
    assert training.run().words() == Training(name).run().words()


@pytest.mark.parametrize("tensor", [False, True], ids=["float", "tensor"])
@each_rule()
def test_t5_schedulers_of_torch(name, tensor):
    """As if their learning rates had been written into the group by hand, and a tensor stays the one it was.

    These change a rate in all ways there are; every scheduler of torch is tried in test_torch_contract.py.
    """
    for kind in ("ExponentialLR", "SequentialLR", "ReduceLROnPlateau"):
        scheduled, by_hand = Training(name, keys="ab"), Training(name, keys="ab")
        lr = torch.tensor(0.25, dtype=torch.float64) if tensor else 0.25
        scheduled.group["lr"] = lr
        scheduler, rates = schedulers()[kind](scheduled.optimizer), set()
        for step in range(STEPS):
            by_hand.group["lr"] = float(scheduled.group["lr"])
            rates.add(by_hand.group["lr"])
            for training in (scheduled, by_hand):
                training.step(step)
            scheduler.step(*([1.0] if kind == "ReduceLROnPlateau" else []))
        assert scheduled.words() == by_hand.words(), kind
        assert len(rates) > 1
        assert scheduled.group["lr"] is lr if tensor else isinstance(scheduled.group["lr"], float)


@each_rule("t5")
def test_t5_schedulers_that_cycle_a_momentum(name):
    training = Training(name, keys="ab")
    if ("t5", name) in NOT_APPLICABLE:
        with pytest.raises(ValueError, match="cycle_momentum"):
            lr_scheduler.OneCycleLR(training.optimizer, 0.1, total_steps=8)
        return
    scheduler, seen = lr_scheduler.OneCycleLR(training.optimizer, 0.1, total_steps=8), set()
    by_hand = Training(name, keys="ab")
    for step in range(STEPS):
        for key in ("lr", "momentum"):
            by_hand.group[key] = training.group[key]
        seen.add(training.group["momentum"])
        for each in (training, by_hand):
            each.step(step)
        scheduler.step()
    assert training.words() == by_hand.words()
    assert len(seen) > 1


@each_rule()
def test_t5_the_initial_rate_survives_saving(name):
    training = Training(name)
    lr_scheduler.ExponentialLR(training.optimizer, 0.5)
    training.run(range(2))
    other = training.twin()
    other.optimizer.load_state_dict(training.optimizer.state_dict())
    assert other.group["initial_lr"] == training.rule.lr
    resumed = lr_scheduler.ExponentialLR(other.optimizer, 0.5, last_epoch=1)
    assert resumed.base_lrs == [training.rule.lr]


@pytest.mark.parametrize("tensor", [False, True], ids=["float", "tensor"])
@each_rule()
def test_t5_a_rate_that_a_scheduler_spoils_is_an_error_at_the_step(name, tensor):
    for bad in (-2.0, math.nan, math.inf):
        training = Training(name, keys="ab")
        if tensor:
            training.group["lr"] = torch.tensor(training.rule.lr, dtype=torch.float64)
        scheduler = lr_scheduler.LambdaLR(training.optimizer, lambda k, bad=bad: bad if k else 1.0)
        training.step(0)
        scheduler.step()
        training.give(1)
        match = "`lr` is .*; it must be finite and in"
        refused(training, ValueError, match, training.optimizer.step, lambda: loss_at(1))


# -- T6 and T7: state_dict ------------------------------------------------------------------------------------


def saved(state_dict):
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@each_rule()
def test_t6_a_state_dict_is_deterministic_and_loads_with_weights_only(name):
    files = []
    for _ in range(2):
        file = io.BytesIO()
        torch.save(Training(name).run().optimizer.state_dict(), file)
        files.append(file.getvalue())
    assert files[0] == files[1]
    training = Training(name).run()
    other = training.twin()
    other.optimizer.load_state_dict(saved(training.optimizer.state_dict()))
    assert other.words() == training.words()
    assert other.optimizer.state_dict()["param_groups"] == training.optimizer.state_dict()["param_groups"]


@pytest.mark.parametrize("way", ["weights_only", "deepcopy", "pickle"])
@each_rule()
def test_t6_going_on_is_never_having_stopped(name, way):
    whole, first = Training(name).run(), Training(name).run(range(2))
    if way == "weights_only":
        second = first.twin()
        second.optimizer.load_state_dict(saved(first.optimizer.state_dict()))
    else:
        copied = copy.deepcopy if way == "deepcopy" else lambda x: pickle.loads(pickle.dumps(x))
        second = first.adopt(copied(first.optimizer))
    held = first.words()
    assert second.run(range(2, STEPS)).words() == whole.words()
    assert first.words() == held  # nothing is shared
    assert first.run(range(2, STEPS)).words() == whole.words()


@each_rule()
def test_t6_what_was_loaded_is_not_shared(name):
    first = Training(name).run(range(2))
    held = first.optimizer.state_dict()
    second = first.twin()
    second.optimizer.load_state_dict(held)
    places = [
        {value.data_ptr() for own in training.optimizer.state.values() for value in own.values() if value.numel()}
        for training in (first, second)
    ]
    assert not places[0] & places[1]
    second.group["weight_decay"] = 0.75
    assert first.group["weight_decay"] == held["param_groups"][0]["weight_decay"] == first.rule.weight_decay


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
@each_rule()
def test_t7_dtypes_and_large_counters_survive(name, dtype):
    like = getattr(torch, dtype)

    def made():
        params = {key: torch.nn.Parameter(torch.linspace(-1, 1, 6).to(like)) for key in "ab"}
        optimizer = class_of(name)(list(params.items()), **options_of(name))
        for k in range(2):

            def closure(k=k):
                for key, p in params.items():
                    p.grad = (torch.arange(6) - 2 * k - int(key == "a")).to(like)
                return torch.tensor(loss_at(k))

            optimizer.step(closure)
        return params, optimizer

    params, optimizer = made()
    for p in params.values():
        optimizer.state[p]["step"].fill_(16777217)  # which neither bfloat16 nor float32 can hold
    other, loaded = made()
    loaded.load_state_dict(saved(optimizer.state_dict()))
    for key, p in params.items():
        assert int(loaded.state[other[key]]["step"]) == 16777217
        assert {field: word_of(value) for field, value in loaded.state[other[key]].items()} == {
            field: word_of(value) for field, value in optimizer.state[p].items()
        }


@each_rule()
def test_t7_a_state_that_does_not_belong_is_refused(name):
    training = Training(name).run(range(2))
    load, own = training.optimizer.load_state_dict, training.optimizer.state_dict()
    for other in (n for n in RULES if n != name):
        foreign = Training(other, keys=SHAPES).optimizer.state_dict()
        match = f"`state_dict` holds the state of '{other}', this optimizer is '{name}'; nothing was loaded"
        refused(training, ValueError, match, load, foreign)
    adam = torch.optim.Adam([torch.nn.Parameter(torch.ones(2))]).state_dict()
    refused(training, ValueError, "`state_dict.*; nothing was loaded", load, adam)
    groups = class_of(name)([{"params": p} for p in training.params.values()], **options_of(name)).state_dict()
    refused(training, ValueError, "has 4 entries for 1 groups", load, groups)
    fewer = Training(name, keys="ab").run(range(1)).optimizer.state_dict()
    refused(training, ValueError, "has 2 entries for 4 parameters", load, fewer)
    for field in own["state"][0]:
        bad = copy.deepcopy(own)
        bad["state"][0][field] = torch.zeros(9, 9, dtype=own["state"][0][field].dtype)
        place = rf'`state_dict\["state"\]\[0\]\["{field}"\]` has shape \(9, 9\)'
        refused(training, ValueError, f"{place}.*nothing was loaded", load, bad)
        del bad["state"][0][field]
        bad["state"][0]["more"] = torch.zeros(())
        unknown = rf"lacks \['{field}'\] and has \['more'\], unknown to this rule; nothing was loaded"
        refused(training, ValueError, unknown, load, bad)


@each_rule()
def test_t7_a_file_of_a_newer_format_is_refused(name, tmp_path, monkeypatch):
    training, path = Training(name).run(range(2)), tmp_path / "run.safetensors"
    monkeypatch.setattr("signcore.checkpoint.file.FORMAT", checkpoint.file.FORMAT + 1)
    signcore_torch.save(path, training.optimizer)
    monkeypatch.undo()
    match = "has format 2, this signcore reads up to 1; update signcore"
    refused(training, checkpoint.CheckpointError, match, signcore_torch.load, path, training.optimizer)


# -- T8: states that torch.distributed.checkpoint makes -------------------------------------------------------


@pytest.mark.parametrize("tensor", [False, True], ids=["float", "tensor"])
@each_rule()
def test_t8_materialising_the_state_changes_no_bit_of_a_parameter(name, tensor):
    training = Training(name, decaying(name))
    training.group["lr"] = torch.tensor(0.0) if tensor else 0.0
    before = [word_of(p) for p in training.params.values()]
    assert word_of(torch.tensor(-0.0))[2] in before[0][2]  # which p + 0.0 would change
    for p in training.params.values():
        p.grad = torch.zeros_like(p)
    training.optimizer.step(closure=None)
    assert [word_of(p) for p in training.params.values()] == before
    for p in training.params.values():
        assert list(training.optimizer.state[p]) == list(training.rule.kinds)
        assert all(value.isfinite().all() for value in training.optimizer.state[p].values())


@each_rule()
def test_t8_a_rate_of_zero_is_divided_by_nowhere(name):
    training, reference = Training(name), OnNumPy(rule_of(name))
    for step in range(STEPS):
        training.group["lr"] = 0.0 if step % 2 else training.rule.lr
        training.step(step)
        reference.step(step, hyper={"lr": training.group["lr"]})
        assert all(p.isfinite().all() for p in training.params.values())
        assert training.words() == reference.words()


# -- T9: GradScaler -------------------------------------------------------------------------------------------


@each_rule("t9")
def test_t9_a_scaled_step_is_the_step_and_an_overflowing_one_is_none(name):
    training, reference = Training(name), OnNumPy(rule_of(name))
    scaler, done = torch.amp.GradScaler("cpu", init_scale=1024.0), 0
    for step in range(STEPS):
        scaler.scale(torch.zeros(()))  # makes the scale
        training.give(step, scale=scaler.get_scale())
        if step % 2:
            training.params["a"].grad[1, 1] = math.inf if step == 1 else math.nan
        before = known(training)
        if ("t9", name) in NOT_APPLICABLE and not step % 2:
            with pytest.raises(RuntimeError, match="Closure use is not currently supported"):
                scaler.step(training.optimizer, closure=lambda: loss_at(0))
            with pytest.raises(TypeError, match="in torch a closure"):
                scaler.step(training.optimizer)
            assert known(training) == before
        else:
            scaler.step(training.optimizer)
        if step % 2:
            assert known(training) == before
        elif ("t9", name) not in NOT_APPLICABLE:
            reference.step(step)
            done += 1
            assert training.words() == reference.words()
        scaler.update()
    assert scaler.get_scale() == 256.0
    assert done == (0 if ("t9", name) in NOT_APPLICABLE else 2)


# -- T10: ways to run a step ----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["foreach", "capturable"])
@each_rule()
def test_t10_joined_and_capturable_steps_are_those_of_a_loop(name, how):
    loop, other = Training(name), Training(name, **{how: True})
    for step in range(STEPS):
        for training in (loop, other):
            training.step(step, absent=["b"] if step % 2 else [])
        assert loop.words() == other.words()


@each_rule()
def test_t10_a_capture_needs_capturable(name, monkeypatch):
    # stands for a CUDA graph on a machine without a device: what is tested is that the question is asked
    training, capturable = Training(name), Training(name, capturable=True)
    for each in (training, capturable):
        each.step(0)
    training.give(1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    match = "`capturable` is False, and a CUDA graph is being captured"
    refused(training, RuntimeError, match, training.optimizer.step, lambda: loss_at(1))
    if "value_fn" not in training.rule.needs:
        capturable.step(1)
        monkeypatch.undo()
        assert capturable.words() == training.run([1]).words()


@each_rule()
def test_t10_a_compiled_step_is_asked_for_by_name_or_refused(name):
    training = Training(name, compile=True)
    assert training.group["compile"] is True
    if "value_fn" in training.rule.needs:
        match = "`compile` is True, and .* evaluates the closure at other"
        refused(training, ValueError, match, training.step, 0)
    assert pickle.loads(pickle.dumps(training.optimizer)).defaults["compile"] is True
    with pytest.raises(TypeError, match="`compile` is 'yes'; pass True or False"):
        Training(name, compile="yes")


# -- T13: flags of torch's own --------------------------------------------------------------------------------


@pytest.mark.parametrize("foreach", [None, False, True])
@each_rule()
def test_t13_maximize_and_foreach(name, foreach):
    rule = maximizing(name)
    training, reference = Training(name, rule, foreach=foreach), OnNumPy(rule)
    assert training.group["maximize"] is True
    for step in range(STEPS):
        training.step(step)
        reference.step(step)
        assert training.words() == reference.words()
    assert training.words() != Training(name).run().words()


@pytest.mark.parametrize("flag", ["differentiable", "fused"])
@each_rule()
def test_t13_differentiable_and_fused_are_refused(name, flag):
    params = [torch.nn.Parameter(torch.ones(2))]
    with pytest.raises(TypeError, match=f"`{flag}` is True; .*compile=True"):
        class_of(name)(params, **options_of(name), **{flag: True})
    assert flag not in class_of(name)(params, **options_of(name), **{flag: False}).defaults
