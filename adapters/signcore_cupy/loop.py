"""The loop: gradients in, steps out, nothing read back from the device in between."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from signcore import Rule

from . import forms, saving
from .progress import bar
from .saving import Path
from .start import END, Grads, check, gradients_of, inputs, steps_done

Hyper = Mapping[str, Any] | Callable[[int], Mapping[str, Any]]


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during `run`, with what was reached until then.

    Attributes
    ----------
    params, state
        After the last complete step: ``run(rule, e.params, grad_fn, more, state=e.state)`` goes on from there.
    step : int
        Steps done, those before this run included.
    """

    def __init__(self, step: int, params: Any, state: Any) -> None:
        super().__init__(f"stopped after step {step}; this exception has `params` and `state` to go on with")
        self.step, self.params, self.state = step, params, state


def run(
    rule: Rule,
    params: Any,
    grad_fn: Grads,
    steps: int,
    *,
    state: Any = None,
    start: int | None = None,
    hyper: Hyper | None = None,
    value_fn: Callable[[Any, int], Any] | None = None,
    callback: Callable[[int, Any, Any], object] | None = None,
    every: int = 1,
    progress: bool | None = None,
    checkpoint: Path | None = None,
    save_every: int | None = None,
    foreach: bool | None = None,
) -> tuple[Any, Any]:
    """`steps` steps of a rule.

    The loop runs on the device and stream that are current when it is called, and never waits for them: on a
    GPU it returns when the last step is queued. Only what the caller's functions read is synchronised, and
    ``nonfinite="raise"``, which must look at each gradient.

    Parameters
    ----------
    rule : signcore.Rule
    params : array or tree of arrays
        Not written to.
    grad_fn : function of (params, step), or iterable of gradients
        `step` is the number of steps done before, an int. An iterable that ends early ends the run.
    steps : int
        How many more steps to do, at least 0.
    state : NamedTuple, optional
        Resumes: what an earlier run returned or a checkpoint holds. Default: ``rule.init(params)``.
    start : int, optional
        Steps done before. Default: the counter of `state`, read once, which waits for the device once; it
        does not count steps that ``nonfinite="skip"`` skipped.
    hyper : dict, or function of the step that returns one, optional
        Numeric hyperparameters to override, as in `signcore.Rule.step`. A schedule can be the rule's own ``lr``.
    value_fn : function of (params, step), optional
        The loss, for rules that need it. A rule that needs gradients at other parameters calls `grad_fn` for them,
        with the step of the sample.
    callback : function of (steps done, params, state), optional
        Called whenever the number of steps done is a multiple of `every`.
    every : int, default 1
    progress : bool, optional
        A bar on stderr. Default: where stderr is a terminal. It shows steps queued, and needs `rich`.
    checkpoint : str or path, optional
        A file that is written after every `save_every` steps, after the last one and on Ctrl-C
        (`signcore.checkpoint.save`, which waits for the device). If it exists when the run begins, the run goes on
        from it, on the devices of `params`, and does what is left of `steps`; gradients from an iterable must begin
        there.
    save_every : int, optional
        At least 1; together with `checkpoint`.
    foreach : bool, optional
        Keep leaves of one dtype in one vector, so that a step launches as many kernels for a thousand leaves as for
        one. No word changes; `params` and `state` are views of the vectors. Rules with a scalar of each leaf or packed
        bits go leaf by leaf; so do those with a flag of each leaf after `start`, which leaves flags unread. Default:
        on a device True, on NumPy where leaves have no more than 32768 elements on average.

    Returns
    -------
    params, state

    Raises
    ------
    Interrupted
        On Ctrl-C; a KeyboardInterrupt that has `params`, `state` and `step` as the last complete step left
        them. A step under way is dropped: rules are pure, so nothing is half done.
    TypeError, ValueError
        An argument of a wrong kind, and what ``rule.step`` raises.

    Examples
    --------
    >>> import numpy as np, signcore as sc
    >>> rule = sc.rule(sc.rules()[0], lr=1e-3)
    >>> params, state = run(rule, np.ones(2), lambda params, step: params, steps=3)
    >>> state.step
    array(3, dtype=int32)
    """
    check(rule, grad_fn, steps, every)
    saving.check(checkpoint, save_every)
    done, params, state = saving.resumed(checkpoint, rule, params, state)
    first = steps_done(state, start) if done is None else done
    last = max(first, (first if done is None else start or 0) + steps)
    now = first, forms.begin(rule, params, state, foreach, may_read=start is None or done is not None)
    saved = first
    gradients = gradients_of(grad_fn)
    overrides = hyper if callable(hyper) else lambda step: hyper
    del params, state  # the first ones may be freed as soon as there are newer ones
    with bar(last - first, progress) as advance:
        try:
            while now[0] < last:
                grads = gradients(now[1].params, now[0])
                if grads is END:
                    break
                # One assignment: an interrupt finds either the old two or the new two.
                extra = inputs(rule, now[1], now[0], grad_fn, value_fn)
                now = now[0] + 1, now[1].step(grads, hyper=overrides(now[0]), **extra)
                del grads
                advance(now[0] - first)
                if callback is not None and now[0] % every == 0:
                    callback(now[0], now[1].params, now[1].state)
                if save_every is not None and now[0] % save_every == 0:
                    saved = saving.write(checkpoint, rule, *now)
            if now[0] > saved:
                saved = saving.write(checkpoint, rule, *now)
        except KeyboardInterrupt as stop:
            if now[0] > saved:
                saving.write(checkpoint, rule, *now)
            raise Interrupted(now[0], now[1].params, now[1].state) from stop
    return now[1].params, now[1].state
