"""Every backend that the suite runs, as one data list. A missing one is listed with its reason, never dropped."""

from __future__ import annotations

import importlib.util
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

import signcore as sc
from signcore import ops
from signcore.marks import WHOLE
from signcore.tree import flatten, unflatten

from . import network
from .workloads import Workload

ALL = ("float16", "bfloat16", "float32", "float64")
Step = tuple[Any, Any]  # NumPy trees of parameters and state


def tree_map(function: Callable[[Any], Any], tree: Any) -> Any:
    """A tree with a function applied to every leaf that is not None."""
    leaves = [None if leaf.value is None else function(leaf.value) for leaf in flatten(tree)]
    return unflatten(tree, leaves)


def state_map(function: Callable[[Any], Any], state: Any) -> Any:
    """A state with a function applied to every leaf of its fields."""
    return type(state)(*(None if field is None else tree_map(function, field) for field in state))


def _same(function: Any) -> Any:
    return function


@dataclass(frozen=True)
class Backend:
    """How one backend runs a rule.

    Parameters
    ----------
    name : str
    group : str
        Backends of one group share a worker process.
    needs : tuple of str
        Modules that must be installed.
    dtypes : tuple of str
    to, back : callable
        NumPy array to the backend's and back.
    wrap : callable
        What compiles a function (identity for eager backends).
    drive : callable, optional
        ``drive(backend, rule, workload)`` for backends that are no plain loop over ``rule.step``.
    device : callable, optional
        Reason why the device is missing, or None.
    traced : bool
        Whether steps run under a trace, where nonfinite="raise" is an error.
    main_variant_only : bool
        Whether only the first variant of a rule is run, because each compilation takes seconds.
    quick_dtypes, usual_dtypes : tuple of str
        Run with ``--quick``, and without it or ``--full``: few where each dtype costs compilations. The mixed tree has
        all of them.
    secondary : bool
        Whether another backend runs the same code on the same processor: quick runs give it the rules that stand for
        the others (`golden.representatives`), usual ones no options.
    costly : bool
        Whether compilations, or a dispatch per operation, take most of the time: only ``--full`` runs the large leaf
        and the network, in float32, and what else costs compilations.
    jits_network : bool
        Whether the network's thousand operations are jitted though the rules are not: one by one, JAX takes six times
        as long for them as for most rules.
    """

    name: str
    group: str
    needs: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ALL
    to: Callable[[np.ndarray], Any] = np.array
    back: Callable[[Any], np.ndarray] = np.asarray
    wrap: Callable[[Any], Any] = _same
    drive: Callable[..., Iterator[Step]] | None = None
    device: Callable[[], str | None] | None = None
    traced: bool = False
    main_variant_only: bool = False
    quick_dtypes: tuple[str, ...] = ("bfloat16", "float32")
    usual_dtypes: tuple[str, ...] = ALL
    secondary: bool = False
    costly: bool = False
    jits_network: bool = False

    def missing(self) -> str | None:
        """Why this backend cannot run here, None when it can."""
        for module in self.needs:
            if importlib.util.find_spec(module) is None:
                return f"{module} is not installed"
        return self.device() if self.device is not None else None

    def run(self, rule: sc.Rule, workload: Workload) -> Iterator[Step]:
        """Parameters and state after every step, as NumPy trees."""
        return (self.drive or functional)(self, rule, workload)

    def read(self, params: Any, state: Any) -> Step:
        """A step's outcome as NumPy trees."""
        return tree_map(self.back, params), state_map(self.back, state)


_COMPILED: dict[Any, Any] = {}


def compiled(backend: Backend, key: Any, function: Any) -> Any:
    """The wrapped function, compiled once per backend and key."""
    if (backend.name, key) not in _COMPILED:
        _COMPILED[backend.name, key] = backend.wrap(function)
    return _COMPILED[backend.name, key]


def _gradients(backend: Backend, workload: Workload) -> Any:
    """The network's gradients, compiled as the backend does; where that takes long, in float32 alone."""
    if backend.main_variant_only and not workload.shapes.endswith(" float32"):
        return network.gradients
    if backend.jits_network:
        backend = replace(backend, wrap=_jit)
    return compiled(backend, ("gradients", workload.shapes), network.gradients)


def loss(params: Any) -> Any:
    """The suite's loss: the l1 norm of all parameters."""
    return sc.sums.norm1(params)


def gradient_elsewhere(params: Any) -> Any:
    """The suite's gradients at other parameters: half of them, which is exact."""
    return tree_map(lambda p: ops.cast(p * 0.5, p.dtype), params)  # NumPy widens its bfloat16


def extras(rule: sc.Rule, params: Any) -> dict[str, Any]:
    """What a rule needs beside the gradients."""
    every = {"value": lambda: loss(params), "value_fn": lambda: loss, "grad_fn": lambda: gradient_elsewhere}
    return {name: every[name]() for name in rule.needs}


def given(rule: sc.Rule, step: Any) -> Any:
    """A step that brings its functions along, so that only arrays are passed to it."""
    functions = {name: value for name, value in extras(rule, []).items() if callable(value)}
    return partial(step, **functions) if functions else step


def _loop(backend: Backend, rule: sc.Rule, workload: Workload, params: Any, state: Any, step: Any) -> Iterator[Step]:
    """``params, state = step(params, grads, state)``, over and over."""
    gradient = _gradients(backend, workload)
    for inputs in workload.inputs:
        if workload.is_network:
            grads = gradient(params, tree_map(backend.to, inputs))
        else:
            grads = tree_map(backend.to, workload.tree(inputs))
        values = {"value": loss(params)} if "value" in rule.needs else {}
        params, state = step(params, grads, state, **values)
        yield backend.read(params, state)


def functional(backend: Backend, rule: sc.Rule, workload: Workload) -> Iterator[Step]:
    """The rule's own step."""
    params = tree_map(backend.to, workload.tree(workload.params))
    step = compiled(backend, (rule, workload.shapes), given(rule, rule.step))
    return _loop(backend, rule, workload, params, rule.init(params), step)


# -- NumPy -------------------------------------------------------------------------------------------------------


def _readonly(array: np.ndarray) -> np.ndarray:
    array = np.array(array)
    array.flags.writeable = False
    return array


def _readonly_loop(backend: Backend, rule: sc.Rule, workload: Workload) -> Iterator[Step]:
    """As `functional`, with every array that goes in made unwriteable."""
    params = tree_map(_readonly, workload.tree(workload.params))
    state = rule.init(params)
    for inputs in workload.inputs:
        state = state_map(_readonly, state)
        grads = network.gradients(params, tree_map(_readonly, inputs)) if workload.is_network else workload.tree(inputs)
        params = tree_map(_readonly, params)
        params, state = rule.step(params, tree_map(_readonly, grads), state, **extras(rule, params))
        yield backend.read(params, state)


def _strict_to(array: np.ndarray) -> Any:
    import array_api_strict

    return array_api_strict.asarray(np.array(array))


def _cupy_loop(backend: Backend, rule: sc.Rule, workload: Workload) -> Iterator[Step]:
    import signcore_cupy

    seen: list[Step] = []

    def grad_fn(params: Any, step: int) -> Any:
        if params is not now[-1]:
            return gradient_elsewhere(params)
        if workload.is_network:
            return network.gradients(params, tree_map(backend.to, workload.inputs[step]))
        return tree_map(backend.to, workload.tree(workload.inputs[step]))

    def record(step: int, params: Any, state: Any) -> None:
        now.append(params)
        seen.append(backend.read(params, state))

    params = tree_map(backend.to, workload.tree(workload.params))
    now = [params]
    signcore_cupy.run(
        rule,
        params,
        grad_fn,
        len(workload.inputs),
        value_fn=lambda params, step: loss(params),
        callback=record,
        progress=False,
    )
    return iter(seen)


# -- torch -------------------------------------------------------------------------------------------------------


def _torch_to(device: str) -> Callable[[np.ndarray], Any]:
    def to(array: np.ndarray) -> Any:
        import torch

        array = np.array(array, order="C")
        if array.dtype.name == "bfloat16":
            tensor = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        else:
            tensor = torch.from_numpy(array)
        # NumPy gives empty arrays strides that no torch result has, which would cost a second compilation
        return (tensor if array.size else torch.empty(tensor.shape, dtype=tensor.dtype)).to(device)

    return to


def _torch_back(tensor: Any) -> np.ndarray:
    import torch

    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        from .workloads import numpy_dtype

        return np.array(tensor.view(torch.int16).numpy()).view(numpy_dtype("bfloat16"))
    return np.array(tensor.numpy())


def _torch_compile(function: Any) -> Any:
    """Compiled whole; the number of graphs must be one and of breaks zero.

    One more for each set of 0-d float64 inputs that are NaN: dynamo takes these for numbers and guards on that.
    """
    import torch

    def own(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    # A code object of its own: torch keeps at most eight compiled versions of one, over all rules and dtypes.
    code = own.__code__.replace(co_name=f"step_{len(_COMPILED)}")
    entry = types.FunctionType(code, own.__globals__, code.co_name, own.__defaults__, own.__closure__)
    # inductor inlines every value that is used twice into each use, up to 30 operations: without the lower
    # limit a long chain like the arcsine's takes minutes to compile. The option moves no rounding.
    inner = torch.compile(entry, fullgraph=True, dynamic=False, options={"realize_opcount_threshold": 8})
    graphs: list[int] = []
    numbers: set[tuple[bool, ...]] = set()

    def call(*args: Any, **kwargs: Any) -> Any:
        counters = torch._dynamo.utils.counters
        before = counters["stats"]["unique_graphs"]
        out = inner(*args, **kwargs)
        made, broken = counters["stats"]["unique_graphs"] - before, sum(counters["graph_break"].values())
        leaves = [leaf.value for leaf in flatten((args, kwargs)) if isinstance(leaf.value, torch.Tensor)]
        numbers.add(tuple(bool(t.isnan()) for t in leaves if t.ndim == 0 and t.dtype == torch.float64))
        if broken or made > 1 or len(graphs) + made > len(numbers):
            raise AssertionError(f"{made} graphs and {broken} breaks, after {len(graphs)} graphs; expected one graph")
        graphs.extend([before] * made)
        return out

    return call


def _torch_adapter(backend: Backend, rule: sc.Rule, workload: Workload) -> Iterator[Step]:
    import torch

    import signcore_torch

    tree = tree_map(lambda a: torch.nn.Parameter(backend.to(a)), workload.tree(workload.params))
    leaves = [leaf for leaf in flatten(tree) if leaf.value is not None]
    groups: dict[str, list[Any]] = {}
    for leaf in leaves:  # torch's groups are the containers, where the rule asks for groups
        groups.setdefault(leaf.path.rpartition("/")[0] if rule.scope == "group" else "", []).append(tuple(leaf))
    optimizer = signcore_torch.from_rule([{"params": group} for group in groups.values()], rule)
    for inputs in workload.inputs:
        if workload.is_network:
            with torch.no_grad():
                detached = tree_map(lambda p: p.detach(), tree)
                found = network.gradients(detached, tree_map(backend.to, inputs))
            grads = {leaf.path: leaf.value for leaf in flatten(found)}
        else:
            grads = {path: backend.to(g) for path, g in inputs.items()}
        if rule.needs:
            optimizer.step(closure_of(leaves, grads))
        else:
            for path, p in leaves:
                p.grad = grads[path]
            optimizer.step()
        yield backend.read(tree, _torch_state(rule, optimizer, tree))


def closure_of(leaves: Iterable[Any], grads: dict[str, Any]) -> Callable[[], Any]:
    """A step's closure for (path, parameter) pairs: given gradients where the step is, the suite's elsewhere."""
    leaves = list(leaves)
    calls: list[int] = []

    def closure() -> Any:
        for path, p in leaves:
            p.grad = p.detach() * 0.5 if calls else grads[path]
        calls.append(1)  # the first is at this step's parameters, the others elsewhere
        return loss([p.detach() for _, p in leaves])

    return closure


def _torch_state(rule: sc.Rule, optimizer: Any, tree: Any) -> Any:
    """The optimizer's per-parameter state as the rule's own."""
    import torch

    fields = {}
    for name in type(rule)._marks:
        if name not in rule.kinds:
            fields[name] = None
        elif rule.kinds[name] == "scalar" and rule.scope == "group":
            values = [optimizer.state[group["params"][0]][name] for group in optimizer.param_groups]
            fields[name] = torch.cat(values)
        elif rule.kinds[name] in WHOLE:
            fields[name] = next(iter(optimizer.state.values()))[name]
        else:
            fields[name] = tree_map(lambda p, name=name: optimizer.state[p][name], tree)
    return rule.State(**fields)


def _no_cuda_in_torch() -> str | None:
    import torch

    return None if torch.cuda.is_available() else "torch sees no CUDA device"


def device_name() -> str | None:
    """Name of the CUDA device of this machine, None without one."""
    if importlib.util.find_spec("torch") is not None and _no_cuda_in_torch() is None:
        import torch

        return str(torch.cuda.get_device_name(0))
    if importlib.util.find_spec("cupy") is not None and _no_cuda_in_cupy() is None:
        import cupy

        return str(cupy.cuda.runtime.getDeviceProperties(0)["name"].decode())
    return None


# -- JAX ---------------------------------------------------------------------------------------------------------


def _jax_to(platform: str) -> Callable[[np.ndarray], Any]:
    def to(array: np.ndarray) -> Any:
        import jax

        return jax.device_put(np.array(array), jax.devices(platform)[0])

    return to


def _jax_back(array: Any) -> np.ndarray:
    return np.array(array)


def _jit(function: Any) -> Any:
    import jax

    return jax.jit(function)


SCANNED = 4  # steps in one compiled scan: it divides the lengths of the workloads, so each rule is compiled once


def _scan(backend: Backend, rule: sc.Rule, workload: Workload) -> Iterator[Step]:
    """Steps inside of jitted `lax.scan`s, a few at a time."""
    import jax

    def body(carry: Any, inputs: Any) -> Any:
        params, state = carry
        grads = network.gradients(params, inputs) if workload.is_network else inputs
        carry = rule.step(params, grads, state, **extras(rule, params))
        return carry, carry

    params = tree_map(backend.to, workload.tree(workload.params))
    carry = params, rule.init(params)
    run = compiled(backend, (rule, workload.shapes, workload.is_network), lambda *args: jax.lax.scan(body, *args))
    for start in range(0, len(workload.inputs), SCANNED):
        some = workload.inputs[start : start + SCANNED]
        trees = [inputs if workload.is_network else workload.tree(inputs) for inputs in some]
        carry, trajectory = run(carry, tree_map(backend.to, stacked(trees)))
        params, state = backend.read(*trajectory)
        for k in range(len(some)):
            yield tree_map(lambda a, k=k: a[k], params), state_map(lambda a, k=k: a[k], state)


def stacked(trees: Sequence[Any]) -> Any:
    """Trees of NumPy arrays as one, whose leaves have an axis for them."""
    columns = zip(*([leaf.value for leaf in flatten(tree)] for tree in trees), strict=True)
    return unflatten(trees[0], [None if column[0] is None else np.stack(column) for column in columns])


def optax_update(rule: sc.Rule, transform: Any) -> Callable[..., Any]:
    """``params, state = update(params, grads, state)`` of a rule's transformation, applied by optax itself."""
    import optax

    def update(params: Any, grads: Any, state: Any, **values: Any) -> Any:
        updates, state = transform.update(grads, state, params, **extras(rule, params) | values)
        return optax.apply_updates(params, updates), state

    return update


def _optax(backend: Backend, rule: sc.Rule, workload: Workload) -> Iterator[Step]:
    """The optax transformation under jit, applied by optax itself."""
    import signcore_optax

    transform = signcore_optax.from_rule(rule)
    params = tree_map(backend.to, workload.tree(workload.params))
    step = compiled(backend, (rule, workload.shapes), optax_update(rule, transform))
    return _loop(backend, rule, workload, params, transform.init(params), step)


def _no_gpu_in_jax() -> str | None:
    import jax

    return None if jax.default_backend() == "gpu" else "JAX sees no GPU"


# -- CuPy --------------------------------------------------------------------------------------------------------


def _no_cuda_in_cupy() -> str | None:
    import cupy

    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:
        return f"CuPy finds no CUDA: {error}"
    return None if count else "CuPy sees no CUDA device"


def _cupy_to(array: np.ndarray) -> Any:
    import cupy

    return cupy.asarray(np.array(array))


def _cupy_back(array: Any) -> np.ndarray:
    import cupy

    return np.asarray(cupy.asnumpy(array))


_NO_BFLOAT16 = ("float16", "float32", "float64")
_TORCH: dict[str, Any] = {"needs": ("torch",), "back": _torch_back}
_CUDA: dict[str, Any] = _TORCH | {"to": _torch_to("cuda"), "device": _no_cuda_in_torch}
_JAX: dict[str, Any] = {"needs": ("jax",), "to": _jax_to("cpu"), "back": _jax_back, "costly": True}
_ONE: dict[str, Any] = {"quick_dtypes": ("float32",)}
_SECOND: dict[str, Any] = {"secondary": True}
_FEW: dict[str, Any] = {"usual_dtypes": ("bfloat16", "float32")}
_JITTED: dict[str, Any] = {"wrap": _jit, "traced": True, "main_variant_only": True, **_ONE, **_FEW, **_SECOND}
_JAX_CUDA: dict[str, Any] = _JAX | {"to": _jax_to("gpu"), "device": _no_gpu_in_jax}
_COMPILE: dict[str, Any] = {
    "wrap": _torch_compile,
    "traced": True,
    "costly": True,
    "main_variant_only": True,
    **_ONE,
    **_FEW,
    **_SECOND,
}

BACKENDS = (
    Backend("numpy", "numpy", needs=("ml_dtypes",)),
    Backend("numpy-readonly", "numpy", needs=("ml_dtypes",), drive=_readonly_loop, **_SECOND),
    Backend("array-api-strict", "numpy", ("array_api_strict",), ("float32", "float64"), _strict_to),
    Backend("cupy-loop", "numpy", needs=("ml_dtypes",), drive=_cupy_loop, **_SECOND),
    Backend("torch", "torch", to=_torch_to("cpu"), **_TORCH, **_SECOND),
    Backend("torch-adapter", "torch", to=_torch_to("cpu"), drive=_torch_adapter, **_TORCH),
    Backend("torch-compile", "torch-compile", to=_torch_to("cpu"), **_TORCH, **_COMPILE),
    Backend("jax", "jax", jits_network=True, **_JAX, **_ONE, **_SECOND),
    Backend("jax-jit", "jax", wrap=_jit, traced=True, **_JAX, **_ONE),
    Backend("jax-scan", "jax", drive=_scan, **(_JAX | _JITTED | {"usual_dtypes": ("float32",)})),
    Backend("optax-adapter", "jax", drive=_optax, **(_JAX | _JITTED | {"needs": ("jax", "optax")})),
    Backend("cupy", "cupy", ("cupy",), _NO_BFLOAT16, _cupy_to, _cupy_back, device=_no_cuda_in_cupy),
    Backend("torch-cuda", "torch-cuda", **_CUDA),
    Backend("torch-cuda-compile", "torch-cuda", **_CUDA, **_COMPILE),
    Backend("jax-cuda", "jax-cuda", **_JAX_CUDA),
    Backend("jax-cuda-jit", "jax-cuda", wrap=_jit, traced=True, **_JAX_CUDA),
)


_COSTLY = {backend.name for backend in BACKENDS if backend.costly}


def is_short(names: Iterable[str]) -> bool:
    """Whether none of the backends is costly: the key that sorts jobs, so that the longest start first."""
    return _COSTLY.isdisjoint(names)


def by_group(backends: list[Backend]) -> list[list[str]]:
    """Names of the backends that share a worker process."""
    groups: dict[str, list[str]] = {}
    for backend in backends:
        groups.setdefault(backend.group, []).append(backend.name)
    return list(groups.values())
