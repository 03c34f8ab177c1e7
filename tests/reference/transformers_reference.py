"""What `transformers` and `tokenizers` make of a folder and of a tokenizer.json: float32, eager attention, on the CPU."""
import json
import os
import shutil

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM


def capture(model):
    """Hooks that keep, per layer, keys before RoPE and values [T][G D] (keys after their norm where there is one)."""
    kept = {}

    def keep(key, part=None):
        def hook(module, inputs, output):
            x = output[0].detach().float()
            kept[key] = part(x) if part else x
        return hook

    for l, layer in enumerate(model.model.layers):
        a = layer.self_attn
        if hasattr(a, "qkv_proj"):
            q, kv = a.config.num_attention_heads * a.head_dim, a.config.num_key_value_heads * a.head_dim
            a.qkv_proj.register_forward_hook(
                lambda m, i, o, l=l, q=q, kv=kv: kept.update({(l, "k"): o[0, :, q:q + kv].detach().float(),
                                                              (l, "v"): o[0, :, q + kv:].detach().float()}))
            continue
        a.v_proj.register_forward_hook(keep((l, "v")))
        a.k_proj.register_forward_hook(keep((l, "k")))
        if hasattr(a, "k_norm"):
            a.k_norm.register_forward_hook(keep((l, "normed")))
    return kept


def by_heads(x, heads, dim):
    """[T][G D] to [G][T][D], flat; what a norm of heads gives has heads first or second already."""
    if x.dim() == 3:
        x = x.transpose(0, 1) if x.shape[0] != heads else x
        return x.reshape(heads, -1, dim).flatten().tolist()
    return x.reshape(-1, heads, dim).transpose(0, 1).flatten().tolist()


def run(folder, ids):
    """(L, G, D), logits [T][V] and keys and values of each layer, as lists."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    kept = capture(model)
    with torch.no_grad():
        logits = model(torch.tensor([ids]), use_cache=False).logits[0].float().flatten().tolist()
    config = model.config
    heads, dim = config.num_key_value_heads, model.model.layers[0].self_attn.head_dim
    kv = []
    for l in range(config.num_hidden_layers):
        if (l, "normed") in kept:
            # [T][G][D] or [G][T][D], as the class norms before or after it moves heads to the front.
            x = kept[l, "normed"]
            kv += (x if x.shape[0] == heads and x.shape[1] == len(ids) else x.transpose(0, 1)).flatten().tolist()
        else:
            kv += by_heads(kept[l, "k"], heads, dim)
        kv += by_heads(kept[l, "v"], heads, dim)
    return (config.num_hidden_layers, heads, dim), logits, kv


def resave(folder, out):
    """The folder as this version of `transformers` writes it: its spelling of config.json, its split of the files."""
    dtype = json.load(open(os.path.join(folder, "config.json")))["torch_dtype"]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    model.save_pretrained(out, max_shard_size="100KB")
    shutil.copy(os.path.join(folder, "tokenizer.json"), out)


def tokenise(tokenizer, texts):
    t = Tokenizer.from_str(json.dumps(tokenizer))
    first = t.encode("x").ids[0] == 0 and t.encode("x", add_special_tokens=False).ids[0] != 0
    return {"head": "bos 0 eos 1 wanted %d" % first, "ids": [t.encode(x, add_special_tokens=False).ids for x in texts]}
