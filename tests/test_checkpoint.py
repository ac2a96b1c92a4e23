"""Portable checkpoints: the words that were saved or an error, for every rule, library and kind of damage."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import array_api_strict
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
import torch

import signcore as sc
from signcore import frameworks
from signcore.checkpoint import CheckpointError, Saved, load, save
from signcore.tree import flatten, unflatten
from signcore_conformance import golden

RANDOM = np.random.default_rng(7)
DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
PARAMS = {
    "w": RANDOM.standard_normal((3, 5)).astype(np.float32),
    "layers": [{"b": RANDOM.standard_normal(7).astype(np.float32)}, None],
    "pair": (np.float32(0.5) * np.ones(()).astype(np.float32), np.zeros((0, 2), np.float32)),
}
VARIANTS = {name: golden.variants(name)[0] for name in sc.rules()}
WITH_OPTIONS = [(name, k) for name in sc.rules() for k in range(len(golden.variants(name)))]


def mapped(function: Any, tree: Any) -> Any:
    return unflatten(tree, [None if value is None else function(value) for _, value in flatten(tree)])


def stepped(rule: sc.Rule, params: Any, state: Any, first: int, last: int) -> tuple[Any, Any]:
    """Steps with gradients that depend on nothing but the number of the step."""
    for k in range(first, last):
        random = np.random.default_rng(k)
        grads = mapped(lambda p, random=random: like(random.standard_normal(p.shape), p), params)
        f = {"value": 4.0 + 1.0 / (k + 1), "value_fn": lambda _: 3.0, "grad_fn": lambda _, grads=grads: grads}
        params, state = rule.step(params, grads, state, **{name: f[name] for name in rule.needs})
    return params, state


def like(values: Any, p: Any) -> Any:
    return frameworks.from_numpy(np.asarray(values).astype(frameworks.to_numpy(p).dtype), p)


LIBRARIES = {
    "numpy": np.array,
    "torch": lambda a: frameworks.from_numpy(np.array(a), torch.zeros(0)),
    "jax": jnp.asarray,
    "array-api-strict": lambda a: array_api_strict.asarray(np.array(a)),
}


@pytest.mark.parametrize(("name", "variant"), WITH_OPTIONS)
def test_every_rule_goes_on_as_if_it_had_never_stopped(name: str, variant: int, tmp_path: Path, same: Any) -> None:
    rule = golden.variants(name)[variant]
    whole = stepped(rule, PARAMS, rule.init(PARAMS), 0, 6)
    params, state = stepped(rule, PARAMS, rule.init(PARAMS), 0, 3)
    save(tmp_path / "a", rule, params, state)
    found = load(tmp_path / "a")
    same((found.params, found.state), (params, state))
    assert repr(found.rule) == repr(rule)
    same(stepped(found.rule, found.params, found.state, 3, 6), whole)


STRICT = [np.float32, np.float64]  # all that array-api-strict has


@pytest.mark.parametrize(
    ("library", "dtype"),
    [(library, dtype) for library in LIBRARIES for dtype in (STRICT if library == "array-api-strict" else DTYPES)],
)
@pytest.mark.parametrize("name", ["lion", "alias_compact", "ssdm", "hybrid"])
def test_words_cross_libraries(name: str, dtype: Any, library: str, tmp_path: Path, same: Any) -> None:
    rule, params = VARIANTS[name], mapped(lambda p: p.astype(dtype), PARAMS)
    state = stepped(rule, params, rule.init(params), 0, 2)[1]
    save(tmp_path / "a", rule, params, state)
    with jax.enable_x64(dtype is np.float64):
        there = load(tmp_path / "a", mapped(LIBRARIES[library], params))
        same((there.params, there.state), (params, state))
        save(tmp_path / "b", *there)
        homes = {type(value) for _, value in flatten((there.params, there.state)) if value is not None}
        assert homes == {type(LIBRARIES[library](np.ones(1, np.float32)))}
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_jax_gets_its_shardings_and_what_it_lacks_is_an_error(tmp_path: Path) -> None:
    rule, params = sc.Lion(lr=0.1), {"w": np.ones(4)}
    save(tmp_path / "a", rule, params, rule.init(params))
    with jax.enable_x64(True):
        at = jax.device_put(jnp.ones(4, jnp.float64), jax.devices()[0])
        assert load(tmp_path / "a", {"w": at}).state.m["w"].sharding == at.sharding
    with pytest.raises(ValueError, match=r"`like` at 'w' is float32 of shape \(4,\), and float64 of shape \(4,\) was"):
        load(tmp_path / "a", {"w": jnp.ones(4)})


def test_a_file_is_safetensors_and_can_be_read_leaf_by_leaf(tmp_path: Path) -> None:
    rule = sc.Signum(lr=0.1)
    state = rule.init(PARAMS)
    save(tmp_path / "a", rule, PARAMS, state)
    with Saved(tmp_path / "a") as saved:
        assert sorted(saved) == sorted(safetensors.numpy.load_file(tmp_path / "a"))
        assert {"params/w", "params/layers/0/b", "params/pair/1", "state/m/w", "state/step"} <= set(saved)
        assert len(saved) == 9
        assert saved["state/step"].shape == ()
        assert (saved["params/w"] == PARAMS["w"]).all()
        with pytest.raises(KeyError):
            saved["params/v"]


def test_a_bare_array_and_an_empty_tree(tmp_path: Path, same: Any) -> None:
    for params in (np.ones(3, np.float32), {}, [None]):
        rule = sc.Lion(lr=0.1)
        state = rule.init(params)
        save(tmp_path / "a", rule, params, state)
        same(tuple(load(tmp_path / "a")[1:]), (params, state))


class Pair(NamedTuple):
    left: Any
    right: Any


def test_empty_leaves_have_the_strides_of_torchs_own(tmp_path: Path) -> None:
    """A step that was compiled before need not be compiled again for what was loaded; NumPy's strides differ."""
    like = [torch.empty((0,)), torch.empty((0, 3), dtype=torch.bfloat16)]
    save(tmp_path / "run", sc.Signum(lr=0.1), like, sc.Signum(lr=0.1).init(like))
    _, params, state = load(tmp_path / "run", like)
    assert [p.stride() for p in params] == [p.stride() for p in like]
    assert [m.stride() for m in state.m] == [p.stride() for p in like]


def test_containers(tmp_path: Path, same: Any) -> None:
    rule = sc.Lion(lr=0.1)
    params: Any = {3: np.ones(2), "a": Pair(np.ones(1), None)}
    save(tmp_path / "a", rule, params, rule.init(params))
    with pytest.raises(ValueError, match="`like` is missing, and the saved params hold a NamedTuple Pair"):
        load(tmp_path / "a")
    found = load(tmp_path / "a", params)
    assert isinstance(found.params["a"], Pair)
    same(found.params, params)
    params = OrderedDict(b=np.ones(2), a=np.zeros(1))
    save(tmp_path / "a", rule, params, rule.init(params))
    assert type(load(tmp_path / "a").params) is dict
    assert list(load(tmp_path / "a", params).params) == ["b", "a"]
    params = {3: [np.ones(2)], "4": (np.ones(1),)}
    save(tmp_path / "a", rule, params, rule.init(params))
    assert str(load(tmp_path / "a").params) == str(params)
    params = {("a", 1): np.ones(2)}
    save(tmp_path / "a", rule, params, rule.init(params))
    with pytest.raises(ValueError, match="hold a dict of other keys"):
        load(tmp_path / "a")
    params = {"a/b": np.ones(2), "a": {"b": np.ones(2)}}
    state = rule.init({"w": np.ones(2)})._replace(m=params)
    with pytest.raises(ValueError, match=r"two leaves are called 'params/a/b'; rename one of them"):
        save(tmp_path / "a", rule, params, state)


# -- hyperparameters ---------------------------------------------------------------------------------------


SCHEDULES = [
    sc.schedules.constant(0.1),
    sc.schedules.cosine(0.1, total_steps=10),
    sc.schedules.linear_warmup(sc.schedules.inverse_sqrt(0.1), 3),
    sc.schedules.step(0.1, 5, 0.5),
]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_are_saved(schedule: Any, tmp_path: Path) -> None:
    rule = sc.Lion(lr=schedule)
    save(tmp_path / "a", rule, PARAMS, rule.init(PARAMS))
    assert load(tmp_path / "a").rule.lr == schedule


@pytest.mark.parametrize("lr", [0.1, 1, np.float32(0.1), np.asarray(0.1), jnp.float32(0.1), torch.tensor(0.1)])
def test_numbers_of_all_kinds_are_saved_exactly(lr: Any, tmp_path: Path) -> None:
    rule = sc.Lion(lr=lr)
    save(tmp_path / "a", rule, PARAMS, rule.init(PARAMS))
    assert load(tmp_path / "a").rule.lr == (float(lr) if hasattr(lr, "dtype") else lr)


def test_what_a_file_cannot_hold_is_asked_for(tmp_path: Path) -> None:
    rule = sc.Lion(lr=lambda step: 0.1)
    save(tmp_path / "a", rule, PARAMS, rule.init(PARAMS))
    with pytest.raises(ValueError, match=r"`rule` is missing: lr=<function .*> could not be saved; pass the rule"):
        load(tmp_path / "a")
    assert load(tmp_path / "a", rule=rule).rule is rule
    with pytest.raises(ValueError, match="`rule` is 'signum', and the checkpoint is of 'lion'"):
        load(tmp_path / "a", rule=sc.Signum(lr=0.1))


def test_a_wrapped_rule_is_passed(tmp_path: Path) -> None:
    rule = sc.cautious(sc.Lion)(lr=0.1)
    save(tmp_path / "a", rule, PARAMS, rule.init(PARAMS))
    with pytest.raises(ValueError, match=r"`rule` is missing: the checkpoint is of '.*', which is no rule of signcore"):
        load(tmp_path / "a")
    assert load(tmp_path / "a", rule=rule).rule is rule


def test_other_options_of_a_rule_need_another_state(tmp_path: Path) -> None:
    rule = sc.Lion(lr=0.1)
    save(tmp_path / "a", rule, PARAMS, rule.init(PARAMS))
    with pytest.raises(ValueError, match=r"`rule` has a state of \['step', 'm', 'stream'\], and \['step', 'm'\]"):
        load(tmp_path / "a", rule=rule.replace(sign_zero="random"))


def test_several_groups(tmp_path: Path, same: Any) -> None:
    rules = [sc.Lion(lr=0.1), sc.Signum(lr=0.2)]
    trees = [{"w": np.ones(2)}, [np.zeros(3)]]
    states = [rule.init(tree) for rule, tree in zip(rules, trees, strict=True)]
    save(tmp_path / "a", rules, trees, states)
    found = load(tmp_path / "a")
    same((found.params, found.state), (trees, states))
    assert [rule.lr for rule in found.rule] == [0.1, 0.2]
    same(load(tmp_path / "a", trees).params, trees)
    with pytest.raises(ValueError, match="`like` has 3 entries and the checkpoint 2 groups"):
        load(tmp_path / "a", [*trees, {}])
    with pytest.raises(ValueError, match="`rule` has a Lion and the checkpoint 2 groups"):
        load(tmp_path / "a", rule=rules[0])


# -- what does not fit -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "kind", "message"),
    [
        (
            {"w": np.ones((5, 3), np.float32)},
            ValueError,
            r"`like` at 'w' is float32 of shape \(5, 3\), and float32 of shape",
        ),
        ({"w": np.ones((3, 5))}, ValueError, r"is float64 of shape \(3, 5\), and float32 of shape \(3, 5\) was saved"),
        ({"w": None}, ValueError, r"'w' is in `checkpoint` and not in `like`"),
        ({"v": np.ones((3, 5), np.float32)}, ValueError, r"'w' is in `checkpoint` and not in `like`"),
        ({"w": 3.0}, TypeError, r"`like` at 'w' is a float, not an array"),
    ],
)
def test_a_tree_that_is_not_like_the_saved(other: Any, kind: type, message: str, tmp_path: Path) -> None:
    rule, params = sc.Lion(lr=0.1), {"w": PARAMS["w"]}
    save(tmp_path / "a", rule, params, rule.init(params))
    with pytest.raises(kind, match=message):
        load(tmp_path / "a", other)


def test_nothing_is_written_of_what_is_no_state_of_the_params(tmp_path: Path) -> None:
    rule = sc.Lion(lr=0.1)
    state = rule.init(PARAMS)
    for arguments, kind in [
        ((rule, {"w": np.ones(2)}, state), ValueError),
        ((sc.Tiger(lr=0.1), PARAMS, state), TypeError),
        (("lion", PARAMS, state), TypeError),
        (([rule], [PARAMS], [state, state]), ValueError),
    ]:
        with pytest.raises(kind):
            save(tmp_path / "a", *arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_and_a_disk_that_is_full_leave_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = sc.Lion(lr=0.1)
    with pytest.raises(OSError, match="No such file"):
        save(tmp_path / "none" / "a", rule, PARAMS, rule.init(PARAMS))
    save(tmp_path / "a", rule, PARAMS, rule.init(PARAMS))
    before = (tmp_path / "a").read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        save(tmp_path / "a", rule.replace(lr=0.5), PARAMS, rule.init(PARAMS))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == before


# -- damage ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small() -> bytes:
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"signcore-test-{os.getpid()}"
    rule, params = sc.Lion(lr=0.1), {"w": np.ones(2, np.float32)}
    save(path, rule, params, rule.init(params))
    content = path.read_bytes()
    path.unlink()
    return content


def test_no_flipped_bit_goes_unseen(small: bytes, tmp_path: Path) -> None:
    for at in range(len(small)):
        for bit in range(8):
            (tmp_path / "a").write_bytes(small[:at] + bytes([small[at] ^ 1 << bit]) + small[at + 1 :])
            with pytest.raises(CheckpointError, match=r"damaged|truncated"):
                load(tmp_path / "a")


def test_every_truncation_is_called_one(small: bytes, tmp_path: Path) -> None:
    for size in range(len(small)):
        (tmp_path / "a").write_bytes(small[:size])
        with pytest.raises(CheckpointError, match=r"truncated.*; nothing was loaded"):
            load(tmp_path / "a")
    (tmp_path / "a").write_bytes(small + b"more")
    with pytest.raises(CheckpointError, match="is damaged"):
        load(tmp_path / "a")


def test_a_foreign_file_and_a_newer_format_are_called_so(small: bytes, tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "a"
    for content in (b"hello, this is some text", b"PK\x03\x04" + bytes(100), bytes(64)):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="is no checkpoint"):
            load(path)
    torch.save({"w": torch.ones(2)}, path)
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        load(path)
    safetensors.numpy.save_file({"w": np.ones(2)}, path)
    with pytest.raises(CheckpointError, match=r"a safetensors file that signcore\.checkpoint\.save did not write"):
        load(path)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none")
    rule = sc.Lion(lr=0.1)
    monkeypatch.setattr("signcore.checkpoint.file.FORMAT", 2)
    save(path, rule, PARAMS, rule.init(PARAMS))
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="has format 2, this signcore reads up to 1; update signcore"):
        load(path)


def test_without_safetensors_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    rule = sc.Lion(lr=0.1)
    with pytest.raises(ImportError, match=r"pip install 'signcore\[checkpoint\]'"):
        save(tmp_path / "a", rule, PARAMS, rule.init(PARAMS))


# -- kill -9 -----------------------------------------------------------------------------------------------


SCRIPT = Path(__file__).parent / "killed.py"


def test_a_process_killed_at_fifty_moments_leaves_a_file_to_go_on_from(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path), "50"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("50 kills")


# -- files whose checksum fits ---------------------------------------------------------------------------------


def described(path: Path, change: Any) -> None:
    """Write a file's description again with something changed, and the checksum with it."""
    with safetensors.safe_open(path, framework="np") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
        text = file.metadata()["signcore"].partition("\n")[2]
    made = change(json.loads(text))
    text = made if isinstance(made, str) else json.dumps(made)
    digest = hashlib.sha256(f"1\n{text}".encode()).hexdigest()
    safetensors.numpy.save_file(tensors, path, {"signcore": f"1 {digest}\n{text}"})


def without(*keys: Any) -> Any:
    """A change that takes something out."""

    def change(found: Any) -> Any:
        node = found
        for key in keys[:-1]:
            node = node[key]
        del node[keys[-1]]
        return found

    return change


def with_params(params: Any) -> Any:
    def change(found: Any) -> Any:
        found["groups"][0]["params"] = params
        return found

    return change


DEEP: Any = "leaf"
for _ in range(300):
    DEEP = {"kind": "list", "children": [["0", DEEP]]}


@pytest.mark.parametrize(
    "change",
    [
        without("tensors"),
        without("groups"),
        without("single"),
        without("groups", 0, "fields"),
        without("groups", 0, "rule", "name"),
        with_params(3),
        with_params({"kind": "dict", "children": [["absent", "leaf"]]}),
        with_params(DEEP),
        lambda found: [],
        lambda found: {**found, "groups": None},
        lambda found: "[" * 200_000,
        lambda found: "{",
        lambda found: "null",
    ],
)
def test_a_description_of_another_form_is_called_damaged(change: Any, tmp_path: Path) -> None:
    rule, params = sc.Lion(lr=0.1), {"w": np.ones(3, np.float32)}
    save(tmp_path / "a", rule, params, rule.init(params))
    described(tmp_path / "a", change)
    with pytest.raises(CheckpointError, match="damaged"):
        load(tmp_path / "a")


def test_a_hyperparameter_that_is_missing_is_not_made_up(tmp_path: Path) -> None:
    rule, params = sc.Lion(lr=0.1), {"w": np.ones(3, np.float32)}
    save(tmp_path / "a", rule, params, rule.init(params))
    described(tmp_path / "a", without("groups", 0, "rule", "hyperparameters", "lr"))
    with pytest.raises(ValueError, match=r"lacks \['lr'\]"):
        load(tmp_path / "a")
    assert load(tmp_path / "a", rule=rule).rule is rule


def test_the_number_of_a_newer_format_is_said_whatever_its_checksum(tmp_path: Path) -> None:
    safetensors.numpy.save_file({"x": np.ones(1)}, tmp_path / "a", {"signcore": "2 abc\n{}"})
    with pytest.raises(CheckpointError, match="has format 2, this signcore reads up to 1"):
        load(tmp_path / "a")


def test_what_is_no_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        load(tmp_path)
    with pytest.raises(CheckpointError, match="is no file that can be read again"):
        load(os.devnull)


def test_a_tensor_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rule, params = sc.Lion(lr=0.1), {"w": np.ones(3, np.float32)}
    save(tmp_path / "a", rule, params, rule.init(params))
    read: list[str] = []
    whole = Saved.__getitem__
    monkeypatch.setattr(Saved, "__getitem__", lambda self, name: (read.append(name), whole(self, name))[1])
    load(tmp_path / "a", params)
    assert sorted(read) == ["params/w", "state/m/w", "state/step"]


def test_a_link_is_written_through_and_a_closed_file_says_so(tmp_path: Path) -> None:
    rule, params = sc.Lion(lr=0.1), {"w": np.ones(3, np.float32)}
    save(tmp_path / "a", rule, params, rule.init(params))
    (tmp_path / "latest").symlink_to(tmp_path / "a")
    later = {"w": np.full(3, 2, np.float32)}
    save(tmp_path / "latest", rule, later, rule.init(later))
    assert (tmp_path / "latest").is_symlink()
    assert load(tmp_path / "a").params["w"].tolist() == [2.0, 2.0, 2.0]
    with Saved(tmp_path / "a") as saved:
        pass
    with pytest.raises(ValueError, match="is closed"):
        saved["params/w"]


@pytest.mark.parametrize("extra", [{1: 2}, {"t": (1, 2)}, [1], {"x": np.nan}])
def test_an_extra_that_would_come_back_as_something_else_is_refused(extra: Any, tmp_path: Path) -> None:
    rule, params = sc.Lion(lr=0.1), np.ones(3, np.float32)
    with pytest.raises(TypeError, match="`extra`"):
        save(tmp_path / "a", rule, params, rule.init(params), extra=extra)
    assert not (tmp_path / "a").exists()
