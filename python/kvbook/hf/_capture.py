"""Captures of transformers models."""
from __future__ import annotations

import hashlib
import os
from typing import Any, Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .._library import Error, Status
from ..capture import write_capture
from ._attention import observed
from ._geometry import measure, turn_back

_HALF_MAX = 65504.0


class _Layer:
    """What is kept of a layer: rows of each chunk, and sums for the means of q q^T."""

    def __init__(self, shape: dict[str, Any]):
        self.shape = shape
        self.rows: dict[str, list[NDArray[Any]]] = {"keys": [], "values": [], "weight_k": [], "weight_v": []}
        self.queries = 0
        self.sums = {name: np.zeros((shape["kv_heads"], shape["head_dim"], shape["head_dim"]))
                     for name in ("moment_relative", "moment_post")}

    def add(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, drawn: NDArray[np.int64]) -> int:
        """One chunk: q [H, n, D] and k [G, n, D] as rotated, v [G, n, D], all divided by what RoPE made them grow.
        Returns how many elements are out of the range of half floats."""
        positions = np.arange(k.shape[1])
        back = turn_back(k, self.shape, positions)
        self._keep("keys", back.clamp(-_HALF_MAX, _HALF_MAX).half())
        self._keep("values", v.clamp(-_HALF_MAX, _HALF_MAX).half())
        weight_k, weight_v = _token_weights(q, k, v, self.shape)
        self._keep("weight_k", weight_k)
        self._keep("weight_v", weight_v)
        window = self.shape.get("sliding_window") or len(positions)
        seen = np.minimum(positions + 1, window)
        distance = (drawn % seen).astype(np.int64)
        for name, x in (("moment_post", q), ("moment_relative", turn_back(q, self.shape, distance))):
            x = x.reshape(k.shape[0], -1, k.shape[2]).double()
            self.sums[name] += (x.transpose(1, 2) @ x).cpu().numpy()
        self.queries += q.shape[1] * q.shape[0] // k.shape[0]
        return int((back.abs() > _HALF_MAX).sum() + (v.abs() > _HALF_MAX).sum())

    def _keep(self, name: str, x: torch.Tensor) -> None:
        self.rows[name].append(x.cpu().numpy())

    def tensors(self) -> dict[str, NDArray[Any]]:
        means = {name: x / self.queries for name, x in self.sums.items()}
        return {**{name: np.concatenate(x, 1) for name, x in self.rows.items()}, **means}


def _token_weights(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor,
                   shape: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """weight_k and weight_v [G, n] of spec/kvc-1.md, a query head at a time: n x n floats are held."""
    group, scale = shape["heads"] // shape["kv_heads"], shape["attention_scale"]
    place = torch.arange(k.shape[1], device=k.device)
    apart = place[:, None] - place
    hidden = (apart < 0) | (apart >= (shape.get("sliding_window") or len(place)))
    weight_k, weight_v = torch.zeros(k.shape[:2], device=k.device), torch.zeros(k.shape[:2], device=k.device)
    for h in range(shape["heads"]):
        g = h // group
        a = (scale * q[h] @ k[g].T).masked_fill(hidden, -torch.inf).softmax(-1)
        reach = torch.cdist(a @ v[g], v[g], p=1) * q[h].norm(dim=-1, keepdim=True)  # [i, j]: ||V_j - O_i||_1 ||Q_i||_2
        weight_k[g] += scale * (a * reach).sum(0)
        weight_v[g] += a.sum(0)
    return weight_k, weight_v


def _chunks(tokenizer: PreTrainedTokenizerBase, text: str, ctx: int, most: int | None,
            bos: bool | None) -> tuple[NDArray[np.int64], int, int | None]:
    """[chunks, ctx] ids, tokens of the whole text, and the id that begins chunks."""
    ids = np.asarray(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], np.int64)
    first = tokenizer.bos_token_id
    if bos is None:
        bos = first is not None and tokenizer("a")["input_ids"][:1] == [first]
    if bos and first is None:
        raise Error(Status.USAGE, "bos", "the tokenizer has no beginning-of-sequence token; leave it out")
    count = min(len(ids) // ctx, len(ids) if most is None else most)
    if count == 0:
        raise Error(Status.FORMAT, "texts", f"{len(ids)} tokens, expected a chunk of {ctx} at least; give more text or a "
                    "smaller ctx")
    chunks = ids[:count * ctx].reshape(count, ctx).copy()
    if bos:
        chunks[:, 0] = first
    return chunks, len(ids), first if bos else None


def capture(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: str | Sequence[str],
            path: str | os.PathLike[str], *, ctx: int = 2048, chunks: int | None = None, bos: bool | None = None,
            seed: int = 1, progress: Callable[[int, int], None] | None = None) -> None:
    """Runs a model over text and writes a `.kvc` from which `kvbook train` makes books.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        A causal language model of any architecture that geometry() understands, on any device. Its results do not change.
    tokenizer : transformers.PreTrainedTokenizerBase
    texts : str or sequence of str
        Joined by two newlines, cut into chunks of `ctx` tokens; a last partial one is dropped.
    path : path
        The `.kvc`: the old file or the whole new one, never a part.
    ctx : int
        Tokens of a chunk, at least 2.
    chunks : int, optional
        Chunks to use at most.
    bos : bool, optional
        Whether the beginning-of-sequence token takes the place of each chunk's first; by default where the tokenizer puts one.
    seed : int
        Of the places to which queries are turned back for `moment_relative`.
    progress : callable, optional
        Called with (chunks done, chunks) after each.

    Raises
    ------
    kvbook.Error
        MISMATCH for a model that books do not know, FORMAT for too little text, CHECK for NaN or infinity among keys and
        values, with layer and chunk.

    Notes
    -----
    Written are, for n tokens: keys [G, n, D] before RoPE, values [G, n, D], `weight_k` and `weight_v` [G, n],
    `moment_relative` and `moment_post` [G, D, D], and where each row stands in the text. Missing are:

    - `sensitivity_k`, `sensitivity_v`: a recipe that deals out bits over heads (`best`) needs them, and `kvbook train`
      refuses it by name; `--no-allocate` trains its usual shapes.
    - the hashes of the model's file and tokenizer: `kvbook eval` and `generate` refuse a book of such a capture unless
      told `--allow-model-mismatch --allow-tokenizer-mismatch`. Geometry is compared all the same.

    Memory is 4 * G * n * D bytes a layer; the whole capture is held until it is written.
    """
    if ctx < 2 or (chunks is not None and chunks < 1):
        raise Error(Status.USAGE, "ctx, chunks", f"{ctx}, {chunks}; expected at least 2 and 1")
    text = texts if isinstance(texts, str) else "\n\n".join(texts)
    ids, tokens, first = _chunks(tokenizer, text, ctx, chunks, bos)
    shapes, lengths = measure(model)
    layers = [None if x["kind"] == "unsupported" else _Layer(x) for x in shapes]
    saturated = 0
    drawn = np.zeros(ctx, np.int64)
    chunk = 0

    def observe(module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
                **kwargs: Any) -> None:
        nonlocal saturated
        index = int(module.layer_idx)
        if not (key.isfinite().all() and value.isfinite().all() and query.isfinite().all()):
            raise Error(Status.CHECK, f"layer {index}, chunk {chunk}", "NaN or infinity; is the model's type too narrow?")
        grown = lengths[index]
        saturated += layers[index].add(query[0].float() / grown, key[0].float() / grown, value[0].float(), drawn)

    with torch.no_grad(), observed(model, observe):
        for chunk in range(len(ids)):
            drawn = np.random.default_rng([seed, chunk]).integers(0, 2**62, ctx)
            model(input_ids=torch.from_numpy(ids[chunk][None]).to(model.device), use_cache=False)
            if progress is not None:
                progress(chunk + 1, len(ids))
    write_capture(path, shapes, [{} if x is None else x.tensors() for x in layers],
                  meta=_meta(model, text, tokens, ctx, len(ids), first, seed, saturated),
                  row_chunk=np.repeat(np.arange(len(ids)), ctx), row_position=np.tile(np.arange(ctx), len(ids)))


def _meta(model: PreTrainedModel, text: str, tokens: int, ctx: int, chunks: int, bos: int | None, seed: int,
          saturated: int) -> dict[str, Any]:
    config, data = model.config.get_text_config(), text.encode()
    return {"tool": "kvbook.hf", "version": "0.1.0",
            "model": {"name": os.path.basename(str(config._name_or_path).rstrip("/")) or type(model).__name__,
                      "architecture": config.model_type, "layers": config.num_hidden_layers,
                      "embedding": config.hidden_size, "vocab": config.vocab_size,
                      "context": config.max_position_embeddings},
            "text": {"sources": [{"name": "texts", "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data),
                                  "tokens": tokens}], "ctx": ctx, "skip": 0, "chunks": chunks, "bos": bos},
            "capture": {"rows": chunks * ctx, "seed": seed, "saturated": saturated, "quarantined": 0, "bad_queries": 0}}
