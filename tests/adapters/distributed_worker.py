"""What the processes of test_torch_distributed.py do: one process group of gloo, and every check in it.

``python distributed_worker.py PROCESSES FOLDER`` writes FOLDER/PROCESSES-RANK.json: check to None or a traceback.
Checkpoints that three processes save in FOLDER are read by two.
"""

import copy
import io
import json
import os
import re
import sys
import time
import traceback
from datetime import timedelta
from functools import cache, partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor, init_device_mesh
from torch.nn.parallel import DistributedDataParallel

import signcore as sc
import signcore_torch
from signcore_conformance import golden
from signcore_torch.sharded import held, local

# No multiple of 2 or 3 rows, fewer rows than processes, no multiple of 8 elements in a shard.
SHAPES = {"a": (5, 3), "b": (23,), "c": (4, 2), "d": (1, 3), "e": (2,)}
LATE = "e"  # has no gradient in the first step
STEPS = 3
CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


def tensors(seed, dtype=torch.float32):
    """Values with both zeros among them, of a sum that rounds in every order differently."""
    draw = torch.Generator().manual_seed(seed)
    found = {name: torch.randn(shape, generator=draw).to(dtype) for name, shape in SHAPES.items()}
    found["a"].reshape(-1)[:2] = torch.tensor([0.0, -0.0])
    found["b"] *= 1e3
    return found


class Model(torch.nn.Module):
    """A loss whose gradients are others in each step, on each rank and at each point."""

    def __init__(self):
        super().__init__()
        for name, value in tensors(0).items():
            self.register_parameter(name, torch.nn.Parameter(value))

    def forward(self, k, rank):
        slopes = tensors(100 * k + rank + 1)
        used = {name: p for name, p in self.named_parameters() if k or name != LATE}
        return sum((slopes[name] * p + (1 + rank) * p * p / 8).sum() for name, p in used.items()) + 1e6


def whole(tensor):
    return (
        None if tensor is None else (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()
    )


def bits_of(tree):
    """Names to dtypes, shapes and bytes."""
    return {
        name: (str(t.dtype), tuple(t.shape), t.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        for name, t in sorted(tree.items())
    }


def cut_like(x, p):
    """A whole tensor, cut as a parameter is; what each rank needs of it, it has."""
    return distribute_tensor(x, p.device_mesh, p.placements, src_data_rank=None) if isinstance(p, DTensor) else x


def words_of(optimizer, names, like=None):
    """What a rank holds of parameters and states, or what it would hold if they were cut as those of `like` are."""
    found = {}
    for name, p in names.items():
        as_is = (like or names)[name]
        found[name] = local(cut_like(p.detach(), as_is) if like else p.detach())
        for field, value in optimizer.state.get(p, {}).items():
            kind = optimizer.kinds[field]
            if kind == "packed":  # as signs, because each rank packs its own
                value = sc.bits.unpack(held(value, p, kind).contiguous(), local(p).numel(), "float32")
                value = value.reshape(local(p).shape)
            cut = like and kind in ("element", "copy", "packed")
            found[f"{name}.{field}"] = local(cut_like(value, as_is) if cut else value)
    return bits_of(found)


def gathered(optimizer, names):
    """All words, from all ranks; not of packed bits."""
    found = {name: whole(p) for name, p in names.items()}
    for name, p in names.items():
        found |= {f"{name}.{field}": whole(value) for field, value in optimizer.state[p].items()}
    return bits_of(found)


def check_same(mine, theirs):
    assert mine == theirs, [name for name in theirs if mine.get(name) != theirs[name]]


class Training:
    """A model on all ranks under an optimizer; what its closures returned, whole, is kept for one process."""

    def __init__(self, rule, wrap=None, make=None):
        self.model = Model()
        self.wrapped = self.model if wrap is None else wrap(self.model)
        self.names = {name: p for name, p in self.model.named_parameters()}
        self.sharded = any(isinstance(p, DTensor) for p in self.names.values())
        make = make or (lambda params: signcore_torch.from_rule(params, rule))
        self.optimizer = make(list(self.names.items()))

    def step(self, k):
        calls = []

        def closure():
            self.optimizer.zero_grad()
            loss = self.wrapped(k, dist.get_rank())
            loss.backward()
            loss = loss.detach().clone()
            dist.all_reduce(loss)
            calls.append((loss, self.grads()))
            return loss

        self.optimizer.step(closure)
        return calls

    def grads(self):
        """Of all ranks, whole, in one message."""
        mine = {name: None if p.grad is None else local(p.grad).clone() for name, p in self.names.items()}
        if self.sharded:
            parts = [None] * dist.get_world_size()
            dist.all_gather_object(parts, mine)
            mine = {n: None if g is None else torch.cat([each[n] for each in parts]) for n, g in mine.items()}
        return mine

    def replay(self, calls):
        left = iter(calls)

        def closure():
            loss, grads = next(left)
            for name, p in self.names.items():
                p.grad = None if grads[name] is None else grads[name].clone()
            return loss

        self.optimizer.step(closure)
        assert next(left, None) is None

    def words(self):
        return words_of(self.optimizer, self.names)


def same_everywhere(value):
    found = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    assert all(each == found[0] for each in found), "ranks differ"


def rules():
    """Every rule, and a rule of two rounds."""
    found = {name: golden.variants(name)[0] for name in sc.rules()}
    return found | {"cautious": sc.cautious(found["signum"])}


def against_one_process(rule, wrap):
    """The same words as one process that is given the averaged gradients, after some steps."""
    training, alone = Training(rule, wrap), Training(rule)
    for k in range(STEPS):
        alone.replay(training.step(k))
    alone_words = words_of(alone.optimizer, alone.names, training.names)
    check_same(training.words(), alone_words)
    same_everywhere(alone.words())
    return training


# -- DistributedDataParallel -------------------------------------------------------------------------------


def replicated(model):
    return DistributedDataParallel(model, find_unused_parameters=True)


@check
def ddp_gives_the_bits_of_one_process():
    for rule in rules().values():
        against_one_process(rule, replicated)


@check
def ddp_replicas_whose_losses_differ_part():
    """Why a closure must return the loss of all ranks: replicas do not know of each other."""
    model = replicated(Model())
    optimizer = signcore_torch.from_rule(model.module.named_parameters(), sc.rule("alias"))

    def closure():
        optimizer.zero_grad()
        loss = model(1, dist.get_rank())
        loss.backward()
        return loss

    optimizer.step(closure)
    found = [None] * dist.get_world_size()
    dist.all_gather_object(found, bits_of({name: p.detach() for name, p in model.module.named_parameters()}))
    assert any(each != found[0] for each in found)


# -- FSDP2 and other DTensors ------------------------------------------------------------------------------


def in_shards(model):
    return fully_shard(model, mesh=mesh_of(dist.get_world_size()))


@check
def fsdp_gives_the_bits_of_one_process():
    for rule in rules().values():
        training = against_one_process(rule, in_shards)
        for p in training.names.values():
            for field, value in training.optimizer.state[p].items():
                cut = training.optimizer.kinds[field] in ("element", "copy", "packed")
                assert isinstance(value, DTensor) == cut
                if cut:
                    assert (value.placements, value.device_mesh) == (p.placements, p.device_mesh)
                if cut and training.optimizer.kinds[field] != "packed":
                    assert (value.shape, value.to_local().shape) == (p.shape, p.to_local().shape)


class Direct:
    """DTensors with placements of their own, or None for a plain tensor, and one process beside them."""

    def __init__(self, rule, mesh, placements, dtype=torch.float32, **how):
        self.mesh, self.placements, self.dtype = mesh, placements, dtype
        self.params = {name: torch.nn.Parameter(self.cut(name, x)) for name, x in tensors(0, dtype).items()}
        self.whole = {name: torch.nn.Parameter(x) for name, x in tensors(0, dtype).items()}
        self.optimizer, self.alone = (
            signcore_torch.from_rule(list(params.items()), rule, **how) for params in (self.params, self.whole)
        )

    def cut(self, name, x):
        placements = self.placements.get(name)
        return x if placements is None else distribute_tensor(x, self.mesh, placements, src_data_rank=None)

    def step(self, k, change=None):
        for params, optimizer in ((self.params, self.optimizer), (self.whole, self.alone)):
            calls = []

            def closure(params=params, calls=calls):
                for name, g in tensors(k + 1, self.dtype).items():
                    g = (g if change is None else change(name, g)) * 0.5 ** len(calls)
                    params[name].grad = self.cut(name, g) if params is self.params else g
                calls.append(1)
                return 1e3 * 0.5 ** len(calls)

            optimizer.step(closure)

    def check(self):
        check_same(self.words(), words_of(self.alone, self.whole, self.params))

    def words(self):
        return words_of(self.optimizer, self.params)


@cache
def mesh_of(*shape):
    return init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "shard")[-len(shape) :])


def by_rows():
    return mesh_of(dist.get_world_size()), {name: [Shard(0)] for name in SHAPES}


def unlike():
    """Variants of rules that shards treat in another way than the first of the rule: by state, measures or noise."""
    for name in sc.rules():
        seen = []
        for rule in golden.variants(name):
            ways = (rule.kinds, rule.partials, rule.settlements, rule.scope, rule.needs, rule.draws_noise)
            if (ways, rule.applies_noise) not in seen:
                seen.append((ways, rule.applies_noise))
                if len(seen) > 1:
                    yield rule


@check
def variants_of_rules_on_shards():
    chosen = list(unlike())
    assert len(chosen) > 10
    for rule in chosen:
        direct = Direct(rule, *by_rows())
        direct.step(0)
        direct.step(1)
        direct.check()


@check
def other_dtypes_on_shards():
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        for name in golden.representatives():
            direct = Direct(rules()[name], *by_rows(), dtype=dtype)
            direct.step(0)
            direct.step(1)
            direct.check()


@check
def columns_replicas_and_plain_tensors_beside_shards():
    """Of replicas and plain tensors a measured sum counts the elements once."""
    world = dist.get_world_size()
    mixed = {"a": [Shard(1)], "b": [Replicate()], "c": [Shard(1)], "d": None, "e": [Shard(0)]}
    cases = [(mesh_of(world), mixed), (mesh_of(world, 1), {name: [Replicate(), Shard(0)] for name in SHAPES})]
    for name in golden.representatives():
        for at, placements in cases:
            direct = Direct(rules()[name], at, placements)
            direct.step(0)
            direct.step(1)
            direct.check()


@check
def how_a_step_is_run_changes_no_bit_on_shards():
    direct = Direct(sc.Signum(lr=0.1), *by_rows(), foreach=True, capturable=True)
    direct.step(0)
    direct.check()
    direct.optimizer.param_groups[0]["lr"] = direct.alone.param_groups[0]["lr"] = torch.tensor(0.03)
    direct.step(1)
    direct.optimizer.param_groups[0]["state_dtype"] = direct.alone.param_groups[0]["state_dtype"] = "float16"
    direct.step(2)
    direct.check()


# -- errors on every rank, and nothing changed --------------------------------------------------------------


def fails(direct, error, text, act):
    before = direct.words()
    with pytest.raises(error, match=re.escape(text)):
        act()
    check_same(direct.words(), before)


def started(rule, **how):
    direct = Direct(rule, *by_rows(), **how)
    direct.step(0)
    return direct


@check
def a_gradient_on_some_ranks_only_is_an_error_on_all():
    for name in golden.representatives():
        direct = started(rules()[name])

        def act(direct=direct):
            def closure():
                for n, g in tensors(5).items():
                    direct.params[n].grad = direct.cut(n, g)
                if dist.get_rank() == 0:
                    direct.params["c"].grad = None
                return 1.0

            direct.optimizer.step(closure)

        fails(direct, RuntimeError, "`grads` of 'c' is None on some ranks", act)
        joining = Direct(rules()[name], *by_rows())
        for n, g in tensors(5).items():
            joining.params[n].grad = joining.cut(n, g) if dist.get_rank() else None
        fails(joining, RuntimeError, "on others; nothing was changed", partial(joining.optimizer.step, lambda: 1.0))
        assert not joining.optimizer.state
        for p in direct.params.values():
            if dist.get_rank() == 0:
                p.grad = None
        fails(direct, RuntimeError, "'a', 'b', 'c', 'd', 'e'", partial(direct.optimizer.step, lambda: 1.0))


@check
def an_infinite_element_of_one_shard_counts_for_all():
    def bad(name, g):
        return g.index_fill(0, torch.tensor([0]), torch.inf) if name == "c" else g

    for name in golden.representatives():
        direct = started(rules()[name].replace(nonfinite="raise"))
        fails(direct, FloatingPointError, "inf or NaN", partial(direct.step, 1, bad))
        direct = started(rules()[name].replace(nonfinite="skip"))
        direct.step(1, bad)
        direct.check()
        direct.step(2)
        direct.check()


@check
def losses_of_ranks_that_differ_are_an_error_on_all():
    first = started(sc.ALIAS())

    def act():
        first.optimizer.step(lambda: 1.0 + dist.get_rank())

    fails(first, ValueError, "return the loss of all ranks together", act)
    second = started(sc.MonotoneSignSGD(lr=0.1))
    calls = []

    def closure():
        for n, g in tensors(5).items():
            second.params[n].grad = second.cut(n, g)
        calls.append(1)
        return 1.0 + dist.get_rank() * (len(calls) - 1)

    fails(second, ValueError, "`value_fn(params)` is", lambda: second.optimizer.step(closure))
    assert len(calls) == 2


@check
def what_shards_do_not_take_is_named():
    compiled = Direct(sc.Signum(lr=0.1), *by_rows(), compile=True)
    fails(compiled, ValueError, "compile=True", compiled.optimizer.step)
    direct = started(sc.Signum(lr=0.1))
    fails(direct, ValueError, "torch.distributed.checkpoint", lambda: signcore_torch.export(direct.optimizer))
    full = direct.alone.state_dict()
    fails(direct, ValueError, "a plain tensor", lambda: direct.optimizer.load_state_dict(full))
    other = direct.params["a"].detach().redistribute(placements=[Replicate()])

    def act():
        direct.params["a"].grad = other
        direct.optimizer.step()

    fails(direct, ValueError, "p.grad.redistribute", act)


# -- states: saved and loaded -------------------------------------------------------------------------------


def fresh(rule, tensor_lr=False):
    training = Training(rule, in_shards)
    if tensor_lr:
        for group in training.optimizer.param_groups:
            group["lr"] = torch.tensor(group["lr"]) if isinstance(group["lr"], float) else group["lr"]
    return training


def copied(to, source):
    with torch.no_grad():
        for name, p in to.names.items():
            p.copy_(source[name])


def loaded(rule, path, tensor_lr=False):
    """A new optimizer that goes on from a directory, by way of the states that torch makes it have."""
    training = fresh(rule, tensor_lr)
    before = bits_of({name: whole(p) for name, p in training.names.items()})
    template = get_optimizer_state_dict(training.model, training.optimizer)
    assert before == bits_of({name: whole(p) for name, p in training.names.items()})
    assert all(int(own["step"]) == 0 for own in training.optimizer.state.values())
    weights = {name: torch.zeros_like(p) for name, p in training.names.items()}
    dcp.load({"optimizer": template, "weights": weights}, checkpoint_id=path)
    set_optimizer_state_dict(training.model, training.optimizer, template)
    copied(training, weights)
    return training


@check
def a_directory_of_torch_distributed_checkpoint():
    for i, (name, rule) in enumerate(rules().items()):
        path = str(FOLDER / f"{dist.get_world_size()}-{name}")
        training = fresh(rule)
        for k in range(2):
            training.step(k)
        held_state = get_optimizer_state_dict(training.model, training.optimizer)
        dcp.save(
            {"optimizer": held_state, "weights": {n: p.detach() for n, p in training.names.items()}}, checkpoint_id=path
        )
        other = loaded(rule, path, tensor_lr=bool(i % 2))
        check_same(other.words(), training.words())
        calls = training.step(2)
        other.step(2)
        check_same(other.words(), training.words())
        words = None if "packed" in rule.kinds.values() else gathered(training.optimizer, training.names)
        if dist.get_rank() == 0:
            torch.save((calls, words), f"{path}.next")
        dist.barrier()


@check
def a_directory_of_more_processes():
    """Three saved it, two go on; but packed bits are of three."""
    if dist.get_world_size() != 2:
        return
    for name, rule in rules().items():
        path = str(FOLDER / f"3-{name}")
        if "packed" in rule.kinds.values():
            with pytest.raises(Exception, match=r"[Ss]ize"):  # torch's own, which finds more bytes
                loaded(rule, path)
            continue
        training = loaded(rule, path)
        calls, words = torch.load(f"{path}.next", weights_only=True)
        left = iter(calls)

        def closure(training=training, left=left):
            loss, grads = next(left)
            for n, p in training.names.items():
                p.grad = cut_like(grads[n], p)
            return loss

        training.optimizer.step(closure)
        check_same(gathered(training.optimizer, training.names), words)


@check
def whole_and_cut_state_dicts():
    """torch.save of what each rank holds, which loads with weights_only=True; and `full_state_dict`."""
    options = StateDictOptions(full_state_dict=True)
    for name, rule in rules().items():
        training = fresh(rule)
        training.step(0)
        training.step(1)
        file = io.BytesIO()
        torch.save(training.optimizer.state_dict(), file)
        file.seek(0)
        second, third = fresh(rule), fresh(rule)
        second.optimizer.load_state_dict(torch.load(file, weights_only=True))
        others = [second]
        found = {"state": {}}
        if name in golden.representatives():
            found = get_optimizer_state_dict(training.model, training.optimizer, options=options)
        assert not any(isinstance(t, DTensor) for own in found["state"].values() for t in own.values())
        if any(t.ndim for own in found["state"].values() for t in own.values()):
            set_optimizer_state_dict(third.model, third.optimizer, found, options=options)
            others.append(third)
        elif found["state"]:  # torch takes the device from a tensor that is no number, and there is none
            with pytest.raises(AssertionError, match="Expected device"):
                set_optimizer_state_dict(third.model, third.optimizer, found, options=options)
        for other in others:
            copied(other, {name: p.detach() for name, p in training.names.items()})
            check_same(other.words(), training.words())
        training.step(2)
        for other in others:
            other.step(2)
            check_same(other.words(), training.words())


# -- ZeroRedundancyOptimizer -------------------------------------------------------------------------------


def partitioned(rule):
    """A training whose optimizer is torch's, around the generated class."""
    values = {name: value for name, value in vars(rule).items() if not name.startswith("_") and name != "kinds"}
    made = signcore_torch.from_rule([torch.zeros(1)], rule)

    def make(named):
        return ZeroRedundancyOptimizer([p for _, p in named], optimizer_class=type(made), **values)

    return Training(rule, replicated, make)


def by_index(rule):
    return Training(rule, make=lambda named: signcore_torch.from_rule([p for _, p in named], rule))


def is_elementwise(rule):
    measures = any(partial.kind is not None for partial in rule.partials.values())
    return not (measures or rule.settlements or rule.draws_noise or rule.needs)


@check
def zero_redundancy_gives_elementwise_rules_their_bits():
    chosen = [rule for rule in rules().values() if is_elementwise(rule)]
    assert len(chosen) >= 5
    for rule in chosen:
        training, alone, again = partitioned(rule), by_index(rule), partitioned(rule)
        for k in range(2):
            alone.replay(training.step(k))
        words = bits_of({name: p.detach() for name, p in training.names.items()})
        assert words == bits_of({name: p.detach() for name, p in alone.names.items()})
        training.optimizer.consolidate_state_dict(to=0)
        box = [training.optimizer.state_dict() if dist.get_rank() == 0 else None]
        dist.broadcast_object_list(box, src=0)
        found, own = box[0], alone.optimizer.state_dict()
        for key, state in own["state"].items():
            assert bits_of(found["state"][key]) == bits_of(state)
        again.optimizer.load_state_dict(copy.deepcopy(found))  # rank 0 has the very state in it
        with torch.no_grad():
            for name, p in again.names.items():
                p.copy_(training.names[name])
        alone.replay(training.step(2))
        again.step(2)
        for other in (again, alone):
            assert bits_of({n: p.detach() for n, p in other.names.items()}) == bits_of(
                {n: p.detach() for n, p in training.names.items()}
            )


@check
def zero_redundancy_measures_and_draws_of_the_part_of_a_rank():
    """What the documentation says: each rank's optimizer is one of its own parameters, and of no others."""
    chosen = [rule for rule in rules().values() if not is_elementwise(rule)]
    assert len(chosen) >= 5
    for rule in chosen:
        training = partitioned(rule)
        part = [p for group in training.optimizer.optim.param_groups for p in group["params"]]
        mine = {name: p for name, p in training.names.items() if any(p is q for q in part)}
        params = {name: torch.nn.Parameter(p.detach().clone()) for name, p in mine.items()}
        order = sorted(params, key=lambda name: next(i for i, q in enumerate(part) if q is mine[name]))
        alone = signcore_torch.from_rule([params[name] for name in order], rule)
        if "value_fn" in rule.needs or "grad_fn" in rule.needs:
            continue  # whose ranks would call the closure, and its collectives, by themselves
        calls = training.step(1)

        def closure(params=params, calls=calls):
            for name, p in params.items():
                p.grad = calls[0][1][name].clone()
            return calls[0][0]

        alone.step(closure)
        assert bits_of({n: p.detach() for n, p in params.items()}) == bits_of({n: p.detach() for n, p in mine.items()})


def run(rank, world):
    torch.set_num_threads(1)
    at = f"file://{FOLDER}/{world}.store"
    dist.init_process_group("gloo", init_method=at, rank=rank, world_size=world, timeout=timedelta(seconds=30))
    found = {}
    for function in CHECKS:
        try:
            begin = time.time()
            function()
            print(rank, function.__name__, round(time.time() - begin, 2), file=sys.stderr)
            found[function.__name__] = None
        except BaseException:
            found[function.__name__] = traceback.format_exc()
            break  # the ranks may wait for different things by now
    (FOLDER / f"{world}-{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    os._exit(0)  # without waiting for a rank that may have failed


if __name__ == "__main__":
    FOLDER = Path(sys.argv[2])
    processes = int(sys.argv[1])
    torch.multiprocessing.start_processes(run, args=(processes,), nprocs=processes, start_method="fork")
