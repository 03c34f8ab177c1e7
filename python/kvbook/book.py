"""Books: the `.kvb` file with the codebooks of one model's KV cache."""
from __future__ import annotations

import ctypes as c
import json
import os
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ._library import CCodebook, Error, Status, call, runtime, view

Kind = Literal["key", "value"]
_KINDS = {"key": 0, "value": 1}
_OPEN_VERIFIED = 1  # KVB_OPEN_VERIFIED


class _Handle:
    """The C book: closed when the last Book, Codebook, Cache or array over its memory is gone."""

    def __init__(self, pointer: c.c_void_p):
        self.pointer = pointer

    def __del__(self) -> None:
        runtime.kvb_book_close(self.pointer)


@dataclass(frozen=True)
class Layer:
    """Geometry of one layer: H `heads`, G `kv_heads`, D `head_dim`; words as in spec/kvc-1.md."""
    heads: int
    kv_heads: int
    head_dim: int
    kind: str
    sliding_window: int
    frame: str
    rope_block: int
    rope_style: str
    rope_dims: int
    rope_base: float
    rope_factors: NDArray[np.float32] | None
    attention_scale: float


class Codebook:
    """The codebook of one (layer, KV head, kind).

    Attributes
    ----------
    channels, centroids, groups, code_bits, stages, stage_centroids : int
        d, K, S, log2 K, M and Km of kvbook/book.h.
    table : ndarray of float16, [S, M, Km, d], or [K] with online scales, or None
        A view of the book's memory, like the three below.
    mean : ndarray of float32, [D], or None
    forward, inverse : ndarray of float32, [D, D], or None
    """

    def __init__(self, handle: _Handle, pointer: Any, head_dim: int):
        book = pointer.contents
        self._handle, self._pointer, self.head_dim = handle, pointer, head_dim
        self.channels, self.centroids = int(book.channels), int(book.centroids)
        self.groups, self.code_bits = int(book.groups), int(book.code_bits)
        self.stages, self.stage_centroids = int(book.stages), int(book.stage_centroids)
        self.scaled = bool(book.scaling)
        shape = (self.centroids,) if self.scaled else (self.groups, self.stages, self.stage_centroids, self.channels)
        self.table = view(book.table, shape, np.float16, handle)
        self.mean = view(book.mean, (head_dim,), np.float32, handle)
        self.forward = view(book.forward, (head_dim, head_dim), np.float32, handle)
        self.inverse = view(book.inverse, (head_dim, head_dim), np.float32, handle)

    def encode(self, x: ArrayLike) -> NDArray[np.uint32]:
        """Codes of rows.

        Parameters
        ----------
        x : array_like, [n, D]
            Keys in the layer's frame, or values. float32 rows are read in place, whatever their stride.

        Returns
        -------
        ndarray of uint32, [n, S]

        Raises
        ------
        Error
            CHECK for NaN or infinity, USAGE for another shape.
        """
        rows = np.asarray(x, dtype=np.float32)
        if rows.ndim != 2 or rows.shape[1] != self.head_dim:
            raise Error(Status.USAGE, "x", f"shape {rows.shape}, expected (n, {self.head_dim})")
        in_place = rows.strides[1] == 4 and rows.strides[0] >= 4 * self.head_dim and rows.strides[0] % 4 == 0
        if not in_place:
            rows = np.ascontiguousarray(rows)
        codes = np.empty((len(rows), self.groups), np.uint32)
        call(runtime.kvb_encode, self._pointer, self.head_dim, rows.ctypes.data, rows.strides[0] // 4, len(rows),
             codes.ctypes.data)
        return codes

    def decode(self, codes: ArrayLike) -> NDArray[np.float32]:
        """Rows [n, D] of float32 from codes [n, S]; Error USAGE for a code that is not less than K."""
        given = np.asarray(codes)
        if given.ndim != 2 or given.shape[1] != self.groups or given.dtype.kind not in "ui":
            raise Error(Status.USAGE, "codes", f"{given.dtype} of shape {given.shape}, expected integers of shape "
                        f"(n, {self.groups})")
        if given.size and (given.min() < 0 or given.max() >= self.centroids):
            raise Error(Status.USAGE, "codes", f"from {given.min()} to {given.max()}, expected 0 to "
                        f"{self.centroids - 1}")
        packed = np.ascontiguousarray(given, dtype=np.uint32)
        x = np.empty((len(packed), self.head_dim), np.float32)
        call(runtime.kvb_decode, self._pointer, self.head_dim, packed.ctypes.data, len(packed), x.ctypes.data)
        return x


class Book:
    """An open book. Opening validates everything: checksums, sizes, numbers. Immutable.

    With ``verify=False`` a file of over 1 MiB is mapped instead, and opens in milliseconds: `verify()` then checks its
    centroids and transforms, and the file must not be cut or written over meanwhile.

    Parameters
    ----------
    source : path or bytes
        A `.kvb` file, or its content.
    verify : bool
        Read the whole file and check every byte.

    Raises
    ------
    Error
        IO if it cannot be read, FORMAT if anything in it is wrong; the error names the place.
    """

    def __init__(self, source: str | os.PathLike[str] | bytes, verify: bool = True):
        pointer = c.c_void_p()
        if isinstance(source, bytes):
            call(runtime.kvb_book_open_memory, source, len(source), b"<bytes>", c.byref(pointer))
        else:
            call(runtime.kvb_book_open_with, os.fsencode(source), _OPEN_VERIFIED if verify else 0, c.byref(pointer))
        self._handle = _Handle(pointer)
        count = int(runtime.kvb_book_layers(pointer))
        self.layers = tuple(self._layer(i) for i in range(count))

    def verify(self) -> None:
        """Checks every byte of the open book; Error FORMAT names what is wrong."""
        call(runtime.kvb_book_verify, self._handle.pointer)

    def _layer(self, index: int) -> Layer:
        x = runtime.kvb_book_layer(self._handle.pointer, index).contents
        factors = view(x.rope_factors, (x.rope_dims // 2,), np.float32, self._handle) if x.rope_dims else None
        return Layer(x.heads, x.kv_heads, x.head_dim, ("full", "sliding", "unsupported")[x.kind], x.sliding_window,
                     ("pre", "post", "block")[x.frame], x.rope_block, ("none", "interleaved", "half")[x.rope_style],
                     x.rope_dims, x.rope_base, factors, x.attention_scale)

    @property
    def id(self) -> str:
        """The identity: 64 hexadecimal digits."""
        return bytes(runtime.kvb_book_id(self._handle.pointer)[:32]).hex()

    @property
    def meta(self) -> dict[str, Any]:
        """The META section: model, tokenizer, text, recipe, errors of training."""
        size = c.c_size_t()
        text = runtime.kvb_book_meta(self._handle.pointer, c.byref(size))
        meta: dict[str, Any] = json.loads(c.string_at(text, size.value).decode("utf-8"))
        return meta

    def codebook(self, layer: int, head: int, kind: Kind, *, fine: bool = False) -> Codebook | None:
        """The codebook of a KV head, or the fine one; None where the book has none."""
        if kind not in _KINDS:
            raise Error(Status.USAGE, "kind", f"{kind!r}, expected 'key' or 'value'")
        if not 0 <= layer < len(self.layers) or not 0 <= head < self.layers[layer].kv_heads:
            raise IndexError(f"layer {layer}, head {head}: not in the book's geometry")
        find = runtime.kvb_book_fine if fine else runtime.kvb_book_codebook
        pointer = find(self._handle.pointer, layer, head, _KINDS[kind])
        return Codebook(self._handle, pointer, self.layers[layer].head_dim) if pointer else None
