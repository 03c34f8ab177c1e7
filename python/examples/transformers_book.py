"""From a transformers model to a book, and the book as its cache. Cells (`# %%`) open as a notebook in most editors.

    python transformers_book.py MODEL_FOLDER TEXT.txt

Needs `pip install './python[hf]'` and the command `kvbook` on the PATH."""
import math
import subprocess
import sys

import torch
import transformers

import kvbook
import kvbook.hf

# %% A model and a text: any causal language model that transformers loads, and a text of its kind.
folder, text_file = sys.argv[1:3]
model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
text = open(text_file, encoding="utf-8").read()
ctx = min(512, model.config.max_position_embeddings)

# %% What kvbook sees of it, layer by layer.
for i, layer in enumerate(kvbook.hf.geometry(model)[:2]):
    print(f"layer {i}: {layer}")

# %% Capture the first chunks: keys before RoPE, values, and how much each token matters.
kvbook.hf.capture(model, tokenizer, text, "walk.kvc", ctx=ctx, chunks=4,
                  progress=lambda done, total: print(f"captured {done} of {total} chunks"))
keys = kvbook.Capture("walk.kvc").tensors["layers.0.keys"]
print(f"keys of layer 0: {keys.shape} (heads, tokens, channels)")

# %% Train a book from it: 2 bits a number, 1 % of the tokens and the last 32 exact.
subprocess.run(["kvbook", "train", "walk.kvc", "--recipe", "antkv", "--k", "4x16", "--v", "4x16", "--window", "32",
                "-o", "walk.kvb"], check=True)
book = kvbook.Book("walk.kvb")
print(f"book {book.id[:16]} for {book.meta['model']['name']}, {len(book.layers)} layers")

# %% One codebook by hand: encode, decode, and what is lost.
codebook = book.codebook(0, 0, "key")
rows = keys[0, :100].astype("float32")
lost = ((codebook.decode(codebook.encode(rows)) - rows) ** 2).sum() / ((rows - rows.mean(0)) ** 2).sum()
print(f"keys of layer 0, head 0: {codebook.groups} codes of {codebook.code_bits} bits a token, error {lost:.3f} of the variance")

# %% Perplexity of text after the captured chunks, with the exact cache and with the book.
ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"][4 * ctx:5 * ctx]])
for name, cache in (("exact", None), ("coded", kvbook.hf.Cache(book, model))):
    with torch.no_grad():
        logits = model(ids, past_key_values=cache).logits[0, :-1]
    print(f"{name}: perplexity {math.exp(torch.nn.functional.cross_entropy(logits, ids[0, 1:]).item()):.2f}")
held = cache.caches[0].bytes
print(f"{8 * held.total / held.elements:.2f} bits a number, codebooks included; {8 * held.codes / held.elements:.2f} of codes")

# %% Generate through the book.
prompt = {"input_ids": ids[:, :32], "attention_mask": torch.ones_like(ids[:, :32])}
out = model.generate(**prompt, past_key_values=kvbook.hf.Cache(book, model), max_new_tokens=16, do_sample=False)
print(repr(tokenizer.decode(out[0, 32:])))
