"""What a model's layers look like, found by watching three tokens pass."""
from __future__ import annotations

import contextlib
import math
import sys
from typing import Any, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from .._library import Error, Status
from ._attention import observed, refuse_unknown

_ROTARY = "apply_rotary_pos_emb"
_NEAR = 1e-4


def _frequencies(x: dict[str, Any]) -> NDArray[np.float64]:
    """[rope_dims / 2]: the angle of each pair of channels at position 1."""
    pairs = np.arange(x["rope_dims"] // 2)
    return x["rope_base"] ** (-2.0 * pairs / x["rope_dims"]) / np.asarray(x.get("rope_factors", 1.0), np.float64)


def turn_back(keys: torch.Tensor, x: dict[str, Any], positions: NDArray[np.int64]) -> torch.Tensor:
    """Rotations undone.

    Parameters
    ----------
    keys : tensor of float32, [..., n, D]
        As rotated at `positions`; queries are turned by the same formula.
    x : dict
        The layer's geometry.
    positions : ndarray of int, [n]

    Returns
    -------
    tensor of float32, [..., n, D]
    """
    if x["rope_style"] == "none":
        return keys
    angle = torch.from_numpy(positions[:, None] * _frequencies(x)).to(keys.device)
    cos, sin = angle.cos().float(), angle.sin().float()
    first, second = _channels(x["rope_style"], x["rope_dims"])
    turned = keys.clone()
    turned[..., first] = keys[..., first] * cos + keys[..., second] * sin
    turned[..., second] = keys[..., second] * cos - keys[..., first] * sin
    return turned


def _channels(style: str, dims: int) -> tuple[slice, slice]:
    if style == "interleaved":
        return slice(0, dims, 2), slice(1, dims, 2)
    return slice(0, dims // 2), slice(dims // 2, dims)


class _Watch:
    """Remembers the last call of a modelling file's apply_rotary_pos_emb."""

    def __init__(self, function: Any):
        self.function = function
        self.last: tuple[Any, ...] | None = None

    def __call__(self, q: Any, k: Any, cos: Any, sin: Any, *args: Any, **kwargs: Any) -> Any:
        self.last = (k, cos, sin, args, kwargs)
        return self.function(q, k, cos, sin, *args, **kwargs)

    def matrix(self) -> NDArray[np.float64]:
        """[D', D']: row j is what becomes of channel j at position 1."""
        assert self.last is not None
        k, cos, sin, args, kwargs = self.last
        dim = k.shape[-1]
        tokens_second = kwargs.get("unsqueeze_dim", args[-1] if args and args[-1] in (1, 2) else 1) == 2
        eye = torch.eye(dim, dtype=k.dtype, device=k.device)
        eye = eye[None, :, None] if tokens_second else eye[None, None]
        one = [x[..., 1:2, :].expand(*x.shape[:-2], dim, x.shape[-1])[:1] for x in (cos, sin)]
        return self.function(eye, eye, *one, *args, **kwargs)[1].reshape(dim, dim).double().cpu().numpy()


@contextlib.contextmanager
def _watching(model: PreTrainedModel) -> Iterator[dict[str, _Watch]]:
    """Watches by modelling file, while every one of the model's classes calls them."""
    watches: dict[str, _Watch] = {}
    for name in {type(m).__module__ for m in model.modules()}:
        if hasattr(sys.modules[name], _ROTARY):
            watches[name] = _Watch(getattr(sys.modules[name], _ROTARY))
    try:
        for name, watch in watches.items():
            setattr(sys.modules[name], _ROTARY, watch)
        yield watches
    finally:
        for name, watch in watches.items():
            setattr(sys.modules[name], _ROTARY, watch.function)


def _rope_of(matrix: NDArray[np.float64], where: str) -> tuple[str, NDArray[np.float64], float]:
    """Style, angles [rope_dims / 2] and length of a rotation's rows."""
    turning = np.flatnonzero((matrix != np.eye(len(matrix))).any(1))
    dims = int(turning[-1]) + 1 if len(turning) else 0
    if dims and dims % 2 == 0:
        for style in ("half", "interleaved"):
            first, second = _channels(style, dims)
            cos, sin = np.diag(matrix)[first], matrix[np.arange(len(matrix))[first], np.arange(len(matrix))[second]]
            length = np.hypot(cos, sin)
            expected = np.eye(len(matrix))
            a, b = np.arange(dims)[first], np.arange(dims)[second]
            expected[a, a], expected[b, b], expected[a, b], expected[b, a] = cos, cos, sin, -sin
            if np.allclose(matrix, expected, atol=1e-6) and np.allclose(length, length[0], rtol=1e-2):
                return style, np.arctan2(sin, cos), float(np.median(length))
    raise Error(Status.MISMATCH, where, "turns its keys in a way that books do not know")


def _settings(model: PreTrainedModel) -> list[dict[str, Any]]:
    """Every set of RoPE settings in the model's config: the one for all layers, or one for each kind of layer."""
    config = model.config.get_text_config()
    given = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    found = [given] + [x for x in given.values() if isinstance(x, dict)]
    bases = [getattr(config, name, None) for name in ("rope_theta", "rope_local_base_freq")]
    result = []
    for x in found:
        for base in [x.get("rope_theta")] + bases:
            if base is not None:
                result += [{**x, "rope_theta": float(base)}, {"rope_theta": float(base)}]
    if any(x.get("rope_type") in ("dynamic", "longrope") for x in found):
        raise Error(Status.MISMATCH, type(model).__name__, "has RoPE whose angles depend on the length of the text "
                    "(dynamic, longrope), which books do not know")
    return result


def _factors(x: dict[str, Any], dims: int) -> list[float] | None:
    """What `linear` and `llama3` divide angles by, as kvbook computes it from a config; None for plain RoPE."""
    kind = x.get("rope_type", x.get("type", "default"))
    if kind == "linear":
        return [float(np.float32(x["factor"]))] * (dims // 2)
    if kind != "llama3":
        return None
    result = []
    for c in range(dims // 2):
        waves = x["original_max_position_embeddings"] * x["rope_theta"] ** (-2.0 * c / dims) / (2 * math.acos(-1.0))
        low, high = x["low_freq_factor"], x["high_freq_factor"]
        smooth = min(max((waves - low) / (high - low), 0.0), 1.0)
        result.append(float(np.float32(1.0 / ((1.0 - smooth) / x["factor"] + smooth))))
    return result


def _describe(model: PreTrainedModel, watch: _Watch, where: str) -> tuple[dict[str, Any], float]:
    """The RoPE members of a layer's geometry, and what keys and queries grow by."""
    style, angles, length = _rope_of(watch.matrix(), where)
    if abs(length - 1.0) < 4 * torch.finfo(model.dtype).eps:
        length = 1.0
    dims = 2 * len(angles)
    settings = _settings(model)
    for x in settings:
        found: dict[str, Any] = {"rope_style": style, "rope_dims": dims, "rope_base": x["rope_theta"]}
        factors = _factors(x, dims)
        if factors is not None:
            found["rope_factors"] = factors
        if np.allclose(_frequencies(found), angles, rtol=_NEAR, atol=0):
            return found, length
    if model.dtype != torch.float32:
        raise Error(Status.MISMATCH, where, f"its RoPE cannot be measured in {model.dtype}; load the model as float32")
    plain = {"rope_style": style, "rope_dims": dims, "rope_base": settings[0]["rope_theta"] if settings else 10000.0}
    return {**plain, "rope_factors": [float(f) for f in np.float32(_frequencies(plain) / angles)]}, length


def measure(model: PreTrainedModel) -> tuple[list[dict[str, Any]], list[float]]:
    """geometry(), and per layer what the model multiplies rotated keys and queries by (YaRN; else 1)."""
    config = model.config.get_text_config()
    found: dict[int, dict[str, Any]] = {}
    lengths: dict[int, float] = {}

    def observe(module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *,
                scaling: float | None = None, sliding_window: int | None = None, **kwargs: Any) -> None:
        layer = int(module.layer_idx)
        refuse_unknown(layer, kwargs)
        if key.shape[-1] != value.shape[-1]:
            raise Error(Status.MISMATCH, f"layer {layer}", f"keys of {key.shape[-1]} channels and values of "
                        f"{value.shape[-1]}; books need as many")
        watch = next((w for w in watches.values() if w.last is not None), None)
        rope: dict[str, Any] = {"rope_style": "none"}
        lengths[layer] = 1.0
        if watch is not None:
            rope, lengths[layer] = _describe(model, watch, f"layer {layer}")
            before = watch.last[0]  # type: ignore[index]
            before = before.transpose(1, 2) if before.shape[1] != key.shape[1] else before
            back = turn_back(key.float(), rope, np.arange(key.shape[2]))[..., :before.shape[-1]] / lengths[layer]
            if not torch.allclose(back, before.float(), rtol=0, atol=0.02 * float(before.abs().max())):
                raise Error(Status.MISMATCH, f"layer {layer}", "changes its keys after RoPE, or turns other channels "
                            "than the first; books do not know that")
            watch.last = None
        scale = 1 / math.sqrt(key.shape[-1]) if scaling is None else float(scaling)
        usual = 1 / math.sqrt(round(scale ** -2) or 1)  # x ** -0.5 has another last bit, and books are compared to the bit
        scale = usual if math.isclose(scale, usual, rel_tol=1e-12) else scale
        found[layer] = {"heads": query.shape[1], "kv_heads": key.shape[1], "head_dim": key.shape[-1],
                        "kind": "sliding" if sliding_window else "full", **rope,
                        "attention_scale": scale * lengths[layer] ** 2}
        if sliding_window:
            found[layer]["sliding_window"] = int(sliding_window)

    with torch.no_grad(), _watching(model) as watches, observed(model, observe):
        model(input_ids=torch.arange(3, device=model.device)[None], use_cache=False)
    if not found:
        raise Error(Status.MISMATCH, type(model).__name__, "no layer calls its attention through transformers' "
                    "AttentionInterface; write the capture yourself (kvbook.write_capture)")
    if _settings(model) and all(x["rope_style"] == "none" for x in found.values()):
        raise Error(Status.MISMATCH, type(model).__name__, f"its config speaks of RoPE, but no layer calls {_ROTARY}()")
    shape = {**next(iter(found.values())), "kind": "unsupported"}
    shape.pop("sliding_window", None)
    layers = range(config.num_hidden_layers)
    return [found.get(i, shape) for i in layers], [lengths.get(i, 1.0) for i in layers]


def geometry(model: PreTrainedModel) -> list[dict[str, Any]]:
    """The layers of a model, in the words of a capture.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Three tokens are run through it; nothing in it changes.

    Returns
    -------
    list of dict, [L]
        `kvc.geometry` of spec/kvc-1.md. A layer without attention is of kind "unsupported".

    Raises
    ------
    kvbook.Error
        MISMATCH names what books do not know: soft caps, learned sinks, keys and values of different sizes, RoPE that
        depends on the length of the text.
    """
    return measure(model)[0]
