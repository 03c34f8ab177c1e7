"""Captures: the `.kvc` file of spec/kvc-1.md, from which `kvbook train` makes books."""
from __future__ import annotations

import json
import mmap
import os
import struct
import tempfile
from typing import Any, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ._library import Error, Status

_DTYPES = {"F16": np.float16, "F32": np.float32, "U32": np.uint32, "I32": np.int32, "I64": np.int64}
_LAYER_TENSORS = ("keys", "values", "weight_k", "weight_v", "moment_relative", "moment_post", "sensitivity_k",
                  "sensitivity_v", "gradient_k", "gradient_v", "queries")
_HALF_TENSORS = ("keys", "values", "gradient_k", "gradient_v", "queries")
_HALF_MAX = 65504.0


def _bad(path: str, where: str, message: str) -> Error:
    return Error(Status.FORMAT, f"{path}: {where}", message)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice")
    return found


class Capture:
    """A capture open for reading. The arrays are read-only views of the mapped file.

    What is checked: the header, that tensors lie inside the file in the form they claim, and the version. `kvbook
    verify` checks the rest.

    Attributes
    ----------
    geometry : list of dict
        One object a layer: `kvc.geometry`.
    meta : dict
        `kvc.meta`.
    tensors : dict of str to ndarray
        Such as `layers.0.keys`, float16 [G, n, D].

    Raises
    ------
    Error
        FORMAT if the file is not a capture of version 1. An OSError if it cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str]):
        name = os.fspath(path)
        with open(name, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < 8:
                raise _bad(name, "bytes 0 to 7", f"the file has {size} bytes, expected the length of a header")
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        (length,) = struct.unpack_from("<Q", data)
        if length > min(size - 8, 100_000_000):
            raise _bad(name, "bytes 0 to 7", f"a header of {length} bytes in a file of {size}; is it safetensors?")
        try:
            header = json.loads(data[8:8 + length].decode("utf-8"), object_pairs_hook=_unique)
            words = header.pop("__metadata__")
            version = words["kvc.version"]
            self.geometry: list[dict[str, Any]] = json.loads(words["kvc.geometry"], object_pairs_hook=_unique)
            self.meta: dict[str, Any] = json.loads(words.get("kvc.meta", "{}"), object_pairs_hook=_unique)
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise _bad(name, "header", f"not the header of a capture ({error!r})") from error
        if version != "1" and not version.startswith("1."):
            raise _bad(name, "kvc.version", f"found {version!r}, expected 1 or 1.N")
        self.tensors: dict[str, NDArray[Any]] = {}
        for tensor, entry in header.items():
            self.tensors[tensor] = self._tensor(name, tensor, entry, data, 8 + length, size)

    @staticmethod
    def _tensor(path: str, name: str, entry: Any, data: mmap.mmap, base: int, size: int) -> NDArray[Any]:
        try:
            dtype = np.dtype(_DTYPES[entry["dtype"]])
            begin, end = entry["data_offsets"]
            shape = tuple(int(n) for n in entry["shape"])
            count = 1
            for n in shape:
                count *= n
            if min(shape, default=1) < 0 or not 0 <= begin <= end <= size - base or end - begin != count * dtype.itemsize:
                raise ValueError(f"shape {shape} of {dtype} at bytes {begin} to {end}")
            return np.frombuffer(data, dtype, count, base + begin).reshape(shape)
        except (KeyError, TypeError, ValueError) as error:
            raise _bad(path, name, f"a tensor that does not fit the file ({error!r})") from error


def _as_half(x: ArrayLike, where: str) -> NDArray[np.float16]:
    given = np.asarray(x)
    if given.ndim != 3:
        raise Error(Status.USAGE, where, f"shape {given.shape}, expected (G, n, D)")
    if not np.isfinite(given).all():
        raise Error(Status.CHECK, where, "NaN or infinity: leave such a row out with zeros and both weights 0")
    return np.clip(given, -_HALF_MAX, _HALF_MAX).astype("<f2")


def _expected(name: str, g: int, n: int, d: int) -> tuple[int, ...]:
    if name in _HALF_TENSORS:
        return (g, n, d)
    return (g, n) if name.startswith("weight") else (g, d, d)


def write_capture(path: str | os.PathLike[str], geometry: Sequence[Mapping[str, Any]],
                  layers: Sequence[Mapping[str, ArrayLike]], *, meta: Mapping[str, Any] | None = None,
                  row_chunk: ArrayLike | None = None, row_position: ArrayLike | None = None) -> None:
    """Writes a capture that `kvbook train` accepts: the old file or the whole new one, never a part.

    Parameters
    ----------
    path : path
    geometry : sequence of dict, one a layer
        `heads`, `kv_heads`, `head_dim`, `kind`, `rope_style`, ...: see spec/kvc-1.md.
    layers : sequence of dict, one a layer
        `keys` (before RoPE) and `values`, [G, n, D]; if known `weight_k`, `weight_v`, [G, n]; `moment_relative`,
        `moment_post`, `sensitivity_k`, `sensitivity_v`, [G, D, D]; `gradient_k`, `gradient_v`, [G, n, D];
        `queries` (after RoPE), [H, m, D] of the first m rows, which are of one chunk.
        Empty for a layer of kind "unsupported".
        Keys, values, gradients and queries beyond +-65504 are stored as +-65504.
    meta : dict, optional
        Where the capture comes from: `model`, `tokenizer`, `text`, ...
    row_chunk, row_position : array_like of int, [n], optional
        The chunk of text of each row and its position in it; together ascending strictly.

    Raises
    ------
    Error
        USAGE for names and shapes that do not fit, CHECK for NaN and infinity. An OSError if it cannot be written.
    """
    if len(geometry) != len(layers):
        raise Error(Status.USAGE, "layers", f"{len(layers)} for a geometry of {len(geometry)}")
    wide: dict[str, NDArray[Any]] = {}  # 4-byte tensors stand first, so that all are aligned
    half: dict[str, NDArray[Any]] = {}
    rows: int | None = None
    queries: int | None = None
    for i, (shape, tensors) in enumerate(zip(geometry, layers)):
        if shape["kind"] == "unsupported" and not tensors:
            continue
        if "keys" not in tensors or "values" not in tensors or not set(tensors) <= set(_LAYER_TENSORS):
            raise Error(Status.USAGE, f"layers[{i}]", f"has {sorted(tensors)}, expected keys and values and of the "
                        f"others {_LAYER_TENSORS[2:]}")
        rows = _as_half(tensors["keys"], f"layers[{i}].keys").shape[1] if rows is None else rows
        for name, x in tensors.items():
            where = f"layers[{i}].{name}"
            array = _as_half(x, where) if name in _HALF_TENSORS else np.asarray(x, dtype="<f4")
            if name == "queries" and array.ndim == 3:
                queries = array.shape[1] if queries is None else queries
            expected = _expected(name, shape["kv_heads"], rows, shape["head_dim"])
            if name == "queries":
                expected = (shape["heads"], min(queries or rows, rows), shape["head_dim"])
            if array.shape != expected:
                raise Error(Status.USAGE, where, f"shape {array.shape}, expected {expected}")
            if array.dtype == np.float32 and not (np.isfinite(array).all() and
                                                  (not name.startswith("weight") or (array >= 0).all())):
                raise Error(Status.CHECK, where, "NaN, infinity or a negative weight")
            (half if array.dtype == np.float16 else wide)[f"layers.{i}.{name}"] = array
    _add_rows(wide, row_chunk, row_position, rows)
    _write(os.fspath(path), {**wide, **half}, {"kvc.version": "1", "kvc.geometry": json.dumps(list(geometry)),
                                               "kvc.meta": json.dumps(dict(meta or {}))})


def _add_rows(wide: dict[str, NDArray[Any]], chunk: ArrayLike | None, position: ArrayLike | None,
              rows: int | None) -> None:
    if (chunk is None) != (position is None):
        raise Error(Status.USAGE, "row_chunk, row_position", "one without the other; give both or none")
    if chunk is None or position is None:
        return
    pair = np.stack([np.asarray(chunk, dtype=np.int64), np.asarray(position, dtype=np.int64)])
    order = pair[0] * 2**31 + pair[1] if pair.size and 0 <= pair.min() and pair.max() < 2**31 else None
    if pair.shape != (2, rows) or order is None or (np.diff(order) <= 0).any():
        raise Error(Status.USAGE, "row_chunk, row_position", f"expected {rows} rows each from 0 to 2^31 - 1, the "
                    "pairs ascending strictly")
    wide["row_chunk"], wide["row_position"] = pair[0].astype("<u4"), pair[1].astype("<u4")


def _write(path: str, tensors: Mapping[str, NDArray[Any]], words: Mapping[str, str]) -> None:
    codes = {"<f2": "F16", "<f4": "F32", "<u4": "U32"}
    header: dict[str, Any] = {"__metadata__": words}
    at = 0
    for name, x in tensors.items():
        header[name] = {"dtype": codes[x.dtype.newbyteorder("<").str], "shape": x.shape,
                        "data_offsets": [at, at + x.nbytes]}
        at += x.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 64)
    folder = os.path.dirname(os.path.abspath(path))
    handle, temporary = tempfile.mkstemp(prefix=".kvc-", dir=folder)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for x in tensors.values():
                file.write(np.ascontiguousarray(x).data)
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
