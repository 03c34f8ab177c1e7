"""A quantised KV cache on the CPU: append tokens, attend over codes, window, sinks and anchors."""
from __future__ import annotations

import ctypes as c
import weakref
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ._library import CCacheOptions, Error, Status, call, floats, runtime
from .book import Book, Layer

_SCORES = ("exact-k", "exact-v", "key-norm", "first-n", "random")
_FORMS = ("half", "fine")


@dataclass(frozen=True)
class Policy:
    """What a cache keeps exact: kvb_policy of kvbook/book.h."""
    anchor_fraction: float = 0.0
    score: str = "exact-k"
    window: int = 0
    sinks: int = 0
    exact: str = "half"

    @staticmethod
    def of(book: Book) -> Policy:
        """What the book's recipe keeps exact."""
        p = runtime.kvb_book_policy(book._handle.pointer)
        return Policy(p.anchor_fraction, _SCORES[p.score], p.window, p.sinks, _FORMS[p.exact])


class CacheBytes(NamedTuple):
    """Bytes held for tokens, counted exactly; `bits` per element = 8 * total / elements."""
    codes: int
    anchors: int
    window: int
    sinks: int
    index: int
    codebooks: int
    total: int
    elements: int


def _destroy(pointer: c.c_void_p, handle: object) -> None:
    """`handle` keeps the book open until here."""
    runtime.kvb_cache_destroy(pointer)


class Cache:
    """A cache with a book. It belongs to one thread at a time; caches may share a book.

    Parameters
    ----------
    book : Book
    policy : Policy, optional
        The book's own without it.
    seed : int
        Of the score "random".
    """

    def __init__(self, book: Book, policy: Policy | None = None, *, seed: int = 0):
        self._pointer = c.c_void_p()
        self.book = book
        options = CCacheOptions()
        runtime.kvb_cache_options_init(c.byref(options), book._handle.pointer)
        options.seed = seed
        if policy is not None:
            if policy.score not in _SCORES or policy.exact not in _FORMS:
                raise Error(Status.USAGE, "policy", f"score {policy.score!r}, exact {policy.exact!r}: expected one of "
                            f"{', '.join(_SCORES)}, and of {', '.join(_FORMS)}")
            if min(policy.window, policy.sinks) < 0 or max(policy.window, policy.sinks) >= 2**32:
                raise Error(Status.USAGE, "policy", f"window {policy.window}, sinks {policy.sinks}: expected 0 to "
                            f"{2**32 - 1}")
            options.policy.anchor_fraction = policy.anchor_fraction
            options.policy.score = _SCORES.index(policy.score)
            options.policy.window, options.policy.sinks = policy.window, policy.sinks
            options.policy.exact = _FORMS.index(policy.exact)
        call(runtime.kvb_cache_create, book._handle.pointer, c.byref(options), c.byref(self._pointer))
        # Not __del__: where a cycle of objects is collected, the book might be closed first.
        weakref.finalize(self, _destroy, self._pointer, book._handle)

    def append(self, layer: int, keys: ArrayLike, values: ArrayLike) -> None:
        """Appends the layer's next token: keys [G, D] before RoPE, values [G, D]. Error CHECK for NaN, infinity."""
        x = self._layer(layer)
        k = floats(keys, (x.kv_heads, x.head_dim), "keys")
        v = floats(values, (x.kv_heads, x.head_dim), "values")
        call(runtime.kvb_cache_append, self._pointer, layer, k.ctypes.data, v.ctypes.data)

    def attend(self, layer: int, query: ArrayLike) -> NDArray[np.float32]:
        """Attention [H, D] of the newest token's query [H, D], which is after RoPE."""
        x = self._layer(layer)
        q = floats(query, (x.heads, x.head_dim), "query")
        out = np.empty_like(q)
        call(runtime.kvb_cache_attend, self._pointer, layer, q.ctypes.data, out.ctypes.data)
        return out

    def read(self, layer: int, head: int, position: int) -> tuple[NDArray[np.float32], NDArray[np.float32], bool]:
        """What the cache reads of a token: key [D] before RoPE, value [D], and whether it is exact."""
        x = self._layer(layer)
        if not 0 <= head < x.kv_heads or not 0 <= position < self.length(layer):
            raise IndexError(f"head {head}, position {position}: not in the cache")
        key, value, exact = np.empty(x.head_dim, np.float32), np.empty(x.head_dim, np.float32), c.c_int()
        call(runtime.kvb_cache_read, self._pointer, layer, head, position, key.ctypes.data, value.ctypes.data,
             c.byref(exact))
        return key, value, bool(exact.value)

    def length(self, layer: int) -> int:
        """Tokens of a layer."""
        self._layer(layer)
        return int(runtime.kvb_cache_length(self._pointer, layer))

    @property
    def bytes(self) -> CacheBytes:
        """What the cache holds now, over all layers."""
        b = runtime.kvb_cache_count_bytes(self._pointer)
        return CacheBytes(*(int(getattr(b, name)) for name in CacheBytes._fields))

    def _layer(self, layer: int) -> Layer:
        if not 0 <= layer < len(self.book.layers):
            raise IndexError(f"layer {layer}: the book has {len(self.book.layers)}")
        return self.book.layers[layer]
