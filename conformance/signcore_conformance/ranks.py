"""One rank of a distributed run, in each engine: ``python -m signcore_conformance.ranks ENGINE JSON``.

What a rank does is what a user of that engine writes; what it must give is in together.py.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from signcore.exchange import Group

from .together import STEPS, Case, Line, arrays, cases, compared, gradients, inputs, loss, report, truth

MARK = "signcore-rank "
Job = dict[str, Any]
Steps = Callable[[Case], Iterator[tuple[Any, Any]]]  # a rank's parameters and state after each step


def torch(job: Job) -> None:
    """gloo, a process per rank: the functional step on tensors, and the optimizer for the rule as it is."""
    import torch as library
    import torch.distributed as dist

    import signcore_torch
    from signcore_torch.collectives import Collectives

    library.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(job["port"]))
    dist.init_process_group("gloo", rank=job["rank"], world_size=job["size"])
    transport = Collectives(dist.group.WORLD)

    def tensor(array: np.ndarray) -> Any:
        words = array.view(np.int16) if array.dtype.name == "bfloat16" else array
        made = library.from_numpy(np.array(words))
        return made.view(library.bfloat16) if array.dtype.name == "bfloat16" else made

    def functional(case: Case) -> Iterator[tuple[Any, Any]]:
        return stepped(Group(transport, bucket=case.bucket, check_every=2), case, job["rank"], tensor)

    def optimizer(case: Case) -> Iterator[tuple[Any, Any]]:
        named = {name: library.nn.Parameter(tensor(a)) for name, a in arrays(case.dtypes, 0).items()}
        made = signcore_torch.from_rule(list(named.items()), case.rule, process_group=dist.group.WORLD, check_every=2)
        for step in range(STEPS):
            for name, g in gradients(case, job["rank"], step).items():
                named[name].grad = tensor(g)
            made.step()
            params = {name: p.detach() for name, p in named.items()}
            fields = {
                name: made.state[named["a"]][name]
                if kind in ("shared", "scalar")
                else {key: made.state[p][name] for key, p in named.items()}
                for name, kind in case.rule.kinds.items()
            }
            yield params, case.rule.State(**{name: fields.get(name) for name in case.rule.State._fields})

    for case in cases(job["rules"], "torch"):
        plain = case.label == "as it is" and not case.rule.needs
        report(run(case, optimizer if plain else functional, "torch", job["size"], job["rank"]), MARK)
    dist.barrier()
    dist.destroy_process_group()


def mpi(job: Job) -> None:
    """MPI, NumPy arrays."""
    import signcore_mpi

    transport = signcore_mpi.Collectives(timeout=120.0)

    def functional(case: Case) -> Iterator[tuple[Any, Any]]:
        return stepped(Group(transport, bucket=case.bucket, check_every=2), case, transport.rank, np.array)

    for case in cases(job["rules"], "mpi"):
        report(run(case, functional, "mpi", transport.size, transport.rank), MARK)


def jax(job: Job) -> None:
    """Devices along an axis of a mesh, in one process or one in each of several."""
    import jax as library
    import optax

    import signcore_optax

    if job.get("processes", 1) > 1:
        library.distributed.initialize(f"127.0.0.1:{job['port']}", job["processes"], job["rank"])
    P, size = library.sharding.PartitionSpec, job["size"]
    auto = (library.sharding.AxisType.Auto,)
    mesh = library.make_mesh((size,), ("data",), axis_types=auto, devices=library.devices()[:size])
    mine = [n for n, device in enumerate(mesh.devices.flat) if device.process_index == library.process_index()]
    engine = "jax" if job.get("processes", 1) == 1 else "jax, 2 processes"

    def spread(rows: list[Any], spec: Any) -> Any:
        """A global array from what each device has of it."""
        sharding = library.sharding.NamedSharding(mesh, spec)
        shape = (size, *rows[0].shape) if spec else rows[0].shape
        return library.make_array_from_callback(shape, sharding, lambda i: np.stack(rows)[i] if spec else rows[0][i])

    def transformed(case: Case) -> Iterator[tuple[Any, Any]]:
        tx, spec = signcore_optax.from_rule(case.rule, axis_name="data"), signcore_optax.specs(case.rule, "data")

        def step(params: Any, state: Any, grads: Any) -> Any:
            own = {}
            if case.rule.needs:
                factor = 2.0 ** library.lax.axis_index("data").astype(np.float32)
                own = {"value": loss(params) * factor, "value_fn": loss}
                own = {name: value for name, value in own.items() if name in case.rule.needs}
            updates, state = tx.update(library.tree.map(lambda g: g[0], grads), state, params, **own)
            return optax.apply_updates(params, updates), state

        init = library.jit(library.shard_map(tx.init, mesh=mesh, in_specs=P(), out_specs=spec))
        update = library.jit(library.shard_map(step, mesh=mesh, in_specs=(P(), spec, P("data")), out_specs=(P(), spec)))
        params = {name: spread([a], P()) for name, a in arrays(case.dtypes, 0).items()}
        state = init(params)
        for k in range(STEPS):
            each = [gradients(case, n, k) for n in range(size)]
            grads = {name: spread([g[name] for g in each], P("data")) for name in each[0]}
            params, state = update(params, state, grads)
            yield params, state

    def local(value: Any, n: int, own: bool) -> Any:
        shards = [s for s in value.addressable_shards if s.device == mesh.devices.flat[n]]
        return np.asarray(shards[0].data)[0] if own else np.asarray(shards[0].data)

    for case in cases(job["rules"], "jax"):
        if "grad_fn" in case.rule.needs:
            continue  # its parameters are traced: see the note in the verdict
        own = [name for name in case.rule.kinds if name not in case.rule.shared_fields()]
        found: list[Any] = []
        problem = None
        try:
            found = list(transformed(case))
        except Exception:
            problem = "raised\n" + traceback.format_exc(limit=-4)
        for n in mine:

            def seen(
                case: Case, n: int = n, found: list[Any] = found, own: list[str] = own
            ) -> Iterator[tuple[Any, Any]]:
                for params, state in found:
                    fields = {
                        name: None
                        if getattr(state, name) is None
                        else library.tree.map(partial(local, n=n, own=name in own), getattr(state, name))
                        for name in state._fields
                    }
                    yield library.tree.map(partial(local, n=n, own=False), params), type(state)(**fields)

            line = run(case, seen, engine, size, n)
            report(line if problem is None else line._replace(problem=problem), MARK)


def stepped(group: Group, case: Case, rank: int, to: Any) -> Iterator[tuple[Any, Any]]:
    """The functional steps of one rank."""
    params = {name: to(a) for name, a in arrays(case.dtypes, 0).items()}
    state = case.rule.init(params, worker=rank)
    for step in range(STEPS):
        grads = {name: to(g) for name, g in gradients(case, rank, step).items()}
        params, state = group.step(case.rule, params, grads, state, **inputs(case, params, rank))
        yield params, state


def run(case: Case, steps: Steps, engine: str, size: int, rank: int) -> Line:
    """A case of one rank, compared with the simulation."""
    line = Line(engine, size, rank, case.rule.name, case.label, 0, None)
    try:
        for k, ((params, state), (theirs, states)) in enumerate(zip(steps(case), truth(case, size), strict=True)):
            for mine, expected in ((params, theirs), (state, states[rank])):
                words, problem = compared(mine, expected, k)
                line = line._replace(words=line.words + words, problem=line.problem or problem)
    except Exception:
        return line._replace(problem="raised\n" + traceback.format_exc(limit=-4))
    return line


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    with np.errstate(all="ignore"):
        {"torch": torch, "jax": jax, "mpi": mpi}[sys.argv[1]](json.loads(sys.argv[2]))
