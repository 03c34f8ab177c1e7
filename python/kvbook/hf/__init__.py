"""Books and captures for models of `transformers`: needs torch and transformers (`pip install './python[hf]'`).

Any architecture whose layers call their attention through transformers' AttentionInterface and turn keys by RoPE with
`apply_rotary_pos_emb`, or not at all. What is not so is refused by name.
"""
try:
    import torch  # noqa: F401
    import transformers  # noqa: F401
except ImportError as error:
    raise ImportError(f"kvbook.hf needs torch and transformers ({error}): install them with `pip install './python[hf]'` from the "
                      "repository; the rest of kvbook works without") from error
from ._cache import Cache
from ._capture import capture
from ._geometry import geometry

__all__ = ["Cache", "capture", "geometry"]
