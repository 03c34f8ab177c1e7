"""The page-table adapter against a scheduler that is played here: no page or slot ever holds two sequences."""
import numpy as np
import pytest

import kvbook
from kvbook.paged import PageTable


def blocks_for(tokens, size, pool):
    return [pool.pop() for _ in range(-(-tokens // size))]


@pytest.mark.parametrize("block_tokens", [16, 64])
def test_a_played_scheduler(block_tokens):
    rng = np.random.default_rng(1)
    table = PageTable(slots=4, pages=40, page_tokens=64, sequence_pages=12, block_tokens=block_tokens)
    pool = list(rng.permutation(40 * 64 // block_tokens))
    running, seen = {}, {}  # id: [blocks, length]; id: {page number: page id} as first given
    for step in range(400):
        if len(running) < 4 and rng.random() < 0.2:
            running[step] = [[], 0]
            seen[step] = {}
        for name in [n for n in running if rng.random() < 0.03]:
            pool += running.pop(name)[0]
            if seen.pop(name):
                table.release(name)
        names = [n for n in running if rng.random() < 0.8]
        tokens = int(rng.integers(1, 9))
        for n in names:
            while len(running[n][0]) * block_tokens < running[n][1] + tokens:
                running[n][0].append(int(pool.pop()))
        if not names:
            continue
        batch = table.batch(names, [running[n][0] for n in names], [running[n][1] for n in names], tokens)
        assert batch.page.dtype == batch.slot.dtype == batch.length.dtype == np.int32 and batch.page.shape == (len(names), 12)
        for i, n in enumerate(names):
            running[n][1] += tokens
            for p in range(-(-running[n][1] // 64)):
                assert seen[n].setdefault(p, int(batch.page[i, p])) == batch.page[i, p]  # a page stays where it is
            assert seen[n].setdefault("slot", int(batch.slot[i])) == batch.slot[i]
        held = [page for s in seen.values() for p, page in s.items() if p != "slot"]
        assert len(set(held)) == len(held) and all(0 <= page < 40 for page in held)
        slots = [s["slot"] for s in seen.values() if s]
        assert len(set(slots)) == len(slots)
        assert batch.longest == max(running[n][1] for n in names)


def test_a_block_that_is_a_page_is_that_page():
    table = PageTable(slots=2, pages=8, page_tokens=64, sequence_pages=4, block_tokens=64)
    batch = table.batch(["a", "b"], [[7, 2], [5]], [64, 3], 1)
    assert batch.page.tolist() == [[7, 2, 0, 0], [5, 0, 0, 0]] and batch.length.tolist() == [64, 3] and batch.longest == 65


def test_what_cannot_be_mapped_is_refused_and_changes_nothing():
    with pytest.raises(kvbook.Error, match="divisor"):
        PageTable(slots=1, pages=1, page_tokens=64, sequence_pages=1, block_tokens=48)
    table = PageTable(slots=1, pages=2, page_tokens=64, sequence_pages=3, block_tokens=16)
    with pytest.raises(kvbook.Error, match="prefix caching"):
        table.batch(["a", "b"], [[1], [1]], [0, 0], 1)
    with pytest.raises(kvbook.Error, match="too few for"):
        table.batch(["a"], [[1]], [16], 1)
    with pytest.raises(kvbook.Error, match="release") as error:
        table.batch(["a", "b"], [[1], [2]], [0, 0], 1)
    assert error.value.status == kvbook.Status.MEMORY
    with pytest.raises(kvbook.Error, match="release"):
        table.batch(["a"], [list(range(12))], [190], 1)
    assert table.batch(["a"], [list(range(8))], [120], 8).page[0, :2].tolist() == [0, 1]
    table.release("a")
    assert table.batch(["b"], [[3]], [0], 1).slot.tolist() == [0]
