"""The installed package against the C headers, the golden books, and the command."""
import ctypes
import gc
import os
import subprocess
import sys

import numpy as np
import pytest

import kvbook
from kvbook import _library

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
GOLDEN = os.path.join(ROOT, "tests", "golden")
COMMAND = os.path.join(os.environ["KVB_BUILD"], "kvbook")


@pytest.fixture
def book():
    return kvbook.Book(os.path.join(GOLDEN, "full.kvb"))


def test_structs_are_those_of_the_headers(tmp_path):
    lines = []
    for struct, name in _library.C_NAMES.items():
        lines.append(f'printf("%zu\\n", sizeof({name}));')
        lines += [f'printf("%zu\\n", offsetof({name}, {field[0]}));' for field in struct._fields_]
    source = tmp_path / "layout.c"
    source.write_text('#include <stdio.h>\n#include "kvbook/cache.h"\n#include "kvbook/kmeans.h"\n'
                      "int main(void) {" + "\n".join(lines) + "return 0;}")
    subprocess.check_call(["cc", "-std=c11", "-I", f"{ROOT}/include", "-o", tmp_path / "layout", source])
    found = [int(n) for n in subprocess.check_output([tmp_path / "layout"]).split()]
    expected = []
    for struct in _library.C_NAMES:
        expected += [ctypes.sizeof(struct)] + [getattr(struct, field[0]).offset for field in struct._fields_]
    assert found == expected


def coded(book):
    for i, layer in enumerate(book.layers):
        for head in range(layer.kv_heads):
            for kind in ("key", "value"):
                codebook = book.codebook(i, head, kind)
                if codebook is not None and not codebook.scaled:
                    yield codebook


@pytest.mark.parametrize("name", ["full.kvb", "additive.kvb", "minimal.kvb", "fine.kvb"])
def test_decode_is_the_formula_and_encode_finds_the_nearest(name):
    rng = np.random.default_rng(1)
    tried = 0
    for b in coded(kvbook.Book(os.path.join(GOLDEN, name))):
        table = b.table.astype(np.float32)
        sums = table[:, 0]
        for m in range(1, b.stages):  # code = c_0 + c_1 Km + ...
            sums = (table[:, m, :, None] + sums[:, None]).reshape(b.groups, -1, b.channels)
        x = rng.standard_normal((7, b.head_dim)).astype(np.float32)
        y = x - (0 if b.mean is None else b.mean)
        y = y if b.forward is None else y @ b.forward.T
        distance = ((y.reshape(7, b.groups, 1, b.channels) - sums) ** 2).sum(-1)
        codes = b.encode(x)
        assert codes.shape == (7, b.groups)
        chosen = np.take_along_axis(distance, codes[..., None].astype(int), 2)[..., 0]
        np.testing.assert_allclose(chosen, distance.min(-1), rtol=1e-4, atol=1e-5)
        back = sums[np.arange(b.groups), codes].reshape(7, b.head_dim)
        back = back if b.inverse is None else back @ b.inverse.T
        back = back + (0 if b.mean is None else b.mean)
        np.testing.assert_allclose(b.decode(codes), back, rtol=1e-4, atol=1e-5)
        tried += 1
    assert tried > 0


def test_encode_reads_slices_in_place(book):
    b = next(coded(book))
    wide = np.random.default_rng(2).standard_normal((9, 3 * b.head_dim)).astype(np.float32)
    part = wide[::2, b.head_dim:2 * b.head_dim]
    assert (b.encode(part) == b.encode(part.copy())).all()


def test_views_are_read_only_and_outlive_the_book():
    b = kvbook.Book(os.path.join(GOLDEN, "full.kvb"))
    table = next(coded(b)).table
    before = table.copy()
    del b
    gc.collect()
    assert (table == before).all() and not table.flags.owndata
    with pytest.raises(ValueError):
        table[...] = 0


def test_identity_is_what_the_command_says(book):
    text = subprocess.check_output([COMMAND, "info", "--json", os.path.join(GOLDEN, "full.kvb")], text=True)
    assert book.id in text


def test_mapped_book(tmp_path):
    """Not verified at first it is the same book, and verify() accepts it."""
    assert kvbook.Book(os.path.join(GOLDEN, "full.kvb"), verify=False).id == kvbook.Book(os.path.join(GOLDEN, "full.kvb")).id
    kvbook.Book(os.path.join(GOLDEN, "full.kvb"), verify=False).verify()


def test_damaged_book_is_refused_with_its_place():
    data = bytearray(open(os.path.join(GOLDEN, "full.kvb"), "rb").read())
    assert kvbook.Book(bytes(data)).layers
    data[len(data) // 2] ^= 1
    with pytest.raises(kvbook.Error) as error:
        kvbook.Book(bytes(data))
    assert error.value.status == kvbook.Status.FORMAT and error.value.where


def test_missing_book_is_an_io_error(tmp_path):
    with pytest.raises(kvbook.Error) as error:
        kvbook.Book(tmp_path / "none.kvb")
    assert error.value.status == kvbook.Status.IO and "none.kvb" in str(error.value)


def test_cache_attends_over_what_it_reads(book):
    """Against softmax over what read() gives. Layer with full attention; RoPE by its formula."""
    rng = np.random.default_rng(3)
    i = next(i for i, x in enumerate(book.layers) if x.kind == "full")
    x = book.layers[i]
    cache = kvbook.Cache(book, kvbook.Policy(window=4, sinks=1, anchor_fraction=0.1))
    for _ in range(24):
        cache.append(i, rng.standard_normal((x.kv_heads, x.head_dim)),
                     rng.standard_normal((x.kv_heads, x.head_dim)))
        query = rng.standard_normal((x.heads, x.head_dim)).astype(np.float32)
        out = cache.attend(i, query)
    assert cache.length(i) == 24 and cache.bytes.codes > 0
    exact = 0
    for h in range(x.heads):
        rows = [cache.read(i, h * x.kv_heads // x.heads, p) for p in range(24)]
        exact += sum(row[2] for row in rows)
        keys = np.stack([rope(x, row[0], p) for p, row in enumerate(rows)])
        score = keys @ query[h] * x.attention_scale
        a = np.exp(score - score.max())
        np.testing.assert_allclose(out[h], a / a.sum() @ np.stack([row[1] for row in rows]), rtol=2e-3, atol=2e-4)
    assert 0 < exact < 24 * x.heads


def rope(x, key, position):
    if x.rope_style == "none":
        return key
    c = np.arange(x.rope_dims // 2)
    angle = position * x.rope_base ** (-2.0 * c / x.rope_dims)
    angle = angle if x.rope_factors is None else angle / x.rope_factors
    first, second = (2 * c, 2 * c + 1) if x.rope_style == "interleaved" else (c, c + x.rope_dims // 2)
    turned = key.astype(np.float64)
    turned[first] = key[first] * np.cos(angle) - key[second] * np.sin(angle)
    turned[second] = key[first] * np.sin(angle) + key[second] * np.cos(angle)
    return turned


def test_a_cache_in_a_cycle_is_freed_before_its_book(monkeypatch):
    order = []
    for name in ("kvb_book_close", "kvb_cache_destroy"):
        function = getattr(_library.runtime, name)
        monkeypatch.setattr(_library.runtime, name, lambda p, n=name, f=function: (order.append(n), f(p)))
    book = kvbook.Book(os.path.join(GOLDEN, "minimal.kvb"))
    assert all(x.rope_factors is None for x in book.layers)  # no array that keeps the book open
    book.cycle = [book, kvbook.Cache(book)]
    gc.collect()
    del book
    gc.collect()
    assert order == ["kvb_cache_destroy", "kvb_book_close"]


def test_wrong_shapes_and_indices_are_refused(book):
    cache = kvbook.Cache(book)
    with pytest.raises(kvbook.Error, match="expected"):
        cache.append(0, np.zeros(3), np.zeros(3))
    with pytest.raises(IndexError):
        cache.length(len(book.layers))
    b = next(coded(book))
    with pytest.raises(kvbook.Error, match="expected"):
        b.decode(np.full((1, b.groups), b.centroids))
    with pytest.raises(kvbook.Error) as error:
        b.encode(np.full((1, b.head_dim), np.nan))
    assert error.value.status == kvbook.Status.CHECK


def test_kmeans_finds_clusters_whatever_the_threads():
    rng = np.random.default_rng(4)
    centres = 10 * rng.standard_normal((8, 4))
    x = (centres[rng.integers(8, size=4000)] + 0.01 * rng.standard_normal((4000, 4))).astype(np.float32)
    problems = [x, x[:, :2], x.astype(np.float16)]
    one, two = kvbook.kmeans(problems, 8, threads=1), kvbook.kmeans(problems, 8, threads=2)
    for a, b in zip(one, two):
        assert (a.table == b.table).all()
    (copied,) = kvbook.kmeans([x[:, :2].copy()], 8, seed=1)
    assert (copied.table == one[1].table).all()
    nearest = ((centres[:, None] - one[0].table) ** 2).sum(-1).min(1)
    assert nearest.max() < 1e-3 and one[0].used == 8 and one[0].train_error < 2e-4


def test_kmeans_weights_move_centroids_and_bad_ones_are_refused():
    x = np.array([[0.0], [1.0]])
    (r,) = kvbook.kmeans([x], 1, weights=[[3.0, 1.0]])
    assert r.table[0, 0] == pytest.approx(0.25)
    with pytest.raises(kvbook.Error) as error:
        kvbook.kmeans([x], 1, weights=[[-1.0, 1.0]])
    assert error.value.status == kvbook.Status.CHECK
    with pytest.raises(kvbook.Error, match="2 points"):
        kvbook.kmeans([x], 3)


GEOMETRY = {"heads": 2, "kv_heads": 2, "head_dim": 16, "kind": "full", "rope_style": "half", "rope_dims": 16,
            "rope_base": 10000.0, "attention_scale": 0.25}


def layer(rng, rows=600):
    return {"keys": rng.standard_normal((2, rows, 16)), "values": rng.standard_normal((2, rows, 16)),
            "weight_k": rng.random((2, rows)), "weight_v": rng.random((2, rows)),
            "gradient_k": rng.standard_normal((2, rows, 16)), "gradient_v": rng.standard_normal((2, rows, 16))}


def test_capture_written_here_trains_a_book_that_opens_here(tmp_path):
    rng = np.random.default_rng(5)
    layers = [layer(rng), layer(rng)]
    path = tmp_path / "mine.kvc"
    kvbook.write_capture(path, [GEOMETRY] * 2, layers, row_chunk=np.arange(600) // 100,
                         row_position=np.arange(600) % 100, meta={"tool": "test"})
    back = kvbook.Capture(path)
    assert back.geometry == [GEOMETRY] * 2 and back.meta == {"tool": "test"}
    assert (back.tensors["layers.1.keys"] == layers[1]["keys"].astype(np.float16)).all()
    assert back.tensors["layers.1.gradient_v"].dtype == np.float16
    assert back.tensors["layers.0.weight_k"].dtype == np.float32 and back.tensors["row_position"][101] == 1
    out = tmp_path / "mine.kvb"
    subprocess.check_call([COMMAND, "train", path, "--recipe", "cq", "--bits", "1", "-o", out, "-q"])
    assert kvbook.Book(out).layers[0].head_dim == 16


def test_queries_written_here_serve_a_search_of_clips(tmp_path):
    rng = np.random.default_rng(6)
    one = {**layer(rng, 300), "queries": rng.standard_normal((2, 100, 16))}
    places = {"row_chunk": np.arange(300) // 100, "row_position": np.arange(300) % 100}
    kvbook.write_capture(tmp_path / "q.kvc", [GEOMETRY] * 2, [one, one], **places)
    assert kvbook.Capture(tmp_path / "q.kvc").tensors["layers.1.queries"].shape == (2, 100, 16)
    subprocess.check_call([COMMAND, "train", tmp_path / "q.kvc", "--recipe", "skvq", "--bits", "2", "-o", tmp_path / "q.kvb", "-q"])
    assert kvbook.Book(tmp_path / "q.kvb").codebook(0, 0, "key").scaled
    for wrong in ((1, 100, 16), (2, 301, 16), (2, 99, 16)):
        other = {**one, "queries": np.zeros(wrong)}
        with pytest.raises(kvbook.Error, match="shape"):
            kvbook.write_capture(tmp_path / "w.kvc", [GEOMETRY] * 2, [one, other], **places)


def test_a_book_knows_where_its_anchors_stood(tmp_path):
    """200 rows of which the first two weigh 8 and the rest 1: the 1 % that matters most stands first, and the mean is 1.07."""
    rng = np.random.default_rng(8)
    one = layer(rng, 200)
    one["weight_k"] = np.ones((2, 200))
    one["weight_k"][:, :2] = 8
    kvbook.write_capture(tmp_path / "a.kvc", [GEOMETRY], [one], row_chunk=np.zeros(200), row_position=np.arange(200))
    subprocess.check_call([COMMAND, "train", tmp_path / "a.kvc", "--recipe", "cq", "--k", "4x8", "--v", "4x8", "-o", tmp_path / "a.kvb",
                           "-q"])
    scores = kvbook.Book(tmp_path / "a.kvb").meta["training"]["scores"]
    assert scores["ctx"] == 200 and scores["anchor_positions"] == [1] + [0] * 15
    shares = {scores["first_log2"] + i: x for i, x in enumerate(scores["distribution"]) if x > 0}
    assert shares == {-1: 0.99, 2: 0.01}


def test_capture_refuses_what_training_would(tmp_path):
    rng = np.random.default_rng(6)
    bad = layer(rng)
    bad["keys"][0, 3, 1] = np.nan
    with pytest.raises(kvbook.Error, match="NaN"):
        kvbook.write_capture(tmp_path / "a.kvc", [GEOMETRY], [bad])
    with pytest.raises(kvbook.Error, match="expected"):
        kvbook.write_capture(tmp_path / "a.kvc", [GEOMETRY], [{**layer(rng), "weight_q": np.ones((2, 600))}])
    with pytest.raises(kvbook.Error, match="ascending"):
        kvbook.write_capture(tmp_path / "a.kvc", [GEOMETRY], [layer(rng)], row_chunk=np.zeros(600),
                             row_position=np.zeros(600))
    assert not os.listdir(tmp_path)


def test_tensors_stand_where_they_can_be_used_in_place(tmp_path):
    """Three rows of one channel: 6 bytes, after which a 4-byte tensor would not be aligned."""
    path = tmp_path / "odd.kvc"
    shape = {"heads": 1, "kv_heads": 1, "head_dim": 1, "kind": "full", "rope_style": "none", "attention_scale": 1.0}
    one = {"keys": np.ones((1, 3, 1)), "values": np.ones((1, 3, 1)), "weight_k": np.ones((1, 3))}
    kvbook.write_capture(path, [shape], [one])
    assert all(x.flags.aligned for x in kvbook.Capture(path).tensors.values())


def test_cut_capture_is_refused(tmp_path):
    path = tmp_path / "mine.kvc"
    kvbook.write_capture(path, [GEOMETRY], [layer(np.random.default_rng(7))])
    data = path.read_bytes()
    for keep in (4, 100, len(data) - 1):
        path.write_bytes(data[:keep])
        with pytest.raises(kvbook.Error) as error:
            kvbook.Capture(path)
        assert error.value.status == kvbook.Status.FORMAT


def test_hf_without_torch_says_what_to_install():
    code = "import sys; sys.modules['torch'] = None; import kvbook.hf"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and "pip install './python[hf]'" in done.stderr


def test_the_package_itself_needs_no_torch():
    code = "import sys; sys.modules['torch'] = sys.modules['transformers'] = None; import kvbook; kvbook.Policy()"
    subprocess.check_call([sys.executable, "-c", code])
