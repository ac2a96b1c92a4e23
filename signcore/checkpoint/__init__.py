"""Checkpoints that every backend writes and reads: params and state of a rule, word for word, in one safetensors file.

`save` takes arrays of any library, `load` gives them back in any other, `Saved` reads one leaf at a time. A file holds
no code, and none is run when it is loaded. Whole torch optimizers and optax states are converted by the adapters.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import numpy as np

from .. import checks, frameworks
from ..dtypes import name_of
from ..marks import WHOLE
from ..rule import Rule
from ..tree import Leaf, flatten, unflatten
from ..walk import check_fit
from . import description
from .file import Tensors, write
from .form import WAY_OUT, CheckpointError

__all__ = ["Checkpoint", "CheckpointError", "Saved", "load", "save"]


class Checkpoint(NamedTuple):
    """What a checkpoint holds, each a list if there are several groups.

    Examples
    --------
    >>> import numpy as np, signcore as sc
    >>> rule, params = sc.Lion(lr=0.1), np.ones(2)
    >>> saved = Checkpoint(rule, params, rule.init(params))
    >>> params, state = saved.rule.step(saved.params, np.ones(2), saved.state)
    """

    rule: Any
    params: Any
    state: Any


def save(
    path: str | os.PathLike[str],
    rule: Rule | Sequence[Rule],
    params: Any,
    state: Any,
    *,
    extra: dict[str, Any] | None = None,
) -> None:
    """Write params and state of a rule to a file, which is the old one or the new one whatever happens meanwhile.

    Parameters
    ----------
    path : str or path
        The file; a process that is killed while writing may leave a ``.<name>.<random>.partial`` beside it.
    rule : Rule, or list of rules
        With the hyperparameters to go on with. A list has a rule for each group of parameters, and then `params` and
        `state` are lists as well.
    params : array or tree of arrays
        Of any Array API library, on any device.
    state : the rule's State
    extra : dict, optional
        Whatever else the run needs, an epoch or a seed, as JSON holds it: `Saved.extra` gives it back.

    Raises
    ------
    ImportError
        safetensors is not installed: ``pip install 'signcore[checkpoint]'``.
    TypeError, ValueError
        What a step would raise: the state belongs to another rule or to other params. Nothing is written.

    Examples
    --------
    >>> import numpy as np, signcore as sc, tempfile
    >>> rule, params = sc.Signum(lr=0.1), {"w": np.ones(2, dtype=np.float32)}
    >>> path = tempfile.mkdtemp() + "/run.safetensors"
    >>> save(path, rule, params, rule.init(params))
    >>> load(path).rule.lr
    0.1
    """
    single = isinstance(rule, Rule)
    columns: list[Any] = [[each] if single else each for each in (rule, params, state)]
    tensors: dict[str, np.ndarray] = {}
    described = []
    for k, (one, tree, fields) in enumerate(zip(*columns, strict=True)):
        checks.is_rule("rule", one, Rule)
        check_fit(one, tree, fields)
        for name, array in _named("" if single else f"{k}/", one, tree, fields):
            if name in tensors:
                raise ValueError(f"two leaves are called {name!r}; rename one of them")
            tensors[name] = frameworks.to_numpy(array)
        described.append(
            {"rule": description.of_rule(one), "fields": list(one.kinds), "params": description.of_tree(tree)}
        )
    try:
        kept = extra is None or (isinstance(extra, dict) and json.loads(json.dumps(extra)) == extra)
        why = "" if kept else " (it would come back as something else)"
    except (TypeError, ValueError) as error:
        kept, why = False, f" ({error})"
    if not kept:
        raise TypeError(f"`extra` is {extra!r}, which JSON cannot hold{why}; pass a dict of numbers, texts, lists")
    write(path, tensors, {"single": single, "groups": described, "extra": extra or {}})


def load(path: str | os.PathLike[str], like: Any = None, *, rule: Rule | Sequence[Rule] | None = None) -> Checkpoint:
    """Read a file: the words that were saved, one leaf after the other, each compared with its checksum.

    Parameters
    ----------
    path : str or path
    like : array or tree of arrays, optional
        Params whose library, devices and containers the loaded arrays shall have; their values are not read. A list
        of them if there are several groups. None gives NumPy arrays in plain dicts, lists and tuples.
    rule : Rule or list of rules, optional
        The rule to go on with, of the saved name: where it has other numbers than the saved one, is one of your own, or
        holds a function that a file cannot.

    Returns
    -------
    Checkpoint
        ``(rule, params, state)``, lists if there are several groups.

    Raises
    ------
    CheckpointError
        The file is no checkpoint, is damaged or truncated, or has a newer format; the message says which.
    FileNotFoundError
        As `open` raises it.
    TypeError, ValueError
        `like` has other leaves, shapes or dtypes than what was saved; `rule` is another one or missing.

    Examples
    --------
    >>> import numpy as np, signcore as sc, tempfile
    >>> rule, path = sc.Lion(lr=0.1), tempfile.mkdtemp() + "/run.safetensors"
    >>> save(path, rule, np.ones(2), rule.init(np.ones(2)))
    >>> rule, params, state = load(path)
    >>> rule.step(params, np.asarray([3.0, -3.0]), state)[0].tolist()
    [0.9, 1.1]
    """
    with Saved(path) as saved:
        return saved.load(like, rule=rule)


class Saved(Tensors):
    """An open checkpoint: a mapping of tensor names to NumPy arrays, which are read and checked one at a time.

    Names are ``params/<path>`` and ``state/<field>/<path>``, with the number of the group in front if there are
    several.

    Parameters
    ----------
    path : str or path

    Raises
    ------
    CheckpointError
        See `load`. An error in one tensor is raised when that tensor is read.

    Examples
    --------
    >>> import numpy as np, signcore as sc, tempfile
    >>> rule, params = sc.Signum(lr=0.1), {"w": np.ones(2, dtype=np.float32)}
    >>> path = tempfile.mkdtemp() + "/run.safetensors"
    >>> save(path, rule, params, rule.init(params))
    >>> with Saved(path) as saved:
    ...     sorted(saved), saved["params/w"].tolist()
    (['params/w', 'state/m/w', 'state/step'], [1.0, 1.0])
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def extra(self) -> dict[str, Any]:
        """What `save` was given as `extra`."""
        found: dict[str, Any] = self.description["extra"]
        return found

    def load(self, like: Any = None, *, rule: Rule | Sequence[Rule] | None = None) -> Checkpoint:
        """Everything, as `signcore.checkpoint.load` does."""
        groups, single = self.description["groups"], self.description["single"]
        likes: Any
        given: Any
        likes, given = ([each] if single else each for each in (like, rule))
        for argument, value in (("like", likes), ("rule", given)):
            if value is not None and (not isinstance(value, (list, tuple)) or len(value) != len(groups)):
                raise ValueError(
                    f"`{argument}` has {_count(value)} and the checkpoint {len(groups)} groups; pass a list with an "
                    f"entry for each"
                )
        found = [
            self._group("" if single else f"{k}/", group, likes and likes[k], given and given[k])
            for k, group in enumerate(groups)
        ]
        return found[0] if single else Checkpoint(*map(list, zip(*found, strict=True)))

    def _group(self, prefix: str, described: Any, like: Any, given: Rule | None) -> Checkpoint:
        rule = description.to_rule(described["rule"], given)
        if list(rule.kinds) != described["fields"]:
            raise ValueError(
                f"`rule` has a state of {list(rule.kinds)}, and {described['fields']} was saved; pass the options "
                f"that it was saved with"
            )
        saved = description.leaves_of(described["params"])
        fresh = like is None
        if fresh:
            names = iter([_join(f"{prefix}params", path) if there else None for path, there in saved])
            like = description.to_tree(described["params"], (name and self[name] for name in names))
        leaves = flatten(like)
        wanted = [path for path, there in saved if there]
        here = [leaf for leaf in leaves if leaf.value is not None]  # None is no array, and a tree may lack it
        checks.same_structure("like", sorted(leaf.path for leaf in here), "checkpoint", sorted(wanted))
        for leaf in here:
            self._check(prefix, leaf)
        first = here[0].value if here else np.zeros(0, dtype=np.float32)

        def column(name: str) -> Any:
            return unflatten(
                like,
                [None if p is None else self._beside(_join(f"{prefix}{name}", path), p) for path, p in leaves],
            )

        fields = {
            field: self._beside(f"{prefix}state/{field}", first) if kind in WHOLE else column(f"state/{field}")
            for field, kind in rule.kinds.items()
        }
        params = like if fresh else column("params")
        state = rule.State(**{name: fields.get(name) for name in rule.State._fields})
        check_fit(rule, params, state)
        return Checkpoint(rule, params, state)

    def _check(self, prefix: str, leaf: Leaf) -> None:
        """A leaf of `like` and what was saved under its path, before anything is read."""
        where = checks.place("like", leaf.path)
        checks.array("like", leaf)
        kept = self._listed[_join(f"{prefix}params", leaf.path)]
        mine = [name_of(leaf.value.dtype), list(leaf.value.shape)]
        if mine != [kept["dtype"], kept["shape"]]:
            raise ValueError(
                f"{where} is {mine[0]} of shape {tuple(mine[1])}, and {kept['dtype']} of shape "
                f"{tuple(kept['shape'])} was saved; pass params of the saved shapes and dtypes: nothing is converted"
            )

    def _beside(self, name: str, like: Any) -> Any:
        if name not in self:
            raise CheckpointError(f"`path` {self.path} is damaged: it has no tensor {name!r}; {WAY_OUT}")
        return frameworks.from_numpy(self[name], like)


def _named(prefix: str, rule: Rule, params: Any, state: Any) -> list[tuple[str, Any]]:
    """Names of all arrays, in the order of the file."""
    trees = {"params": params} | {f"state/{field}": getattr(state, field) for field in rule.kinds}
    return [
        (_join(f"{prefix}{name}", path), value)
        for name, tree in trees.items()
        for path, value in flatten(tree)
        if value is not None
    ]


def _join(name: str, path: str) -> str:
    return f"{name}/{path}" if path else name


def _count(value: Any) -> str:
    return f"{len(value)} entries" if isinstance(value, (list, tuple)) else f"a {type(value).__name__}"
