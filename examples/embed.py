"""Embedding the core: a host framework that knows Array API arrays and nothing else (here array-api-strict's).

A rule asks three things of its host: a tree of arrays, gradients of the same structure, and a place for the state.
"""

import array_api_strict as xp

import signcore as sc


class Host:
    """Variables by name, and any rule as the optimizer."""

    def __init__(self, rule, **variables):
        self.rule, self.variables, self.state = rule, variables, rule.init(variables)

    def minimize(self, loss_and_gradients, steps):
        for _ in range(steps):
            loss, grads = loss_and_gradients(**self.variables)
            extra = {"value": loss} if "value" in self.rule.needs else {}
            self.variables, self.state = self.rule.step(self.variables, grads, self.state, **extra)
        return float(loss_and_gradients(**self.variables)[0])


X = xp.linspace(-1.0, 1.0, 20, dtype=xp.float32)
Y = 3.0 * X - 0.5


def line(w, b):
    """Mean squared error of ``w*x + b``, and its gradients by hand."""
    residual = w * X + b - Y
    return xp.mean(residual**2), {"w": 2.0 * xp.mean(residual * X), "b": 2.0 * xp.mean(residual)}


if __name__ == "__main__":
    for rule in (sc.Lion(lr=sc.schedules.inverse_sqrt(0.2)), sc.ALIAS()):
        host = Host(rule, w=xp.asarray(0.0, dtype=xp.float32), b=xp.asarray(0.0, dtype=xp.float32))
        print(f"{type(rule).__name__:6s} loss before {float(line(**host.variables)[0]):.4f}", end="  ")
        print(f"after {host.minimize(line, 200):.4f}")
