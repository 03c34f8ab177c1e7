"""kvbook.hf against the command on the same tiny models: geometry, captures, and books as caches of transformers."""
import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import kvbook  # noqa: E402
import kvbook.hf  # noqa: E402

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "tests", "reference"))
from tiny import CASES, write_folder  # noqa: E402

COMMAND = os.path.join(os.environ["KVB_BUILD"], "kvbook")
CTX, CHUNKS = 48, 4
ALLOW = ["--allow-model-mismatch", "--allow-tokenizer-mismatch"]
torch.set_num_threads(1)


def run(*words):
    done = subprocess.run([COMMAND, *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


class Case:
    """A tiny model as a folder, in transformers, and captured both ways."""

    def __init__(self, name, folder):
        self.folder = folder
        write_folder(CASES[name], folder)
        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=os.path.join(folder, "tokenizer.json"))
        rng = np.random.default_rng(1)
        self.text = " ".join("".join(chr(97 + c) for c in rng.integers(26, size=rng.integers(1, 6))) for _ in range(600))
        self.text_file = os.path.join(folder, "text.txt")
        open(self.text_file, "w").write(self.text)
        self.own, self.theirs = os.path.join(folder, "own.kvc"), os.path.join(folder, "theirs.kvc")
        run("capture", "--model", folder, "--text", self.text_file, "--ctx", CTX, "--chunks", CHUNKS, "--no-bos", "-q", "-o",
            self.own)
        kvbook.hf.capture(self.model, self.tokenizer, self.text, self.theirs, ctx=CTX, chunks=CHUNKS, bos=False)
        self.ids = self.tokenizer(self.text, add_special_tokens=False)["input_ids"]

    def book(self, *flags):
        path = os.path.join(self.folder, "book.kvb")
        run("train", self.theirs, *flags, "-q", "-o", path)
        return path


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    made = {}
    return lambda name: made.setdefault(name, None) or made.update({name: Case(name, str(tmp_path_factory.mktemp(name)))}) \
        or made[name]


@pytest.mark.parametrize("name", sorted(CASES))
def test_capture_is_that_of_the_command(cases, name):
    """Geometry to the last bit, because `eval` compares it so; what is drawn at random only in what it means."""
    case = cases(name)
    a, b = kvbook.Capture(case.own), kvbook.Capture(case.theirs)
    assert b.geometry == a.geometry
    assert set(b.tensors) == {tensor for tensor in a.tensors if "sensitivity" not in tensor}
    for tensor in b.tensors:
        x = a.tensors[tensor].astype(np.float64)
        y = b.tensors[tensor].astype(np.float64)
        if tensor.endswith("moment_relative"):
            np.testing.assert_allclose(np.trace(y, axis1=1, axis2=2), np.trace(x, axis1=1, axis2=2), rtol=1e-3)
        else:
            np.testing.assert_allclose(y, x, rtol=2e-3, atol=2e-3 * np.abs(x).max())


def test_relative_moment_means_what_the_format_says():
    """Of one query [1, 0] seen from all distances at base 1: its pair has turned by every whole number of radians up to i."""
    from kvbook.hf._capture import _Layer
    shape = {"heads": 1, "kv_heads": 1, "head_dim": 2, "kind": "full", "rope_style": "half", "rope_dims": 2,
             "rope_base": 1.0, "attention_scale": 1.0}
    layer = _Layer(shape)
    q = torch.tensor([[[1.0, 0.0]]]).expand(1, 4, 2)
    layer.add(q, q, q, np.array([7, 1, 4, 2]))  # turned back by 0, 1, 1, 2
    v = np.array([[math.cos(u), -math.sin(u)] for u in (0, 1, 1, 2)])
    np.testing.assert_allclose(layer.tensors()["moment_relative"][0], v.T @ v / 4, atol=1e-6)


def test_train_says_what_such_a_capture_lacks(cases):
    case = cases("llama")
    words = [COMMAND, "train", case.theirs, "--recipe", "best", "--bits", "1", "-q", "-o", os.path.join(case.folder, "no.kvb")]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 6 and "sensitivit" in done.stderr
    case.book("--recipe", "best", "--no-allocate", "--k", "4x16", "--v", "4x16")
    words = [COMMAND, "eval", "--model", case.folder, "--text", case.text_file, "--ctx", str(CTX), "--book",
             case.book("--recipe", "cq", "--k", "4x16", "--v", "4x16")]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 6 and "--allow-" in done.stderr


@pytest.mark.parametrize("name", ["llama", "gemma3", "mistral-sliding", "phi3-partial"])
@pytest.mark.parametrize("policy", [(), ("--anchors", "0", "--window", "0", "--sinks", "0"),
                                    ("--anchors", "20%", "--window", "3", "--sinks", "2")])
def test_cache_predicts_what_eval_says(cases, name, policy):
    """Perplexity over the same tokens, within 1e-3 of the logarithm: a code that rounding turns over is all that differs."""
    case = cases(name)
    path = case.book("--recipe", "antkv", "--k", "4x16", "--v", "4x16", *policy)
    said = json.loads(run("eval", "--model", case.folder, "--text", case.text_file, "--ctx", CTX, "--chunks", 2, "--no-bos",
                          "--book", path, "--json", "-q", *ALLOW).splitlines()[0])
    book = kvbook.Book(path)
    loss = []
    for chunk in range(2):
        ids = torch.tensor([case.ids[chunk * CTX:(chunk + 1) * CTX]])
        with torch.no_grad():
            logits = case.model(ids, past_key_values=kvbook.hf.Cache(book, case.model)).logits[0, :-1]
        loss.append(torch.nn.functional.cross_entropy(logits, ids[0, 1:]).item())
    assert abs(np.mean(loss) - math.log(said["ppl"])) < 1e-3
    assert abs(math.log(said["ppl"]) - math.log(said["ppl_exact"])) > 2e-3 or policy == ()  # codes do matter here


def test_token_by_token_is_the_prompt_at_once(cases):
    case = cases("llama")
    book = kvbook.Book(case.book("--recipe", "antkv", "--k", "4x16", "--v", "4x16", "--window", "4", "--anchors", "10%"))
    ids = torch.tensor([case.ids[:CTX], case.ids[CTX:2 * CTX]])
    one, many = kvbook.hf.Cache(book, case.model), kvbook.hf.Cache(book, case.model)
    with torch.no_grad():
        at_once = case.model(ids, past_key_values=one).logits
        steps = [case.model(ids[:, t:t + 1], past_key_values=many).logits for t in range(CTX)]
    torch.testing.assert_close(torch.cat(steps, 1), at_once, atol=2e-2, rtol=0)
    assert one.get_seq_length() == many.caches[1].length(0) == CTX and one.caches[0].bytes.codes > 0
    key, value, exact = one.caches[0].read(1, 0, CTX - 1)
    assert exact and key.shape == value.shape == (book.layers[1].head_dim,)


def test_a_window_over_everything_is_the_exact_cache_and_generate_runs(cases):
    case = cases("llama3")
    book = kvbook.Book(case.book("--recipe", "antkv", "--k", "4x16", "--v", "4x16"))
    prompt = {"input_ids": torch.tensor([case.ids[:20]]), "attention_mask": torch.ones(1, 20, dtype=torch.long)}
    plain = case.model.generate(**prompt, max_new_tokens=12, do_sample=False, pad_token_id=0)
    wide = kvbook.hf.Cache(book, case.model, kvbook.Policy(window=100))
    assert (case.model.generate(**prompt, past_key_values=wide, max_new_tokens=12, do_sample=False, pad_token_id=0)
            == plain).all()
    assert wide.get_seq_length() == plain.shape[1] - 1
    coded = kvbook.hf.Cache(book, case.model, kvbook.Policy())
    assert case.model.generate(**prompt, past_key_values=coded, max_new_tokens=4, do_sample=False, pad_token_id=0).shape[1] > 20
    # Without a book the model is what it was.
    assert (case.model.generate(**prompt, max_new_tokens=12, do_sample=False, pad_token_id=0) == plain).all()


def test_what_a_cache_cannot_do_is_refused(cases):
    case = cases("llama")
    book = kvbook.Book(case.book("--recipe", "antkv", "--k", "4x16", "--v", "4x16"))
    ids = torch.tensor([case.ids[:8], case.ids[8:16]])
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    with torch.no_grad(), pytest.raises(kvbook.Error, match="padding"):
        case.model(ids, attention_mask=mask, past_key_values=kvbook.hf.Cache(book, case.model))
    with pytest.raises(kvbook.Error, match="greedy"):
        case.model.generate(ids[:1], past_key_values=kvbook.hf.Cache(book, case.model), num_beams=2, max_new_tokens=3,
                            pad_token_id=0)
    with pytest.raises(kvbook.Error, match="layer 0") as error:
        kvbook.hf.Cache(book, cases("llama3").model)
    assert error.value.status == kvbook.Status.MISMATCH
    cache = kvbook.hf.Cache(book, case.model)
    case.model.set_attn_implementation("eager")
    with torch.no_grad(), pytest.raises(kvbook.Error, match="did not attend"):
        case.model(ids, past_key_values=cache)


BASE = dict(vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64)


def test_other_architectures(cases, tmp_path):
    """Ones that kvbook cannot run itself: RoPE on neighbouring channels, on some channels, none at all, YaRN."""
    tokenizer, text = cases("llama").tokenizer, cases("llama").text
    models = {
        "cohere": (transformers.CohereConfig(**BASE), "interleaved", 8),
        "gpt-neox": (transformers.GPTNeoXConfig(**{**BASE, "num_key_value_heads": 4}, rotary_pct=0.5), "half", 4),
        "gpt2": (transformers.GPT2Config(vocab_size=400, n_embd=32, n_layer=2, n_head=4, n_positions=64), "none", None),
        "yarn": (transformers.LlamaConfig(**BASE, rope_theta=10000.0, rope_scaling={
            "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 10000.0}), "half", 8),
    }
    for name, (config, style, dims) in models.items():
        config.vocab_size = 400
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
        path, out = tmp_path / f"{name}.kvc", tmp_path / f"{name}.kvb"
        kvbook.hf.capture(model, tokenizer, text, path, ctx=32, chunks=8)
        found = kvbook.Capture(path).geometry[0]
        assert (found["rope_style"], found.get("rope_dims")) == (style, dims), name
        run("train", path, "--recipe", "antkv", "--k", "4x16", "--v", "4x16", "--window", "100", "-q", "-o", out)
        ids = torch.tensor([cases("llama").ids[:20]])
        with torch.no_grad():
            plain = model(ids).logits
            coded = model(ids, past_key_values=kvbook.hf.Cache(kvbook.Book(out), model)).logits
        torch.testing.assert_close(coded, plain, atol=5e-3, rtol=0, msg=name)  # the window holds half floats


def test_what_books_do_not_know_is_refused(cases, tmp_path):
    tokenizer, text = cases("llama").tokenizer, cases("llama").text
    soft = transformers.AutoModelForCausalLM.from_config(transformers.Gemma2Config(**{**BASE, "head_dim": 8}))
    with pytest.raises(kvbook.Error, match="soft caps"):
        kvbook.hf.capture(soft, tokenizer, text, tmp_path / "a.kvc", ctx=16)
    long = transformers.LlamaConfig(**BASE, rope_scaling={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0})
    with pytest.raises(kvbook.Error, match="length of the text"):
        kvbook.hf.geometry(transformers.AutoModelForCausalLM.from_config(long))
    with pytest.raises(kvbook.Error, match="more text"):
        kvbook.hf.capture(cases("llama").model, tokenizer, "a b", tmp_path / "a.kvc")
    assert not os.listdir(tmp_path)


def test_the_example_runs(cases, tmp_path):
    case = cases("llama")
    example = os.path.join(ROOT, "python", "examples", "transformers_book.py")
    text = tmp_path / "long.txt"
    text.write_text(" ".join([case.text] * 3))
    json.dump({"tokenizer_class": "PreTrainedTokenizerFast"}, open(os.path.join(case.folder, "tokenizer_config.json"), "w"))
    path = os.path.dirname(os.path.abspath(COMMAND)) + os.pathsep + os.environ["PATH"]
    done = subprocess.run([sys.executable, example, case.folder, text], cwd=tmp_path, capture_output=True, text=True,
                          env={**os.environ, "PATH": path})
    assert done.returncode == 0, done.stderr
    assert "coded: perplexity" in done.stdout and "error 0." in done.stdout
