"""A worker process: runs the backends of one group and prints each cell as a line of JSON.

One process per framework, because float64 in JAX needs a switch that must not reach the others, and because
the frameworks' thread pools disturb each other.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from .cells import Cell, Plan, run

MARK = "signcore-cell "


class Job(dict[str, Any]):
    """What one worker does: ``backends``, ``dtypes``, ``plan`` and whether JAX has ``x64``."""


class WorkerDied(RuntimeError):
    """A worker process ended with an error, which is the message."""


def lines(module: str, argument: str, mark: str, environment: dict[str, str] | None = None) -> Iterator[Any]:
    """What a worker process prints after a mark, as JSON; raises WorkerDied when it fails."""
    command = [sys.executable, "-W", "ignore", "-m", module, argument]
    with (
        tempfile.TemporaryFile("w+", errors="replace") as errors,
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(mark):
                yield json.loads(line.removeprefix(mark))
        if process.wait() != 0:
            errors.seek(0)
            raise WorkerDied(f"status {process.returncode}:\n{errors.read()[-3000:]}")


def each(jobs: Iterable[Any], start: Callable[[Any], Iterable[Any]], take: Callable[[Any], None]) -> None:
    """Hand everything that the jobs' workers find to `take`, one at a time; as many jobs at once as there are cores."""
    lock = threading.Lock()

    def work(job: Any) -> None:
        for found in start(job):
            with lock:
                take(found)

    with ThreadPoolExecutor(max(1, min(os.cpu_count() or 1, 4))) as pool:
        list(pool.map(work, jobs))  # a list, so that what a job raises is raised here


def outcomes(module: str, job: Any, mark: str) -> Iterator[Any]:
    """What a job's worker prints, in a process of its own with or without JAX's x64; an error text if it dies."""
    environment = {**os.environ, "JAX_ENABLE_X64": "1" if job["x64"] else "0"}
    try:
        yield from lines(module, json.dumps(job), mark, environment)
    except WorkerDied as died:
        yield f"worker for {', '.join(job['backends'])} ended with {died}"


def start(job: Job) -> Iterator[Cell | str]:
    """Run a job in a process of its own; yields its cells, and an error text if it dies."""
    for found in outcomes("signcore_conformance.worker", job, MARK):
        yield found if isinstance(found, str) else Cell(*found)


def main(text: str) -> int:
    """Run one job given as JSON."""
    from .backends import BACKENDS

    warnings.simplefilter("ignore")
    job = json.loads(text)
    plan = Plan(*(tuple(value) if isinstance(value, list) else value for value in job["plan"]))
    backends = [backend for backend in BACKENDS if backend.name in job["backends"]]
    for cell in run(backends, plan, tuple(job["dtypes"])):
        print(MARK + json.dumps(cell), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
