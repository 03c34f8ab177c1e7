"""The seam in the model: an attention implementation by the name of `kvbook`, which shows queries, keys and values to an
observer, or leaves attention to a cache with a book, and is transformers' own (sdpa) where neither is at work."""
from __future__ import annotations

import contextlib
from contextvars import ContextVar
from typing import Any, Callable, Iterator

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from .._library import Error, Status

NAME = "kvbook"
Observer = Callable[..., None]
_observer: ContextVar[Observer | None] = ContextVar("kvbook_observer", default=None)


def _attention(module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
               attention_mask: torch.Tensor | None, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    """query [B, H, T, D] and key after RoPE, key and value [B, G, n, D] -> [B, T, H, D]."""
    layer = getattr(key, "kvbook_layer", None)  # a cache's update() put it there
    if layer is not None:
        return layer.attend(module, query, key, value, attention_mask, **kwargs), None
    observer = _observer.get()
    if observer is not None:
        observer(module, query, key, value, **kwargs)
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


def use(model: PreTrainedModel) -> None:
    """Has the model call _attention(); its results stay what they are until an observer or a cache asks for more."""
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    if not model._can_set_attn_implementation():
        raise Error(Status.MISMATCH, type(model).__name__, "does not call its attention through transformers' "
                    "AttentionInterface; update transformers, or write the capture yourself (kvbook.write_capture)")
    model.set_attn_implementation(NAME)


@contextlib.contextmanager
def observed(model: PreTrainedModel, observer: Observer) -> Iterator[None]:
    """Within it `observer(module, query, key, value, **kwargs)` sees each call; afterwards the model is as it was."""
    before = model.config._attn_implementation
    use(model)
    token = _observer.set(observer)
    try:
        yield
    finally:
        _observer.reset(token)
        model.set_attn_implementation(before)


def refuse_unknown(layer: int, kwargs: dict[str, Any]) -> None:
    """What changes attention and has no place in a book."""
    for name, what in (("softcap", "soft caps on attention scores"), ("s_aux", "learned attention sinks"),
                       ("position_bias", "position biases")):
        if kwargs.get(name) is not None:
            raise Error(Status.MISMATCH, f"layer {layer}", f"the model has {what}, which books do not know")
