"""A file of tensors and a description: written whole or not at all, and refused when a bit of it has changed.

The container is safetensors', which any tool of the field reads. Its metadata have one entry, "signcore": a line with
the number of the format and the SHA-256 of the rest, then the description as JSON, with the SHA-256 of every tensor.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from . import form
from .form import WAY_OUT, CheckpointError

FORMAT = 1
_KEY = "signcore"  # one, because safetensors writes several in no fixed order
_LARGEST_HEADER = 100_000_000  # safetensors' own limit, in bytes


def library() -> Any:
    """safetensors, imported when a file is first written or read."""
    try:
        import safetensors.numpy
    except ImportError:
        raise ImportError("checkpoints need safetensors: pip install 'signcore[checkpoint]'") from None
    return safetensors


def write(path: str | os.PathLike[str], tensors: Mapping[str, np.ndarray], description: dict[str, Any]) -> None:
    """Write aside, flush to the disk, rename: whatever happens, `path` is the old file or the new one."""
    path = Path(os.path.realpath(path))  # through a link, as torch.save writes
    digests = {name: {"dtype": a.dtype.name, "shape": list(a.shape), "sha256": _sum(a)} for name, a in tensors.items()}
    text = json.dumps({**description, "tensors": digests})
    metadata = {_KEY: f"{FORMAT} {_sum_of_text(str(FORMAT), text)}\n{text}"}
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        open(aside, "xb").close()  # so that a folder which is missing or closed is Python's own error
        try:
            library().numpy.save_file(dict(tensors), aside, metadata)
        except library().SafetensorError as error:
            raise OSError(f"{path} was not written: {error}") from None
        with open(aside, "rb") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    _flush_folder(path.parent)


def _flush_folder(folder: Path) -> None:
    """The renaming itself reaches the disk with its folder; Windows has no such call."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class Tensors(Mapping[str, np.ndarray]):
    """The tensors of an open file by name, each read and compared with its checksum when it is asked for."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path, self.closed = Path(path), False
        with open(self.path, "rb") as file:  # one that is not there, or may not be read, is Python's own error
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise CheckpointError(f"`path` {self.path} is no file that can be read again; {WAY_OUT}")
        try:
            self._file = library().safe_open(self.path, framework="np").__enter__()
        except library().SafetensorError as error:
            raise CheckpointError(f"`path` {_diagnosis(self.path)} ({error}); {WAY_OUT}") from None
        try:
            self.description = self._described(self._file.metadata() or {})
        except BaseException:
            self.close()
            raise
        self._listed: dict[str, Any] = self.description["tensors"]

    def close(self) -> None:
        """Let go of the file."""
        self.closed = True
        self._file.__exit__(None, None, None)

    def _described(self, metadata: Mapping[str, str]) -> dict[str, Any]:
        line, _, text = metadata.get(_KEY, "").partition("\n")
        number, _, digest = line.partition(" ")
        if not (number.isdecimal() and text):
            raise CheckpointError(
                f"`path` {self.path} is a safetensors file that signcore.checkpoint.save did not write, or its header "
                f"is damaged; {WAY_OUT}"
            )
        fits = _sum_of_text(number, text) == digest
        if len(number) < 10 and int(number) > FORMAT:
            doubt = "" if fits else " (or its header is damaged)"
            raise CheckpointError(
                f"`path` {self.path} has format {number}, this signcore reads up to {FORMAT}{doubt}; update signcore"
            )
        if not fits or int(number) != FORMAT:
            raise CheckpointError(
                f"`path` {self.path} is damaged: its description does not fit its checksum; {WAY_OUT}"
            )
        found = form.read(self.path, text)
        names = set(self._file.keys())
        if names != set(found["tensors"]):
            other = sorted(names ^ set(found["tensors"]))[0]
            raise CheckpointError(
                f"`path` {self.path} is damaged: tensor {other!r} is not both stored and described; {WAY_OUT}"
            )
        return found

    def __getitem__(self, name: str) -> np.ndarray:
        wanted = self._listed[name]
        if self.closed:
            raise ValueError(f"`path` {self.path} is closed; read its tensors inside of the `with` statement")
        try:
            found = self._file.get_tensor(name)
        except Exception as error:  # whatever a changed header makes of it
            raise CheckpointError(f"`path` {self.path} is damaged: tensor {name!r}: {error}; {WAY_OUT}") from None
        if {"dtype": found.dtype.name, "shape": list(found.shape), "sha256": _sum(found)} != wanted:
            raise CheckpointError(
                f"`path` {self.path} is damaged: tensor {name!r} does not fit its checksum; {WAY_OUT}"
            )
        return np.asarray(found)

    def __contains__(self, name: object) -> bool:
        return name in self._listed  # Mapping's own would read the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._listed)

    def __len__(self) -> int:
        return len(self._listed)


def _sum(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data).hexdigest()


def _sum_of_text(number: str, text: str) -> str:
    return hashlib.sha256(f"{number}\n{text}".encode()).hexdigest()


def _diagnosis(path: Path) -> str:
    """What ails a file that safetensors cannot open: it begins with the length of its header, then the header."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        length, begin = int.from_bytes(file.read(8), "little"), file.read(1)
        file.seek(8)
        header = file.read(min(length, _LARGEST_HEADER))
    if size == 0:
        return f"{path} is empty, so truncated"
    if size >= 8 and (length > _LARGEST_HEADER or (begin and begin != b"{")):
        return f"{path} is no checkpoint: it is no safetensors file, or its first bytes are damaged"
    if size < 8 + length:
        return f"{path} is truncated: {size} bytes, of which a header should take {8 + length}"
    try:
        ends = [entry["data_offsets"][1] for name, entry in json.loads(header).items() if name != "__metadata__"]
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        return f"{path} is damaged: its header cannot be read"
    whole = 8 + length + max(ends, default=0)
    if size < whole:
        return f"{path} is truncated: {size} bytes of {whole}"
    return f"{path} is damaged: its header does not fit its {size} bytes"
