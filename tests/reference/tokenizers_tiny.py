"""Small vocabularies as tokenizer.json, one of each kind that kvbook reads, and GGUF's lists for the byte-level ones."""

SPECIALS = ["<|bos|>", "<|eos|>", "<|user|>"]
SPACE = "\u2581"
LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

# By rank; a space stands for itself here.
MERGES = [" t", "he", " a", "in", " the", "re", "on", "er", " s", "at", " o", "en", " w", " c", "nd", "it", "or", "is", "es",
          " b", "ed", " f", "ing", " p", "ou", " and", "al", "ar", " to", " m", " of", " in", " d", " h", "ic", "le", "as",
          "  ", "12", "\u00e9t", "\n\n"]
PAIRS = {" the": (" t", "he"), "ing": ("in", "g"), " and": (" a", "nd"), " to": (" t", "o"), " of": (" o", "f"),
         " in": (" ", "in")}

TEXTS = [
    "", " ", "the theatre in the wood", "Hello, world! It's 2026: 12345 apples.", "  two  spaces   and three", "\n\n\nlines\r\n",
    "caf\u00e9 \u00e9t\u00e9 na\u00efve", "\u4f60\u597d\uff0c\u4e16\u754c", "emoji \U0001F600 done", "a<|user|>b", "tab\there",
    "We'll SHE'LL don't", " leading", "x\u2581y", "mixed \u0416\u043e\u043f 12 34", "...!!!???", "newline\nand more\n",
    "<think>x</think>  y", "a\n\n\n\n\nb    c",
]


def bytelevel_table():
    """GPT-2's printable character of each byte."""
    keep = list(range(0x21, 0x7F)) + list(range(0xA1, 0xAD)) + list(range(0xAE, 0x100))
    table, hidden = {}, 0
    for b in range(256):
        table[b] = chr(b) if b in keep else chr(256 + hidden)
        hidden += b not in keep
    return table


BYTES = bytelevel_table()


def bytelevel(text):
    return "".join(BYTES[b] for b in text.encode())


def two(merge):
    return PAIRS.get(merge) or (merge[0], merge[1])


def gpt2_parts():
    """Tokens in order of their ids after the special ones, and pairs by rank. Characters of several bytes merge first."""
    tokens = [BYTES[b] for b in range(256)]
    pairs = [(BYTES[0xC3], BYTES[0xA9])]
    for m in MERGES:
        left, right = two(m)
        pairs.append((bytelevel(left), bytelevel(right)))
    return tokens + [l + r for l, r in pairs], pairs


_TOKENS, _PAIRS = gpt2_parts()
GGUF_TOKENS = SPECIALS + _TOKENS
GGUF_MERGES = ["%s %s" % p for p in _PAIRS]


def added(extra=()):
    common = dict(single_word=False, lstrip=False, rstrip=False, normalized=False)
    return [dict(common, id=i, content=s, special=True) for i, s in enumerate(SPECIALS)] + [
        dict(common, id=i, content=s, special=False) for i, s in extra]


def bos_template():
    return {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": SPECIALS[0], "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {SPECIALS[0]: {"id": SPECIALS[0], "ids": [0], "tokens": [SPECIALS[0]]}}}


def whole(normalizer, pre, post, decoder, model, extra=()):
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added(extra), "normalizer": normalizer,
            "pre_tokenizer": pre, "post_processor": post, "decoder": decoder, "model": model}


def bpe(vocab, merges, **more):
    return dict({"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                 "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False},
                vocab={t: i for i, t in enumerate(vocab)}, merges=merges, **more)


def level(regex):
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": regex}


def split(pattern):
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def sequence(*parts):
    return {"type": "Sequence", "pretokenizers": list(parts)}


def smollm():
    pre = sequence({"type": "Digits", "individual_digits": True}, level(True))
    return whole(None, pre, None, level(True), bpe(GGUF_TOKENS, [list(p) for p in _PAIRS]))


def llama3():
    pre = sequence(split(LETTERS + r"\p{N}{1,3}" + REST), level(False))
    post = {"type": "Sequence", "processors": [level(True), bos_template()]}
    return whole(None, pre, post, level(True), dict(bpe(GGUF_TOKENS, GGUF_MERGES), ignore_merges=True))


def qwen2():
    pre = sequence(split(LETTERS + r"\p{N}" + REST), level(False))
    return whole({"type": "NFC"}, pre, level(False), level(False), bpe(GGUF_TOKENS, GGUF_MERGES),
                 extra=[(len(GGUF_TOKENS), "<think>")])


def character_parts():
    """Special tokens, 256 byte tokens, characters, then merged ones; ids of merged tokens are not in order of rank."""
    characters = [SPACE] + [chr(c) for c in range(0x21, 0x7F) if chr(c) not in "~^"] + ["\u00e9"]
    pairs = [tuple(s.replace(" ", SPACE) for s in two(m)) for m in MERGES if "\n" not in m]
    tokens = SPECIALS + ["<0x%02X>" % b for b in range(256)]
    known = set(characters)
    kept = []
    for l, r in pairs:
        if l in known and r in known:
            known.add(l + r)
            kept.append((l, r))
    return tokens + characters + [l + r for l, r in reversed(kept)], kept


def fallback(normalizer, pre, extra=()):
    tokens, pairs = character_parts()
    model = dict(bpe(tokens, [list(p) for p in pairs]), byte_fallback=True, fuse_unk=True, unk_token=SPECIALS[2])
    replace = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    decoder = {"type": "Sequence", "decoders": [replace, {"type": "ByteFallback"}, {"type": "Fuse"}]}
    return whole(normalizer, pre, bos_template(), decoder, model, extra)


def replace_space():
    return {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}


def llama2():
    return fallback({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SPACE}, replace_space()]}, None)


def metaspace():
    return fallback(None, {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "first", "split": False})


def gemma():
    pre = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    first = len(character_parts()[0])
    return fallback(replace_space(), pre, extra=[(first, "\n\n"), (first + 1, "\n\n\n"), (first + 2, "  ")])


TOKENIZERS = {"smollm": smollm, "llama3": llama3, "qwen2": qwen2, "llama2": llama2, "metaspace": metaspace, "gemma": gemma}
