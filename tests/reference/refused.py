#!/usr/bin/env python3
"""Folders with one thing wrong, and what must be said about it. refused.py [--build BUILD]: "ok ..." or "FAIL ..." lines."""
import argparse
import copy
import json
import os
import struct
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
from tiny import CASES, weights, write_folder, write_safetensors  # noqa: E402


def edit(path, change):
    with open(path) as f:
        value = json.load(f)
    change(value)
    with open(path, "w") as f:
        json.dump(value, f)


def config(**changes):
    """Sets keys of config.json; None removes one."""
    def breaker(folder, c):
        def change(value):
            for key, v in changes.items():
                value.pop(key, None)
                if v is not None:
                    value[key] = v
        edit(os.path.join(folder, "config.json"), change)
    return breaker


def tokenizer(change):
    return lambda folder, c: edit(os.path.join(folder, "tokenizer.json"), change)


def tensors(change):
    """Changes {name: (shape, floats)} and writes the file again."""
    def breaker(folder, c):
        t = dict(weights(c))
        change(t)
        write_safetensors(os.path.join(folder, "model.safetensors"), c["dtype"], t)
    return breaker


def index(change):
    return lambda folder, c: edit(os.path.join(folder, "model.safetensors.index.json"), lambda v: change(v["weight_map"]))


def remove(name):
    return lambda folder, c: os.remove(os.path.join(folder, name))


def text(name, content):
    def breaker(folder, c):
        with open(os.path.join(folder, name), "w") as f:
            f.write(content)
    return breaker


def as_f8(folder, c):
    """The first tensor claims a type of one byte."""
    name = "model.norm.weight"
    header = json.dumps({name: {"dtype": "F8_E4M3", "shape": [32], "data_offsets": [0, 32]}}).encode()
    with open(os.path.join(folder, "model.safetensors"), "wb") as f:
        f.write(struct.pack("<Q", len(header)) + header + bytes(32))


def drop(name):
    return tensors(lambda t: t.pop(name))


def put(name, shape):
    size = shape[0] * (shape[1] if len(shape) > 1 else 1)
    return tensors(lambda t: t.update({name: (shape, [0.5] * size)}))


def nan(name):
    def change(t):
        shape, x = t[name]
        t[name] = (shape, [float("nan")] + x[1:])
    return tensors(change)


def set_in(*path_and_value):
    *path, value = path_and_value

    def change(v):
        for key in path[:-1]:
            v = v[key]
        v[path[-1]] = value
    return change


L, S = "model.layers.1.", "model-00002-of-00003.safetensors"
REFUSED = [
    # case, what is broken, words that must be said
    ("llama", remove("config.json"), "a folder without config.json"),
    ("llama", text("config.json", "{"), "JSON, line 1"),
    ("llama", text("config.json", "[]"), "no JSON object"),
    ("llama", config(architectures=["GPT2LMHeadModel"]), '"GPT2LMHeadModel" is not supported; these are: LlamaForCausalLM, '
     "MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, Gemma3ForCausalLM, Gemma3ForConditionalGeneration, Phi3ForCausalLM"),
    ("llama", config(architectures=None), 'architecture "" is not supported'),
    ("llama", config(num_hidden_layers=None), "num_hidden_layers is missing"),
    ("llama", config(hidden_size=-1), "hidden_size is missing or not a positive"),
    ("llama", config(num_hidden_layers=5000), "at most 1024"),
    ("llama", config(num_key_value_heads=3), "4 query heads are not a multiple of 3 KV heads"),
    ("mistral", config(num_key_value_heads=None), "num_key_value_heads is missing"),
    ("llama", config(hidden_size=30), "hidden_size 30 is not a multiple of 4 heads"),
    ("llama", config(rms_norm_eps=0), "rms_norm_eps is missing or not a positive"),
    ("llama", config(rope_theta=-5), "RoPE base -5"),
    ("llama", config(partial_rotary_factor=0.5), "RoPE over 4 of 8 channels: llama models rotate all"),
    ("phi3-partial", config(partial_rotary_factor=1.5), "partial_rotary_factor 1.5 is not in"),
    ("phi3-partial", config(partial_rotary_factor=0.2), "RoPE over 3 channels, expected an even number"),
    ("llama", config(rope_scaling={"rope_type": "yarn", "factor": 4.0}), '"yarn" is not supported (default, linear and llama3 are)'),
    ("phi3", config(rope_scaling={"type": "longrope"}), '"longrope" is not supported'),
    ("llama", config(rope_scaling={"type": "linear", "factor": 2.0, "warp": 3}), 'unknown key "warp"'),
    ("llama", config(rope_scaling={"type": "linear"}), "factor is missing"),
    ("llama", config(rope_scaling={"type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0,
                                   "original_max_position_embeddings": 32}), "high_freq_factor 1 is not above"),
    ("llama", config(attention_bias=True), "attention_bias is set: this feature is not supported"),
    ("llama", config(mlp_bias=True), "mlp_bias is set"),
    ("gemma3", config(final_logit_softcapping=30.0), "final_logit_softcapping is set"),
    ("llama", config(quantization_config={"quant_method": "awq"}), "quantization_config is set"),
    ("llama", config(hidden_act="relu"), 'the activation is "relu": llama models have silu'),
    ("gemma3", config(hidden_activation="gelu"), 'the activation is "gelu": gemma3 models have gelu_pytorch_tanh'),
    ("gemma3", config(sliding_window=None), "sliding_window is missing"),
    ("gemma3", config(layer_types=["full_attention"] * 3), "layer_types is not a list of 7 names"),
    ("gemma3", config(layer_types=["chunked_attention"] * 7), '"chunked_attention": full_attention and sliding_attention are'),
    ("llama", remove("model.safetensors"), "neither model.safetensors nor model.safetensors.index.json"),
    ("llama", text("model.safetensors", "x"), "model.safetensors"),
    ("llama", as_f8, "has type F8_E4M3, which cannot be read"),
    ("llama", drop(L + "self_attn.k_proj.weight"), "tensor model.layers.1.self_attn.k_proj.weight is missing"),
    ("llama", drop("model.embed_tokens.weight"), "embed_tokens.weight is missing"),
    ("llama", drop("model.norm.weight"), "tensor model.norm.weight is missing"),
    ("llama3", drop("lm_head.weight"), "lm_head.weight is missing, and config.json does not tie"),
    ("qwen2", drop(L + "self_attn.q_proj.bias"), "q_proj.bias is missing"),
    ("qwen3", drop(L + "self_attn.k_norm.weight"), "k_norm.weight is missing"),
    ("gemma3", drop(L + "post_feedforward_layernorm.weight"), "post_feedforward_layernorm.weight is missing"),
    ("phi3", drop(L + "self_attn.qkv_proj.weight"), "qkv_proj.weight is missing"),
    ("llama", put(L + "self_attn.k_proj.weight", (24, 32)), "k_proj.weight has shape 24 x 32, expected 16 x 32"),
    ("llama", put(L + "self_attn.o_proj.bias", (32,)), "o_proj.bias belongs to a feature that is not supported"),
    ("llama", put(L + "self_attn.q_norm.weight", (8,)), "q_norm.weight belongs to a feature"),
    ("llama", put("model.layers.2.input_layernorm.weight", (32,)), "a plain llama model of 2 layers"),
    ("llama", put("model.adapter.weight", (32,)), "adapter.weight belongs to a feature"),
    ("llama", put("model.layers.01.input_layernorm.weight", (32,)), "layers.01.input"),
    ("qwen2", nan(L + "self_attn.q_proj.bias"), "q_proj.bias: 1 weights are NaN"),
    ("qwen3-shards", remove(S), S + ", which is missing; download all files"),
    ("qwen3-shards", index(lambda m: m.update({"model.norm.weight": "../x.safetensors"})), "which is no file name"),
    ("qwen3-shards", index(lambda m: m.update({"model.nothing": S})), "which does not hold it"),
    ("qwen3-shards", text("model.safetensors.index.json", "{}"), "has no object weight_map"),
    ("llama", remove("tokenizer.json"), "a folder without tokenizer.json"),
    ("llama", text("tokenizer.json", "{}"), 'model.type is ""'),
    ("llama", tokenizer(set_in("model", "type", "Unigram")), 'model.type is "Unigram", which is not supported (BPE is)'),
    ("llama", tokenizer(set_in("model", "merges", 0, "zq z")), "model.merges[0], .*the left token is not in"),
    ("llama", tokenizer(set_in("model", "merges", 0, ["a"])), "model.merges[0] is no pair"),
    ("llama", tokenizer(set_in("model", "merges", None)), "model.merges is missing"),
    ("llama", tokenizer(set_in("model", "vocab", "a", 4000000000)), "model.vocab is no object of ids below"),
    ("llama", tokenizer(set_in("model", "vocab", "a", 5)), "have one id, 5"),
    ("llama", tokenizer(set_in("model", "vocab", "zzz", 500)), "501 tokens in tokenizer.json, 400 rows"),
    ("llama", tokenizer(lambda v: v["model"]["vocab"].pop("a")), "the right token is not in"),
    ("llama", tokenizer(set_in("pre_tokenizer", {"type": "Whitespace"})), "neither byte-level nor with byte_fallback"),
    ("llama", tokenizer(set_in("pre_tokenizer", "pretokenizers", 0, {"type": "Punctuation"})), 'is "Punctuation"'),
    ("qwen2", tokenizer(set_in("pre_tokenizer", "pretokenizers", 0, "pattern", "Regex", "\\w+")), 'is "\\w+", which is not'),
    ("qwen2", tokenizer(set_in("normalizer", {"type": "Lowercase"})), 'normalizer is "Lowercase"'),
    ("qwen2", tokenizer(set_in("model", "ignore_merges", True)), "model.ignore_merges is"),
    ("qwen2", tokenizer(set_in("model", "end_of_word_suffix", "</w>")), 'end_of_word_suffix is "</w>"'),
    ("qwen2", tokenizer(set_in("added_tokens", 3, "id", 306)), '"<think>" has id 306, expected 301'),
    ("mistral", tokenizer(lambda v: v["model"]["vocab"].pop("<0x41>")), "no byte token <0x41>"),
    ("mistral", tokenizer(set_in("normalizer", None)), "needs spaces replaced"),
    ("mistral-sliding", tokenizer(set_in("pre_tokenizer", "split", True)), 'split is "true"'),
    ("mistral-sliding", tokenizer(set_in("pre_tokenizer", "prepend_scheme", "last")), 'prepend_scheme is "last"'),
]


def said(words, err):
    import re
    return any(re.search(re.escape(w).replace("\\.\\*", ".*"), err) for w in words.split("|"))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", default="build")
    args = parser.parse_args()
    failures = 0
    with tempfile.TemporaryDirectory() as work:
        for i, (name, breaker, words) in enumerate(REFUSED):
            folder, c = os.path.join(work, str(i)), copy.deepcopy(CASES[name])
            write_folder(c, folder)
            breaker(folder, c)
            command = [os.path.join(args.build, "tests", "model_probe"), folder, os.path.join(work, "out"), "1"]
            run = subprocess.run(command, capture_output=True, text=True)
            good = run.returncode == 3 and said(words, run.stderr)
            failures += not good
            label = "refused, %s: %s" % (name, words.split("|")[0][:70])
            print("ok " + label if good else "FAIL %s: exit code %d, %s" % (label, run.returncode, run.stderr.strip()))
    return failures != 0


if __name__ == "__main__":
    sys.exit(main())
