"""Parameters cut over an explicit mesh, as `jax.make_mesh` makes them by default: rules that measure the whole tree."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

import signcore as sc
from signcore_conformance import golden

SHAPE = (2, 8, 3)


def rules() -> dict[str, sc.Rule]:
    """Those that flatten what they measure; of ALIAS compact, also what packs bits."""
    found = {name: golden.variants(name)[0] for name in sc.rules() if sc.rule(name, lr=0.1).partials}
    found["bits"] = sc.ALIASCompact(d0=0.125, sign_zero="plus")
    return {name: rule for name, rule in found.items() if not rule.needs & {"value_fn", "grad_fn"}}


def arrays(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {"w": rng.normal(size=SHAPE).astype(np.float32), "b": rng.normal(size=3).astype(np.float32)}


def inputs(rule: sc.Rule) -> dict[str, Any]:
    return {"value": 50.0} if "value" in rule.needs else {}


def on_numpy(rule: sc.Rule) -> list[str]:
    params, found = arrays(0), []
    state = rule.init(params)
    for step in range(2):
        params, state = rule.step(params, arrays(step + 1), state, **inputs(rule))
        found.append("".join(params[name].tobytes().hex() for name in sorted(params)))
    return found


def over_a_mesh() -> dict[str, list[str]]:
    """What eight devices give, of which each has a piece of the middle axis."""
    import jax
    import optax

    import signcore_optax

    mesh = jax.make_mesh((8,), ("x",))
    assert mesh.axis_types == (jax.sharding.AxisType.Explicit,)
    cut = jax.NamedSharding(mesh, jax.P(None, "x"))

    def place(values: dict[str, np.ndarray]) -> dict[str, Any]:
        return {
            name: jax.device_put(a, cut if a.ndim == 3 else jax.NamedSharding(mesh, jax.P()))
            for name, a in values.items()
        }

    found: dict[str, list[str]] = {}
    for name, rule in rules().items():
        tx = signcore_optax.from_rule(rule)
        params = place(arrays(0))
        state = tx.init(params)
        update = jax.jit(lambda g, s, p, tx=tx, rule=rule: tx.update(g, s, p, **inputs(rule)))
        found[name] = []
        for step in range(2):
            updates, state = update(place(arrays(step + 1)), state, params)
            params = optax.apply_updates(params, updates)
            assert params["w"].sharding.is_equivalent_to(cut, 3)
            found[name].append("".join(np.asarray(params[k]).tobytes().hex() for k in sorted(params)))
    return found


def test_rules_that_measure_give_the_words_of_one_device() -> None:
    root = Path(__file__).resolve().parents[2]
    paths = [str(root / folder) for folder in (".", "adapters", "conformance")]
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) >= 8
    for name, rule in rules().items():
        assert found[name] == on_numpy(rule), name


if __name__ == "__main__":
    print(json.dumps(over_a_mesh()))
