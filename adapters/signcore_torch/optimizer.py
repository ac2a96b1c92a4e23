"""The base of the generated optimizers: torch's Optimizer around a rule's functional step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim.optimizer import ParamsT

from signcore.marks import marks

from . import closures, groups, steps, together
from .collecting import Collecting


class SignOptimizer(Collecting):
    """Base of the optimizers of this package; use its subclasses, or `from_rule`.

    A parameter group is one functional state of the rule: its step counter counts the steps in which any
    parameter of the group had a gradient, whatever it was for each of them. A parameter without a gradient
    is left alone and has no state; once it has one it joins with a fresh state and the group's counter. The
    parameters of a group live on one device. Numbers "of the whole tree" are a group's, and ``nonfinite="skip"`` skips
    the groups that hold a bad gradient and steps the others: pass one group where that matters.

    A rate that a scheduler makes negative or NaN is an error, also the -1e-18 of some LinearLR(end_factor=0.0).
    OneCycleLR and CyclicLR cycle ``momentum``; pass cycle_momentum=False to those of a rule that has none.

    A first step without a closure, in which the learning rate and all gradients are 0, makes the states and is not
    counted: torch.distributed.checkpoint takes it where there are no states yet.

    Notes
    -----
    ``torch.compile(optimizer.step, fullgraph=True)`` gives the same bits. A number that changes compiles once more,
    one in a tensor never; neither is checked. Long formulas take ``options={"realize_opcount_threshold": 8}``.

    On several processes, of the same gradients everywhere (DistributedDataParallel averages them), every process
    computes the same bits. Of DTensors (FSDP2, whose ranks hold shards) each rank computes its own elements, with the
    bits and the noise of one process that holds everything: the whole tree is then all shards of the group's
    parameters, over which what a rule measures is merged exactly. State with a value per element is of DTensors with
    the placements of the parameters; the rest is the same on every rank. A step waits for a small all-reduce, so that a
    gradient that is missing on some ranks is an error on all. Packed bits belong to the number of ranks that they were
    saved with. A closure must return the loss of all ranks together: DTensors' ranks compare theirs, but replicas do
    not know of each other and part. Under ZeroRedundancyOptimizer the whole tree is the rank's part of a group,
    and noise is keyed by the place in that part, so a rule that measures or draws takes other steps there than without.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "rule_class" in cls.__dict__:
            cls.kinds = {name: mark.kind for name, mark in marks(cls.rule_class.State).items()}
            cls.numbers, cls.options = groups.split(cls.rule_class)

    def __init__(self, params: ParamsT, hyperparameters: dict[str, Any]) -> None:
        self._reset()
        self._workers = together.asked_for(hyperparameters)
        defaults = {name: groups.plain(value) for name, value in hyperparameters.items()}
        with together.together(self, self._workers):
            groups.rule_of(self.rule_class, defaults)
            super().__init__(params, {**defaults, "rule": self.rule_class.name})
            together.check(self)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, whose dict may set any hyperparameter; nothing is added when anything does not fit."""
        if isinstance(param_group, dict):
            if not isinstance(param_group.get("params", ()), (torch.Tensor, set, list, tuple)):
                param_group["params"] = list(param_group["params"])  # an iterator gives its items once
            params = param_group.get("params", ())
            before = sum(len(group["params"]) for group in self.param_groups)
            groups.check_params([params] if isinstance(params, torch.Tensor) else params, before)
            values = {name: groups.plain(value) for name, value in param_group.items()}
            groups.rule_of(self.rule_class, {**self.defaults, **values})
            param_group.update(values)
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Perform one step.

        Parameters
        ----------
        closure : callable, optional
            Evaluates the model anew, calls ``backward`` and returns the loss. A rule that evaluates the loss or the
            gradients at other parameters calls it more than once; the gradients of all groups are set aside meanwhile.
            Parameters of other optimizers, if the closure's ``backward`` reaches them, accumulate in each call.

        Returns
        -------
        The closure's loss, or None

        Raises
        ------
        TypeError, ValueError, RuntimeError
            A hyperparameter of a group is out of range, or a gradient is sparse, or has another shape, dtype
            or device than its parameter. Nothing is changed in any group.
        FloatingPointError
            A gradient holds inf or NaN and a group has ``nonfinite="raise"``.
        """
        if torch.compiler.is_compiling():
            loss = self._loss(closure)
            self._step(closure, loss)
            return loss
        self._joining, self._recast = [], []
        try:
            with together.heard(self._workers):
                loss = self._loss(closure)
                if closure is None and self._only_makes_states():
                    self._jobs()
                    return None
                self._step(closure, loss)
        except BaseException:
            for p in self._joining:
                del self.state[p]
            for own, name, tensor in self._recast:
                own[name], self._rules = tensor, []
            raise
        finally:
            self._joining = []
        return loss

    def _loss(self, closure: Any) -> Any:
        together.refuse_copies(self._parted)
        with torch.enable_grad():
            return None if closure is None else closure()

    def _step(self, closure: Any, loss: Any) -> None:
        """All groups are computed before anything is written, so an error changes nothing."""
        jobs = self._jobs()
        if self.defaults["compile"] and not torch.compiler.is_compiling():
            self._compiled.step(self._rules, self.param_groups, self.numbers, jobs, loss)
            return
        results = []
        for i, job in enumerate(jobs):
            inputs = closures.inputs(self._rules[i], self.param_groups, i, closure, loss)
            results.append(
                steps.compute(self._rules[i], self.param_groups, i, self.numbers, *job, inputs, self._workers)
            )
        for i, ((params, _, columns), (new, after)) in enumerate(zip(jobs, results, strict=True)):
            steps.write(self._rules[i], params, columns, new, after)

    def _jobs(self) -> list[tuple[list[Any], list[Any], dict[str, list[Any]]]]:
        """Parameters, gradients and columns of the state of every group."""
        jobs: list[tuple[list[Any], list[Any], dict[str, list[Any]]]] = []
        for i, group in enumerate(self.param_groups):
            params: list[Any] = []
            grads: list[Any] = []
            columns: dict[str, list[Any]] = {name: [] for name in self.kinds}
            self._init_group(group, i, params, grads, *columns.values())
            jobs.append((params, grads, columns))
        return jobs
