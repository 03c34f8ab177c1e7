"""Tiny random models, always the same, as Hugging Face folders and as GGUF files. Python's standard library only.

A case is a dict: `config` (config.json), `tensors` {name: (shape, mean, deviation)} under the folder's names, `tokenizer`
(a name in tokenizers.py), `dtype` and `shards` of the folder, and `gguf` (metadata) where it has a GGUF twin. The twin holds
the same weights under GGUF's names: rows of q and k reordered for `llama`, norms of Gemma with their 1 added."""
import json
import os
import struct

from tokenizers_tiny import GGUF_MERGES, GGUF_TOKENS, SPECIALS, TOKENIZERS

VOCAB = 400
MASK = (1 << 64) - 1


def mix(x):
    """splitmix64's finaliser."""
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def values(name, count, mean, deviation):
    """Uniform around `mean`, keyed by the tensor's name."""
    key = 0
    for c in name.encode():
        key = mix(key ^ c)
    width = deviation * 12 ** 0.5
    return [mean + width * ((mix(key + i) >> 11) / 2.0 ** 53 - 0.5) for i in range(count)]


def token_ids(count):
    return [mix(1000 + i) % VOCAB for i in range(count)]


def round_to(dtype, x):
    """The float that is read back from each number."""
    if dtype == "F32":
        return list(struct.unpack("<%df" % len(x), struct.pack("<%df" % len(x), *x)))
    if dtype == "F16":
        return list(struct.unpack("<%de" % len(x), struct.pack("<%de" % len(x), *x)))
    bits = struct.unpack("<%dI" % len(x), struct.pack("<%df" % len(x), *x))
    bits = [((b + 0x7FFF + (b >> 16 & 1)) >> 16) << 16 for b in bits]
    return list(struct.unpack("<%df" % len(x), struct.pack("<%dI" % len(x), *bits)))


def pack(dtype, x):
    if dtype == "BF16":
        bits = struct.unpack("<%dI" % len(x), struct.pack("<%df" % len(x), *x))
        return struct.pack("<%dH" % len(x), *[b >> 16 for b in bits])
    return struct.pack("<%d%s" % (len(x), "f" if dtype == "F32" else "e"), *x)


# ---- architectures

BASE = dict(vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=256, rms_norm_eps=1e-5, rope_theta=10000.0,
            tie_word_embeddings=False, torch_dtype="float32", bos_token_id=0, eos_token_id=1)


def layer_tensors(config, bias=False, qk_norm=False, post_norms=False, fused=False, norm_mean=1.0):
    e, f, h, g = (config[k] for k in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"))
    d = config.get("head_dim") or e // h
    t = {}

    def matrix(name, rows, cols, gain):
        t[name + ".weight"] = ((rows, cols), 0.0, gain / cols ** 0.5)

    def vector(name, size, mean, deviation):
        t[name] = ((size,), mean, deviation)

    for l in range(config["num_hidden_layers"]):
        p = "model.layers.%d." % l
        if fused:
            matrix(p + "self_attn.qkv_proj", (h + 2 * g) * d, e, 1.4)
            matrix(p + "mlp.gate_up_proj", 2 * f, e, 1.0)
        else:
            for name, rows, gain in (("q", h * d, 1.6), ("k", g * d, 1.6), ("v", g * d, 1.0)):
                matrix(p + "self_attn.%s_proj" % name, rows, e, gain)
                if bias:
                    vector(p + "self_attn.%s_proj.bias" % name, rows, 0.0, 0.3)
            matrix(p + "mlp.gate_proj", f, e, 1.0)
            matrix(p + "mlp.up_proj", f, e, 1.0)
        matrix(p + "self_attn.o_proj", e, h * d, 0.6)
        matrix(p + "mlp.down_proj", e, f, 0.5)
        if qk_norm:
            vector(p + "self_attn.q_norm.weight", d, norm_mean, 0.2)
            vector(p + "self_attn.k_norm.weight", d, norm_mean, 0.2)
        norms = ["input_layernorm", "post_attention_layernorm"]
        if post_norms:
            norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
        for name in norms:
            vector(p + name + ".weight", e, norm_mean, 0.1)
    t["model.norm.weight"] = ((e,), norm_mean, 0.1)
    t["model.embed_tokens.weight"] = ((config["vocab_size"], e), 0.0, 2.0 / e ** 0.5)
    if not config["tie_word_embeddings"]:
        t["lm_head.weight"] = ((config["vocab_size"], e), 0.0, 2.0 / e ** 0.5)
    return t


def case(cls, model_type, tokenizer, gguf=None, dtype="F32", shards=1, parts=None, **config):
    config = dict(BASE, architectures=[cls], model_type=model_type, **config)
    return dict(config=config, tensors=layer_tensors(config, **(parts or {})), tokenizer=tokenizer, gguf=gguf, dtype=dtype,
                shards=shards)


def gguf_of(arch, **more):
    return dict(arch=arch, **more)


LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=32)

CASES = {
    "llama": case("LlamaForCausalLM", "llama", "smollm", gguf_of("llama"), tie_word_embeddings=True),
    "llama3": case("LlamaForCausalLM", "llama", "llama3", gguf_of("llama", llama3=True), rope_scaling=LLAMA3, head_dim=16,
                   rope_theta=500000.0),
    "mistral": case("MistralForCausalLM", "mistral", "llama2", gguf_of("llama"), head_dim=16, sliding_window=None),
    "mistral-sliding": case("MistralForCausalLM", "mistral", "metaspace", sliding_window=6, num_key_value_heads=1),
    "qwen2": case("Qwen2ForCausalLM", "qwen2", "qwen2", gguf_of("qwen2"), parts=dict(bias=True), tie_word_embeddings=True,
                  use_sliding_window=False, sliding_window=128, max_window_layers=1, rope_theta=1e6),
    "qwen2-upper": case("Qwen2ForCausalLM", "qwen2", "qwen2", parts=dict(bias=True), use_sliding_window=True,
                        sliding_window=5, max_window_layers=1, dtype="F16"),
    "qwen3": case("Qwen3ForCausalLM", "qwen3", "qwen2", gguf_of("qwen3"), parts=dict(qk_norm=True), head_dim=20,
                  rope_theta=1e6, attention_bias=False),
    "qwen3-shards": case("Qwen3ForCausalLM", "qwen3", "qwen2", parts=dict(qk_norm=True), head_dim=16, dtype="BF16",
                         shards=3),
    "gemma3": case("Gemma3ForCausalLM", "gemma3_text", "gemma", gguf_of("gemma3", linear=8.0),
                   parts=dict(qk_norm=True, post_norms=True, norm_mean=0.0), num_hidden_layers=7, head_dim=24,
                   sliding_window=5, sliding_window_pattern=6, rope_theta=1e6, rope_local_base_freq=10000.0,
                   query_pre_attn_scalar=24, hidden_activation="gelu_pytorch_tanh", tie_word_embeddings=True,
                   rope_scaling=dict(rope_type="linear", factor=8.0), attention_bias=False),
    "phi3": case("Phi3ForCausalLM", "phi3", "llama2", gguf_of("phi3"), parts=dict(fused=True), num_key_value_heads=4,
                 sliding_window=7, pad_token_id=0),
    "phi3-partial": case("Phi3ForCausalLM", "phi3", "llama2", gguf_of("phi3"), parts=dict(fused=True),
                         partial_rotary_factor=0.75, head_dim=16, sliding_window=None, pad_token_id=0),
}


def weights(c):
    """{name: (shape, floats as the folder's type keeps them)}"""
    result = {}
    for name, (shape, mean, deviation) in c["tensors"].items():
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        result[name] = (shape, round_to(c["dtype"], values(name, count, mean, deviation)))
    return result


# ---- Hugging Face folders

def write_safetensors(path, dtype, tensors):
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name in sorted(tensors):
        shape, x = tensors[name]
        raw = pack(dtype, x)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + data)


def write_folder(c, path, tensors=None):
    os.makedirs(path, exist_ok=True)
    tensors = tensors or weights(c)
    with open(os.path.join(path, "config.json"), "w") as f:
        json.dump(c["config"], f, indent=1)
    with open(os.path.join(path, "tokenizer.json"), "w") as f:
        json.dump(TOKENIZERS[c["tokenizer"]](), f, ensure_ascii=False, indent=1)
    if c["shards"] == 1:
        write_safetensors(os.path.join(path, "model.safetensors"), c["dtype"], tensors)
        return
    index = {}
    names = sorted(tensors)
    for s in range(c["shards"]):
        file = "model-%05d-of-%05d.safetensors" % (s + 1, c["shards"])
        part = names[s::c["shards"]]
        write_safetensors(os.path.join(path, file), c["dtype"], {n: tensors[n] for n in part})
        index.update({n: file for n in part})
    with open(os.path.join(path, "model.safetensors.index.json"), "w") as f:
        json.dump({"metadata": {}, "weight_map": index}, f)


def write_vision_folder(c, path):
    """The same language model inside one that sees: names with a prefix, a tower beside it, and a text_config without what
    its class knows by default."""
    nested = {k: v for k, v in c["config"].items() if k not in ("architectures", "rope_local_base_freq", "rope_theta",
                                                                 "sliding_window_pattern", "tie_word_embeddings")}
    tensors = {"language_model." + n: v for n, v in weights(c).items()}
    tensors["vision_tower.patch.weight"] = ((2, 3, 2, 2), [0.0] * 24)
    config = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "text_config": nested,
              "vision_config": {"hidden_size": 2}}
    write_folder(dict(c, config=config), path, tensors)


# ---- GGUF

LAYER_NAMES = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.qkv_proj": "attn_qkv", "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.gate_up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "post_attention_layernorm": "ffn_norm",
}
GEMMA_NAMES = {"post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
               "post_feedforward_layernorm": "post_ffw_norm"}


def gguf_name(arch, name):
    single = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
              "lm_head.weight": "output.weight"}
    if name in single:
        return single[name]
    _, _, layer, rest = name.split(".", 3)
    stem, kind = rest.rsplit(".", 1)
    names = dict(LAYER_NAMES, **(GEMMA_NAMES if arch == "gemma3" else {}))
    return "blk.%s.%s.%s" % (layer, names[stem], kind)


def interleave(rows, cols, heads, x):
    """Rows i and i + D/2 of each head become neighbours, as llama.cpp's converter does."""
    dim = rows // heads
    out = []
    for h in range(heads):
        for i in range(dim // 2):
            for r in (h * dim + i, h * dim + i + dim // 2):
                out += x[r * cols:(r + 1) * cols]
    return out


def gguf_string(s):
    raw = s.encode() if isinstance(s, str) else s
    return struct.pack("<Q", len(raw)) + raw


def gguf_value(v):
    if isinstance(v, bool):
        return struct.pack("<IB", 7, v)
    if isinstance(v, int):
        return struct.pack("<II", 4, v)
    if isinstance(v, float):
        return struct.pack("<If", 6, v)
    if isinstance(v, str):
        return struct.pack("<I", 8) + gguf_string(v)
    if isinstance(v[0], str):
        return struct.pack("<IIQ", 9, 8, len(v)) + b"".join(map(gguf_string, v))
    return struct.pack("<IIQ", 9, 5, len(v)) + struct.pack("<%di" % len(v), *v)


def gguf_metadata(c):
    g, config = c["gguf"], c["config"]
    a = g["arch"]
    dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    meta = {
        "general.architecture": a, "general.name": "tiny",
        a + ".block_count": config["num_hidden_layers"], a + ".context_length": config["max_position_embeddings"],
        a + ".embedding_length": config["hidden_size"], a + ".feed_forward_length": config["intermediate_size"],
        a + ".attention.head_count": config["num_attention_heads"],
        a + ".attention.head_count_kv": config["num_key_value_heads"],
        a + ".attention.key_length": dim, a + ".attention.value_length": dim,
        a + ".rope.dimension_count": int(dim * config.get("partial_rotary_factor", 1.0)),
        a + ".rope.freq_base": config["rope_theta"], a + ".attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm", "tokenizer.ggml.tokens": GGUF_TOKENS,
        "tokenizer.ggml.token_type": [3 if i < len(SPECIALS) else 1 for i in range(len(GGUF_TOKENS))],
        "tokenizer.ggml.merges": GGUF_MERGES, "tokenizer.ggml.bos_token_id": 0, "tokenizer.ggml.eos_token_id": 1,
    }
    if config.get("sliding_window") and a in ("gemma3", "phi3"):
        meta[a + ".attention.sliding_window"] = config["sliding_window"]
    if "linear" in g:
        meta[a + ".rope.scaling.type"] = "linear"
        meta[a + ".rope.scaling.factor"] = g["linear"]
    return meta


def llama3_divisors(config):
    """rope_freqs.weight, as llama.cpp's converter computes it."""
    import math
    s, dim = config["rope_scaling"], config["head_dim"]
    low, high = (s["original_max_position_embeddings"] / s[k] for k in ("low_freq_factor", "high_freq_factor"))
    out = []
    for i in range(dim // 2):
        wave = 2 * math.pi * config["rope_theta"] ** (2.0 * i / dim)
        if wave < high:
            out.append(1.0)
        elif wave > low:
            out.append(s["factor"])
        else:
            smooth = (s["original_max_position_embeddings"] / wave - s["low_freq_factor"]) / (
                s["high_freq_factor"] - s["low_freq_factor"])
            out.append(1 / ((1 - smooth) / s["factor"] + smooth))
    return out


def write_gguf(c, path):
    g, config = c["gguf"], c["config"]
    tensors = {}
    for name, (shape, x) in weights(c).items():
        if g["arch"] == "llama" and (".q_proj.w" in name or ".k_proj.w" in name):
            heads = config["num_attention_heads" if ".q_proj" in name else "num_key_value_heads"]
            x = interleave(shape[0], shape[1], heads, x)
        if g["arch"] == "gemma3" and "norm.weight" in name:
            x = [v + 1.0 for v in x]
        tensors[gguf_name(g["arch"], name)] = (shape, x)
    if g.get("llama3"):
        divisors = llama3_divisors(config)
        tensors["rope_freqs.weight"] = ((len(divisors),), divisors)
    meta = gguf_metadata(c)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(meta))
    for key, value in meta.items():
        head += gguf_string(key) + gguf_value(value)
    data = b""
    for name, (shape, x) in tensors.items():
        data += b"\0" * (-len(data) % 32)
        head += gguf_string(name) + struct.pack("<I", len(shape)) + struct.pack("<%dQ" % len(shape), *reversed(shape))
        head += struct.pack("<IQ", 0, len(data))
        data += pack("F32", x)
    with open(path, "wb") as f:
        f.write(head + b"\0" * (-len(head) % 32) + data + b"\0" * (-len(data) % 32))


if __name__ == "__main__":
    import sys
    if len(sys.argv) != 4 or sys.argv[1] not in CASES or sys.argv[2] not in ("folder", "gguf"):
        sys.exit("usage: tiny.py CASE folder|gguf OUT\ncases: " + " ".join(CASES))
    (write_folder if sys.argv[2] == "folder" else write_gguf)(CASES[sys.argv[1]], sys.argv[3])
