"""One process per framework: prints a JSON line per table, and nothing else, on stdout.

Thread pools of two frameworks in one process get into each other's way (outliers of 2 to 100 times were seen),
so `run.py` starts one of these for each.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import statistics
import sys
from typing import Any

import primitives
from sets import QUICK, SETS, Shape, count
from timing import race, ratio, start


def table(framework: Any, rule: str, shapes: list[Shape], seconds: float, patience: float) -> dict[str, Any]:
    """All contestants for one rule on one set, raced; their times, and the ratios of ours to the peers."""
    gradients = [framework.arrays(shapes, seed) for seed in (1, 2, 3)]
    entered = list(framework.contestants(rule, lr=1e-3, shapes=shapes))
    found = start(entered, gradients[0], patience)
    race(found, gradients, seconds)
    late = [
        f"{each.label}, {each.mode}: the first call was given up after {patience:g} s"
        for each in entered
        if each not in found
    ]
    unit = 4 * count(shapes)
    return {
        "rounds": len(found[0].times),
        "contestants": [
            {
                "label": each.label,
                "mode": each.mode,
                "ours": each.ours,
                "first_s": each.first,
                "median_s": statistics.median(each.times),
                "passes": each.traffic(gradients[0]) / unit if each.traffic else None,
                "extra": each.extra(gradients[0]) / unit if each.extra else None,
            }
            for each in found
        ],
        "ratios": [
            {"ours": ours.label, "mode": ours.mode, "peer": peer.label, "quartiles": ratio(ours, peer)}
            for ours in found
            for peer in found
            if ours.ours and not peer.ours and ours.mode == peer.mode
        ],
        "not_run": framework.unavailable(rule) + late,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("framework", choices=["numpy", "torch", "jax"])
    parser.add_argument("--rules", nargs="*", required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--patience", type=float, required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--primitives", action="store_true")
    parser.add_argument("--by-bytes", action="store_true")
    args = parser.parse_args()

    # Whatever a library prints goes to stderr; the protocol keeps the real stdout to itself.
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def send(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=out, flush=True)

    framework = importlib.import_module(f"on_{args.framework}")
    send({"versions": framework.versions()})
    if args.primitives:
        for found in primitives.run(args.framework, args.seconds / 2, args.patience, args.quick):
            send(found)
    if args.framework == "jax" and args.by_bytes:
        import by_bytes

        for found in by_bytes.run(args.seconds / 2, args.patience, args.quick):
            send(found)
    for size, shapes in (QUICK if args.quick else SETS).items():
        for rule in args.rules:
            found = table(framework, rule, shapes, args.seconds, args.patience)
            send({"framework": args.framework, "rule": rule, "set": size, **found})
            gc.collect()


if __name__ == "__main__":
    main()
