"""A book as the cache of a transformers model."""
from __future__ import annotations

from typing import Any

import numpy as np
import torch
import transformers
from transformers import PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

from .. import cache as runtime
from .._library import Error, Status
from ..book import Book
from ._attention import refuse_unknown, use
from ._geometry import _NEAR, _frequencies, measure, turn_back


class _Layer(CacheLayerMixin):
    """One layer: update() takes tokens in, attend() is called back by the model's attention with the queries."""

    is_sliding = False

    def __init__(self, owner: Cache, index: int, shape: dict[str, Any], grown: float):
        super().__init__()
        self.owner, self.index, self.shape, self.grown = owner, index, shape, grown
        self.length, self.waiting = 0, False

    def lazy_initialization(self, *args: Any) -> None:
        self.is_initialized = True

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any,
               **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys [B, G, n, D] after RoPE and values of n new tokens; what it returns is for attend() alone."""
        self.owner.check_attended()
        self.is_initialized = self.waiting = True
        self.length += key_states.shape[2]
        key_states.kvbook_layer = self  # type: ignore[attr-defined]
        return key_states, value_states

    def attend(self, module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
               mask: torch.Tensor | None, **kwargs: Any) -> torch.Tensor:
        """[B, n, H, D]: token after token, each is appended and then read by its own query."""
        refuse_unknown(self.index, kwargs)
        if mask is not None and not mask[:, :, -1, -(self.shape.get("sliding_window") or self.length):].all():
            raise Error(Status.USAGE, "attention_mask", "hides tokens: a batch must be of equal length, without padding")
        n, start = key.shape[2], self.length - key.shape[2]
        back = turn_back(key.detach().float() / self.grown, self.shape, np.arange(start, self.length))
        # [B, n, heads, D] on the CPU
        k, v, q = (x.detach().float().cpu().transpose(1, 2).contiguous().numpy() for x in (back, value, query / self.grown))
        out = np.empty_like(q)
        for b, cache in enumerate(self.owner.caches_of(len(q))):
            for t in range(n):
                cache.append(self.index, k[b, t], v[b, t])
                out[b, t] = cache.attend(self.index, q[b, t])
        self.waiting = False
        return torch.from_numpy(out).to(query)

    def get_seq_length(self) -> int:
        return self.length

    def get_mask_sizes(self, query_length: Any) -> tuple[int, int]:
        # transformers before 5 gives the positions of the queries instead of their number
        count = query_length if isinstance(query_length, int) else len(query_length)
        return self.length + count, 0

    def get_max_length(self) -> int:
        return -1

    get_max_cache_shape = get_max_length

    def _refuse(self, *args: Any, **kwargs: Any) -> Any:
        raise Error(Status.USAGE, "kvbook.hf.Cache", "beam search, assisted decoding, cropping and offloading need a cache "
                    "that can go back; codes cannot. Use greedy search or sampling")

    reorder_cache = crop = batch_repeat_interleave = batch_select_indices = offload = prefetch = _refuse

    def reset(self) -> None:
        self.length, self.waiting = 0, False


class Cache(transformers.Cache):
    """A book as `past_key_values` of a model: the reference for what an engine with the book computes.

    Tokens are encoded, kept and read by the C runtime, so that sinks, window and anchors are what the book's recipe says, also
    within a prompt, where each query reads what it would have read had the tokens come one by one. Scores of anchors come from
    the queries. It runs on the CPU, a token at a time: made to be right, not fast.

    Parameters
    ----------
    book : kvbook.Book
    model : transformers.PreTrainedModel
        Three tokens are run through it to compare its layers with the book's. It is set to the attention implementation
        `kvbook`, which is `sdpa` for every other cache.
    policy : kvbook.Policy, optional
        What stays exact; the book's own without it.
    seed : int
        Of the anchor score "random".

    Attributes
    ----------
    caches : list of kvbook.Cache
        One a sequence of the batch, once there are tokens: `caches[0].bytes`, `caches[0].read(layer, head, position)`.

    Raises
    ------
    kvbook.Error
        MISMATCH where model and book differ, with the layer. USAGE, while running, for padding and for beam search.

    Examples
    --------
    >>> cache = kvbook.hf.Cache(kvbook.Book("model.kvb"), model)
    >>> model.generate(**tokenizer("Once upon a time", return_tensors="pt"), past_key_values=cache, max_new_tokens=16)
    """

    def __init__(self, book: Book, model: PreTrainedModel, policy: runtime.Policy | None = None, *, seed: int = 0):
        shapes, grown = measure(model)
        _compare(book, shapes)
        self.book, self.policy, self.seed = book, policy, seed
        self.caches: list[runtime.Cache] = []
        super().__init__(layers=[_Layer(self, i, x, grown[i]) for i, x in enumerate(shapes)])
        use(model)

    def caches_of(self, batch: int) -> list[runtime.Cache]:
        """The caches of a batch, made with its first tokens."""
        if not self.caches:
            self.caches = [runtime.Cache(self.book, self.policy, seed=self.seed) for _ in range(batch)]
        if len(self.caches) != batch:
            raise Error(Status.USAGE, "kvbook.hf.Cache", f"a batch of {batch} sequences after one of {len(self.caches)}; "
                        "use another cache")
        return self.caches

    def check_attended(self) -> None:
        """Error unless every layer that took tokens in was asked for attention."""
        for layer in self.layers:
            if layer.waiting:
                raise Error(Status.MISMATCH, f"layer {layer.index}", "did not attend to what it cached: is the model's "
                            "attention implementation still `kvbook`? Make a new Cache")

    def reset(self) -> None:
        """Forgets all tokens."""
        super().reset()
        self.caches = []


def _compare(book: Book, shapes: list[dict[str, Any]]) -> None:
    if len(book.layers) != len(shapes):
        raise Error(Status.MISMATCH, "book", f"was made for {len(book.layers)} layers, the model has {len(shapes)}")
    for i, (x, shape) in enumerate(zip(book.layers, shapes)):
        pairs: dict[str, tuple[Any, Any]] = {name: (getattr(x, name), shape[name])
                                             for name in ("heads", "kv_heads", "head_dim", "rope_style")}
        if x.kind != "unsupported":
            pairs["kind"] = (x.kind, shape["kind"])
            pairs["sliding_window"] = (x.sliding_window, shape.get("sliding_window", 0))
        pairs["rope_dims"] = (x.rope_dims, shape.get("rope_dims", 0))
        for name, (found, expected) in pairs.items():
            if found != expected:
                raise Error(Status.MISMATCH, f"layer {i}", f"the book was made for {name} {found}, the model has {expected}")
        if not np.isclose(x.attention_scale, shape["attention_scale"], rtol=_NEAR):
            raise Error(Status.MISMATCH, f"layer {i}", f"the book was made for attention_scale {x.attention_scale}, the "
                        f"model has {shape['attention_scale']}")
        if x.rope_dims:
            mine = {"rope_dims": x.rope_dims, "rope_base": x.rope_base,
                    "rope_factors": 1.0 if x.rope_factors is None else x.rope_factors}
            if not np.allclose(_frequencies(mine), _frequencies(shape), rtol=_NEAR, atol=0):
                raise Error(Status.MISMATCH, f"layer {i}", f"the book was made for RoPE of base {x.rope_base}, the model's "
                            "angles are others")
