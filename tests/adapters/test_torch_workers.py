"""``process_group=``: what one rank gets wrong is an error on every rank, and a dead or stalled rank is named."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import signcore_torch

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
import datetime, os, signal, sys, time
import torch, torch.distributed as dist
import signcore_torch as st
from signcore.exchange import DisagreementError, TransportError
what, rank, port = sys.argv[1], int(sys.argv[2]), sys.argv[3]
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
dist.init_process_group("gloo", rank=rank, world_size=2, timeout=datetime.timedelta(seconds=8))
group, p = dist.group.WORLD, torch.nn.Parameter(torch.zeros(4))

def say(name, make):
    before = p.detach().clone()
    try:
        make()
    except Exception as error:
        kept = torch.equal(p.detach(), before)
        print(name, "|", type(error).__name__, "|", str(error).splitlines()[0], "|", kept, flush=True)
    else:
        print(name, "| nothing |", flush=True)

if what == "errors":
    say("empty", lambda: st.SGD([p] if rank else [], lr=0.1, process_group=group))
    say("range", lambda: st.SGD([p], lr=0.1 if rank else -1, process_group=group))
    say("rule", lambda: (st.SGD if rank else st.Lion)([p], lr=0.1, process_group=group))
    say("numbers", lambda: st.SignSGD([p], lr=0.1 * (rank + 1), process_group=group))
    say("ties", lambda: st.SignSGD([p], lr=0.1, sign_zero="plus", process_group=group))
    say("compile", lambda: st.SignSGD([p], lr=0.1, compile=True, process_group=group))
    o = st.SignSGD([p], lr=0.1, process_group=group)
    p.grad = torch.ones(4) if rank else None
    say("absent", o.step)
    p.grad = torch.ones(4)
    o.param_groups[0]["lr"] = 0.2 if rank else 0.1
    say("rate", o.step)
    o.param_groups[0]["lr"] = 0.1 if rank else -1.0
    say("negative", o.step)
    o.param_groups[0]["lr"] = 0.1
    p.grad = p.grad.to_sparse() if rank else p.grad
    say("sparse", o.step)
    p.grad = torch.ones(4)

    def closure():
        if rank:
            raise KeyError("of the closure")

    say("closure", lambda: o.step(closure))
    o.param_groups[0]["nonfinite"] = "raise"
    p.grad[1] = float("nan") if rank else 1.0
    say("nan", o.step)
    o.param_groups[0]["nonfinite"] = "skip"
    say("skip", o.step)
    p.grad = torch.ones(4)
    say("fine", o.step)
    with torch.no_grad():
        p[2] += rank
    o._workers.group.check_every = 1
    say("parted", o.step)
else:
    o, k = st.SignSGD([p], lr=1.0, process_group=group), 0
    while True:
        k += 1
        if rank == 1 and k == 30:
            print("now", flush=True)
            if what == "dead":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)
        p.grad = torch.ones(4)
        try:
            o.step()
        except TransportError as error:
            print(f"{error.collective}|{error.step}|{error.ranks}|{p.tolist()}", flush=True)
            os._exit(3)
"""


def started(what: str) -> list[subprocess.Popen[str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "adapters")]),
    }
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, what]
    return [
        subprocess.Popen(
            [*command, str(rank), port], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]


def test_errors_are_on_every_rank_and_change_nothing() -> None:
    found = []
    for process in started("errors"):
        out, err = process.communicate(timeout=100)
        assert process.returncode == 0, err
        found.append({line.split(" | ")[0]: line.split(" | ")[1:] for line in out.splitlines()})
    assert list(found[0]) == list(found[1])
    for name, (mine, theirs) in ((name, (found[0][name], found[1][name])) for name in found[0]):
        if name in ("skip", "fine"):
            assert mine[0].startswith("nothing")
            assert theirs[0].startswith("nothing")
            continue
        assert mine[2] == theirs[2] == "True", name  # no parameter was changed
    both = {
        "rule": "`rule` of rank 1 differs from rank 0's: sgd and not lion",
        "numbers": "lr of group 0 is 0.2 and not 0.1",
        "ties": "`ties` is 'zero'",
        "compile": "`compile` is True and `process_group` is given",
        "absent": "`grads` of rank 1 differs",
        "rate": "lr is 0.2 and not 0.1",
        "nan": "hold inf or NaN on some rank",
        "parted": "params '0' of rank 1 holds other words than rank 0's",
    }
    for name, text in both.items():
        assert text in found[0][name][1], (name, found[0][name])
        assert text in found[1][name][1], (name, found[1][name])
    one = {"empty": (0, "empty parameter list"), "range": (0, "`lr` is -1"), "negative": (0, "`lr` is -1.0")}
    one |= {"sparse": (1, "sparse"), "closure": (1, "of the closure")}
    for name, (rank, text) in one.items():
        assert text in found[rank][name][1], (name, found[rank][name])
        other = found[1 - rank][name]
        assert other[0] == "DisagreementError"
        assert f"rank {rank} stops before this step" in other[1], (name, other)


@pytest.mark.parametrize("what", ["dead", "stalled"])
def test_a_rank_that_does_not_answer_is_named(what: str) -> None:
    first, second = started(what)
    try:
        out, err = first.communicate(timeout=60)
        assert first.returncode == 3, err
        collective, step, blamed, params = out.strip().split("|")
        assert collective in ("gather", "exchange")
        assert (step, blamed) == ("29", "[1]")
        assert params == str([-29.0] * 4)  # wholly before the step
    finally:
        second.send_signal(signal.SIGKILL)
        second.communicate()


def test_a_copy_has_to_be_given_its_group() -> None:
    import copy

    optimizer = signcore_torch.SGD([torch.nn.Parameter(torch.zeros(2))], lr=0.1)
    assert not copy.deepcopy(optimizer)._parted
    optimizer._workers = object()  # what a process group would have made
    made = copy.deepcopy(optimizer)
    with pytest.raises(RuntimeError, match="`process_group` is missing"):
        made.step()
    with pytest.raises(TypeError, match="`check_every` is 3 and `process_group` is None"):
        signcore_torch.SGD([torch.nn.Parameter(torch.zeros(2))], lr=0.1, check_every=3)


BUCKETS = """
import os, sys
import torch, torch.distributed as dist
import signcore_torch as st
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=sys.argv[3])
dist.init_process_group("gloo", rank=0, world_size=1)
for name, options in (("ALIAS", {"sample": "same", "d0": 1e-3}), ("MonotoneSignSGD", {"lr": 0.01})):
    seen = []
    for view in (None, False, True):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
        run = model if view is None else torch.nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=view)
        optimizer = getattr(st, name)(model.parameters(), **options)
        x = torch.randn(16, 4)
        def closure():
            optimizer.zero_grad()
            loss = run(x).square().mean()
            loss.backward()
            return loss
        for _ in range(4):
            optimizer.step(closure)
        seen.append([t.tolist() for p in model.parameters() for t in (p.detach(), p.grad)])
    print(name, seen[0] == seen[1] == seen[2], flush=True)
"""


def test_gradients_that_are_views_of_buckets_are_those_of_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "PROGRAM", BUCKETS)
    process, other = started("buckets")
    other.kill()
    other.communicate()
    out, err = process.communicate(timeout=100)
    assert out.split() == ["ALIAS", "True", "MonotoneSignSGD", "True"], err


def test_a_step_that_fails_leaves_a_state_in_its_dtype() -> None:
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = signcore_torch.Lion([p], lr=0.1, nonfinite="raise")
    p.grad = torch.tensor([0.1, 0.2, 0.3])
    optimizer.step()
    kept = optimizer.state[p]["m"].clone()
    optimizer.param_groups[0]["state_dtype"] = "bfloat16"
    p.grad = torch.full((3,), torch.nan)
    with pytest.raises(FloatingPointError):
        optimizer.step()
    assert optimizer.state[p]["m"].dtype == torch.float32
    assert torch.equal(optimizer.state[p]["m"], kept)
    p.grad = torch.ones(3)
    optimizer.step()
    assert optimizer.state[p]["m"].dtype == torch.bfloat16
