"""The shared libraries: where they are, their structs and prototypes, and their errors as exceptions.

The structs repeat include/kvbook/*.h; the tests compare their sizes and offsets with what a C compiler says."""
from __future__ import annotations

import ctypes as c
import enum
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Status(enum.IntEnum):
    """What a call came to: kvb_status of kvbook/status.h."""
    OK = 0
    CHECK = 1
    USAGE = 2
    FORMAT = 3
    IO = 4
    MEMORY = 5
    MISMATCH = 6
    DEVICE = 7
    CANCELLED = 130


class Error(Exception):
    """A call that failed.

    Attributes
    ----------
    status : Status
    where : str
        The file and the place in it, or the argument.
    message : str
        What was found, what was expected and what to do.
    """

    def __init__(self, status: int, where: str, message: str):
        super().__init__(f"{where}: {message}")
        self.status = Status(status)
        self.where = where
        self.message = message


class CError(c.Structure):
    _fields_ = [("code", c.c_int), ("where", c.c_char * 256), ("message", c.c_char * 512)]


class CLayer(c.Structure):
    _fields_ = [("heads", c.c_uint32), ("kv_heads", c.c_uint32), ("head_dim", c.c_uint32), ("kind", c.c_int),
                ("sliding_window", c.c_uint32), ("frame", c.c_int), ("rope_block", c.c_uint32),
                ("rope_style", c.c_int), ("rope_dims", c.c_uint32), ("rope_base", c.c_double),
                ("rope_factors", c.POINTER(c.c_float)), ("attention_scale", c.c_double)]


class CCodebook(c.Structure):
    _fields_ = [("channels", c.c_uint32), ("centroids", c.c_uint32), ("groups", c.c_uint32),
                ("code_bits", c.c_uint32), ("table", c.POINTER(c.c_uint16)), ("mean", c.POINTER(c.c_float)),
                ("forward", c.POINTER(c.c_float)), ("inverse", c.POINTER(c.c_float)), ("stages", c.c_uint32),
                ("stage_centroids", c.c_uint32), ("scaling", c.c_void_p)]


class CPolicy(c.Structure):
    _fields_ = [("anchor_fraction", c.c_double), ("score", c.c_int), ("window", c.c_uint32), ("sinks", c.c_uint32),
                ("exact", c.c_int)]


class CCacheOptions(c.Structure):
    _fields_ = [("struct_size", c.c_uint32), ("policy", CPolicy), ("seed", c.c_uint64), ("reserve", c.c_uint32)]


class CCacheBytes(c.Structure):
    _fields_ = [(name, c.c_uint64) for name in
                ("codes", "anchors", "window", "sinks", "index", "codebooks", "total", "elements")]


class CProblem(c.Structure):
    _fields_ = [("points", c.c_void_p), ("type", c.c_int), ("count", c.c_size_t), ("stride", c.c_size_t),
                ("channels", c.c_uint32), ("centroids", c.c_uint32), ("weights", c.c_void_p),
                ("initial", c.c_void_p), ("seed", c.c_uint64), ("table", c.c_void_p)]


class CKmeansResult(c.Structure):
    _fields_ = [("train_error", c.c_double), ("heldout_error", c.c_double), ("variance", c.c_double),
                ("heldout_variance", c.c_double), ("iterations", c.c_uint32), ("repairs", c.c_uint32),
                ("used", c.c_uint32), ("entropy", c.c_double), ("swaps", c.c_uint32),
                ("points_per_centroid", c.c_double)]


class CKmeansOptions(c.Structure):
    _fields_ = [("struct_size", c.c_uint32), ("iterations", c.c_uint32), ("seeding", c.c_int),
                ("tolerance", c.c_double), ("holdout_every", c.c_uint32), ("holdout_block", c.c_uint32),
                ("threads", c.c_uint32), ("progress", c.c_void_p), ("progress_user", c.c_void_p),
                ("swap_rounds", c.c_uint32), ("backend", c.c_int), ("device", c.c_uint32), ("device_callers", c.c_uint32),
                 ("curve", c.c_void_p), ("curve_length", c.c_uint32)]


# The header's name of each struct, for the test that compares layouts.
C_NAMES = {CError: "kvb_error", CLayer: "kvb_layer", CCodebook: "kvb_codebook", CPolicy: "kvb_policy",
           CCacheOptions: "kvb_cache_options", CCacheBytes: "kvb_cache_bytes", CProblem: "kvb_kmeans_problem",
           CKmeansResult: "kvb_kmeans_result", CKmeansOptions: "kvb_kmeans_options"}


def _load(name: str) -> c.CDLL:
    folder = os.environ.get("KVBOOK_LIBRARY_DIR") or os.path.dirname(os.path.abspath(__file__))
    path = os.path.join(folder, name)
    try:
        return c.CDLL(path)
    except OSError as error:
        raise ImportError(f"{path} cannot be loaded ({error}): install with `pip install ./python` from the "
                          "repository, or set KVBOOK_LIBRARY_DIR to the folder that `make` built it in") from error


def _declare(library: c.CDLL, name: str, result: Any, *arguments: Any) -> None:
    function = getattr(library, name)
    function.restype = result
    function.argtypes = arguments


runtime = _load("libkvbook.so")
trainer = _load("libkvb-kmeans.so")
_p, _u32, _err = c.c_void_p, c.c_uint32, c.POINTER(CError)
_declare(runtime, "kvb_book_open_with", c.c_int, c.c_char_p, c.c_uint32, c.POINTER(_p), _err)
_declare(runtime, "kvb_book_verify", c.c_int, _p, _err)
_declare(runtime, "kvb_book_open_memory", c.c_int, c.c_char_p, c.c_size_t, c.c_char_p, c.POINTER(_p), _err)
_declare(runtime, "kvb_book_close", None, _p)
_declare(runtime, "kvb_book_layers", _u32, _p)
_declare(runtime, "kvb_book_layer", c.POINTER(CLayer), _p, _u32)
_declare(runtime, "kvb_book_codebook", c.POINTER(CCodebook), _p, _u32, _u32, c.c_int)
_declare(runtime, "kvb_book_fine", c.POINTER(CCodebook), _p, _u32, _u32, c.c_int)
_declare(runtime, "kvb_book_policy", CPolicy, _p)
_declare(runtime, "kvb_book_id", c.POINTER(c.c_uint8), _p)
_declare(runtime, "kvb_book_meta", c.POINTER(c.c_char), _p, c.POINTER(c.c_size_t))
_declare(runtime, "kvb_cache_options_init", None, c.POINTER(CCacheOptions), _p)
_declare(runtime, "kvb_cache_create", c.c_int, _p, c.POINTER(CCacheOptions), c.POINTER(_p), _err)
_declare(runtime, "kvb_cache_destroy", None, _p)
_declare(runtime, "kvb_cache_append", c.c_int, _p, _u32, _p, _p, _err)
_declare(runtime, "kvb_cache_attend", c.c_int, _p, _u32, _p, _p, _err)
_declare(runtime, "kvb_cache_length", c.c_uint64, _p, _u32)
_declare(runtime, "kvb_cache_count_bytes", CCacheBytes, _p)
_declare(runtime, "kvb_cache_read", c.c_int, _p, _u32, _u32, c.c_uint64, _p, _p, c.POINTER(c.c_int), _err)
_declare(runtime, "kvb_encode", c.c_int, c.POINTER(CCodebook), _u32, _p, c.c_size_t, c.c_size_t, _p, _err)
_declare(runtime, "kvb_decode", c.c_int, c.POINTER(CCodebook), _u32, _p, c.c_size_t, _p, _err)
_declare(trainer, "kvb_kmeans_options_init", None, c.POINTER(CKmeansOptions))
_declare(trainer, "kvb_kmeans_train", c.c_int, c.POINTER(CProblem), c.c_size_t, c.POINTER(CKmeansOptions),
         c.POINTER(CKmeansResult), _err)


def call(function: Any, *arguments: Any) -> None:
    """Calls a function whose last argument is a kvb_error; raises Error unless it says KVB_OK."""
    err = CError()
    status = function(*arguments, c.byref(err))
    if status != 0:
        raise Error(status, err.where.decode("utf-8", "replace"), err.message.decode("utf-8", "replace"))


def view(pointer: Any, shape: tuple[int, ...], dtype: Any, owner: Any) -> NDArray[Any] | None:
    """A read-only array over memory of the library, without a copy; it keeps `owner` alive. None for NULL."""
    if not pointer:
        return None
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    buffer = (c.c_char * size).from_address(c.addressof(pointer.contents))
    buffer.owner = owner
    array: NDArray[Any] = np.frombuffer(buffer, dtype=dtype).reshape(shape)
    array.flags.writeable = False
    return array


def floats(x: Any, shape: tuple[int, ...], name: str) -> NDArray[np.float32]:
    """`x` as contiguous float32 of exactly this shape, copied only where it is not so already."""
    array = np.ascontiguousarray(x, dtype=np.float32)
    if array.shape != shape:
        raise Error(Status.USAGE, name, f"shape {array.shape}, expected {shape}")
    return array
