"""``python -m signcore_conformance distributed``: every rule on several processes and devices is the simulation.

Every word of parameters and state of every rank must be what `signcore.simulate` computes in one process. One launch
per engine and number of ranks runs all rules.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import Progress

import signcore as sc
from signcore import checks

from .ranks import MARK
from .suite import names_in
from .together import Line, cases

ENGINES = ("torch", "jax", "mpi")
MODULE = "signcore_conformance.ranks"
# As root, with more ranks than cores, in a container: what Open MPI asks for by name.
MPI = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}


class Launch(NamedTuple):
    """One set of processes."""

    engine: str
    size: int
    processes: int

    @property
    def name(self) -> str:
        """What a line of the report begins with."""
        many = f", {self.processes} processes" if self.engine == "jax" and self.processes > 1 else ""
        return f"{self.engine}, {self.size} {'devices' if self.engine == 'jax' else 'ranks'}{many}"


def launches(engines: list[str]) -> list[Launch]:
    """Everything that is run; the largest first."""
    every = [
        *(Launch("torch", n, n) for n in (5, 4, 3, 2, 1)),
        *(Launch("jax", n, 1) for n in (8, 2, 1)),
        Launch("jax", 2, 2),
        Launch("mpi", 3, 3),
    ]
    return [launch for launch in every if launch.engine in engines]


def missing(engine: str) -> str | None:
    """Why an engine cannot run here."""
    needed = {"torch": ("torch",), "jax": ("jax", "optax"), "mpi": ("mpi4py",)}[engine]
    lacking = [name for name in needed if importlib.util.find_spec(name) is None]
    if lacking:
        return f"{', '.join(lacking)} is not installed"
    return "there is no mpiexec" if engine == "mpi" and mpiexec() is None else None


def mpiexec() -> str | None:
    """The one beside this Python, or on the path."""
    beside = Path(sys.executable).with_name("mpiexec")
    return str(beside) if beside.exists() else shutil.which("mpiexec")


def commands(launch: Launch, rules: list[str]) -> Iterator[tuple[list[str], dict[str, str]]]:
    """Command and environment of each process that is started."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job: dict[str, Any] = {"rules": rules, "size": launch.size, "port": port, "processes": launch.processes}
    python = [sys.executable, "-W", "ignore", "-m", MODULE, launch.engine]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu"}
    if launch.engine == "mpi":
        start = [str(mpiexec()), "-n", str(launch.processes)]
        yield [*start, *python, json.dumps(job)], {**MPI, **environment}
        return
    if launch.engine == "jax":
        devices = launch.size // launch.processes
        environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    count = launch.processes
    for rank in range(count):
        yield [*python, json.dumps({**job, "rank": rank})], environment


def run(launch: Launch, rules: list[str], timeout: float) -> Iterator[Line | str]:
    """The lines of all ranks of a launch, and a text for each process that fails."""
    with tempfile.TemporaryDirectory() as folder:
        started = []
        for k, (command, environment) in enumerate(commands(launch, rules)):
            files = [Path(folder) / f"{k}.{name}" for name in ("out", "err")]
            with files[0].open("w") as out, files[1].open("w") as err:
                process = subprocess.Popen(command, env=environment, stdout=out, stderr=err, text=True)
            started.append((process, *files))
        try:
            for process, _, _ in started:
                process.wait(timeout)
        except subprocess.TimeoutExpired:
            yield f"{launch.name}: not done after {timeout:g} s"
        finally:
            for process, _, _ in started:
                process.kill()
                process.wait()
        for k, (process, out, err) in enumerate(started):
            for text in out.read_text().splitlines():
                if text.startswith(MARK):
                    yield Line(*json.loads(text.removeprefix(MARK)))
            if process.returncode:
                end = err.read_text()[-2000:]
                yield f"{launch.name}: process {k} ended with status {process.returncode}\n{end}"


def expected(launch: Launch, rules: list[str]) -> int:
    """How many lines all ranks of a launch print."""
    found = [case for case in cases(rules, launch.engine)]
    if launch.engine == "jax":
        found = [case for case in found if "grad_fn" not in case.rule.needs]
    return launch.size * len(found)


def main(arguments: list[str]) -> int:
    """Exit status 0 when no word differed and every rank ran every case, else 1; 2 on bad usage."""
    parser = argparse.ArgumentParser(prog="python -m signcore_conformance distributed", description=__doc__)
    parser.add_argument("--rules", type=names_in, default=sc.rules(), help="comma-separated; default: all")
    parser.add_argument("--engines", type=names_in, default=list(ENGINES), help=f"default: {','.join(ENGINES)}")
    parser.add_argument("--sizes", type=names_in, help="only these numbers of ranks; default: all")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds for a launch; default: 600")
    options = parser.parse_args(arguments)
    try:
        for argument, values, known in (
            ("--rules", options.rules, sc.rules()),
            ("--engines", options.engines, ENGINES),
        ):
            for value in values:
                checks.known(argument, value, known)
    except ValueError as error:
        parser.error(str(error))
    absent = {engine: missing(engine) for engine in options.engines}
    work = [launch for launch in launches(options.engines) if absent[launch.engine] is None]
    if options.sizes:
        work = [launch for launch in work if str(launch.size) in options.sizes]
    failed: list[str] = []
    words = 0
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("distributed", total=len(work))
        for launch in work:
            progress.update(task, description=launch.name)
            lines = list(run(launch, options.rules, options.timeout))
            found = [line for line in lines if isinstance(line, Line)]
            failed += [line for line in lines if isinstance(line, str)]
            failed += [
                f"{launch.name}: rank {line.rank}, {line.rule}, {line.label}: {line.problem}"
                for line in found
                if line.problem
            ]
            wanted = expected(launch, options.rules)
            if len(found) != wanted:
                failed.append(f"{launch.name}: {len(found)} of {wanted} results came")
            words += sum(line.words for line in found)
            wrong = sum(line.problem is not None for line in found)
            print(
                f"{launch.name}: {len(found)} results, {sum(line.words for line in found):,} words, {wrong} wrong",
                flush=True,
            )
            progress.advance(task)
    for engine, reason in absent.items():
        if reason is not None:
            print(f"not run: {engine} ({reason})")
    for text in failed:
        print(f"FAILED: {text}")
    if failed or not words:
        return 1
    print(f"passed: {words:,} words compared with the simulation, 0 differ")
    return 0
