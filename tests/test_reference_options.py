"""The reference gives the core's words with every value of every option, and for the votes of several workers."""

import numpy as np
import pytest
from every_option import BESIDE, CLASSES, VARIANTS, buildable, options

import signcore as sc
from signcore.rule import Rule
from signcore_conformance import golden, workloads
from signcore_conformance.backends import extras
from signcore_conformance.compare import Trace, compare

SHAPES = {"a/x": (5,), "a/y": (2, 3), "b/z": (), "c": (0,)}
STEPS = 5


def params_of(dtype):
    rng = np.random.default_rng(5)
    return {path: np.asarray(rng.standard_normal(shape)).astype(dtype) for path, shape in SHAPES.items()}


def gradients(params, seed=0):
    rng = np.random.default_rng(seed)
    made = [{path: np.asarray(rng.standard_normal(p.shape)).astype(p.dtype) for path, p in params.items()}]
    for k in range(1, STEPS):
        made.append({path: g * g.dtype.type(-(0.5**k)) for path, g in made[0].items()})
        made[k]["a/x"][:2] = 0.0
    return made


def settings(name, option, value):
    """Rules with the option, beside its golden file's variants and what else it may need."""
    low = {"lower_bound": -1e6} if option == "maximize" and "lower_bound" in CLASSES[name].__dataclass_fields__ else {}
    found = {}
    for beside in ({}, *golden.load(name)["variants"], *BESIDE):
        rule = buildable(CLASSES[name], **({"lr": 0.01} | beside | low | {option: value}))
        if rule is not None:
            found[repr(rule)] = rule
    return list(found.values())[:4]


def steps_of(rule, params, grads):
    state = rule.init(params)
    for g in grads:
        with np.errstate(all="ignore"):
            params, state = rule.step(params, g, state, **extras(rule, params))
        yield params, state


def traces(rule, params, grads):
    model = golden.reference(rule)
    state = model.init(params)
    for g in grads:
        params, state = model.step(params, g, state, **workloads.losses(params, model.needs))
        yield Trace(params, state)


@pytest.mark.parametrize(("name", "option", "value"), [*options()])
def test_the_reference_has_every_value_of_every_option(name, option, value):
    rules = settings(name, option, value)
    if option == "nonfinite" and value == "raise":
        rules = [rule.replace(nonfinite="propagate") for rule in rules]  # what is left of "raise" is an error
    assert rules or option == "weight_decay"  # a rule whose options exclude decay refuses it
    for rule in rules:
        params = params_of(np.float64 if option == "state_dtype" else np.float32)
        grads = gradients(params)
        if option == "nonfinite":
            grads[2]["a/y"][0, 0] = np.nan
        outcome = compare(steps_of(rule, params, grads), traces(rule, params, grads))
        assert outcome.mismatch is None, rule


# Their formula has one sign, of what a worker's own gradient gives, and no numbers of the whole tree, no losses.
VOTED = [
    name
    for name in sc.rules()
    if "aggregation" in CLASSES[name].__dataclass_fields__
    and " ".join(golden.load(name)["formula"]).count("sign(") == 1
    and not golden.load(name).get("stages")
    and not VARIANTS[name].needs
]


def test_most_rules_that_vote_are_held_against_the_reference():
    assert {"aass", "lion", "signsgd", "signum"} <= set(VOTED)


def votes():
    for name in VOTED:
        fields = CLASSES[name].__dataclass_fields__
        for zero in fields["sign_zero"].metadata["choices"]:
            for ties in fields["ties"].metadata["choices"]:
                yield name, {"sign_zero": zero, "ties": ties}
            yield name, {"sign_zero": zero, "aggregation": "mean"}
        for ties in ("zero", "random"):
            yield name, {"ties": ties, "aggregation": "weighted"}


@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize(("name", "voting"), [*votes()])
def test_votes_are_the_reference_s(name, voting, workers):
    rule: Rule = VARIANTS[name].replace(**voting)
    params = params_of(np.float32)
    grads = [gradients(params, seed) for seed in range(workers)]
    states, weights = None, [1.5, 0.5, 1.0][:workers] if rule.aggregation == "weighted" else None

    def simulated():
        nonlocal states
        mine = params
        for k in range(STEPS):
            mine, states = sc.simulate(rule, mine, [g[k] for g in grads], states, weights=weights)
            yield mine, states[-1]

    def expected():
        model = golden.reference(rule)
        mine, held = params, [model.init(params, worker=n) for n in range(workers)]
        for k in range(STEPS):
            mine, held = model.together(mine, [g[k] for g in grads], held, weights)
            yield Trace(mine, held[-1])

    assert compare(simulated(), expected()).mismatch is None
