"""An engine's block tables as the page tables of kvbook/cuda.h: an adapter for schedulers in the manner of vLLM."""
from __future__ import annotations

from typing import Hashable, NamedTuple, Sequence

import numpy as np
from numpy.typing import NDArray

from ._library import Error, Status


class Batch(NamedTuple):
    """The arrays of a kvb_cuda_batch, int32, in host memory: `length` [B], `slot` [B], `page` [B, sequence_pages]; and its
    number `longest`. Entries of `page` beyond a sequence are 0 and not read."""
    length: NDArray[np.int32]
    slot: NDArray[np.int32]
    page: NDArray[np.int32]
    longest: int


class PageTable:
    """Keeps slots and pages of sequences that a scheduler knows by id, block table and length.

    Where the scheduler's block is a page (`block_tokens` equals `page_tokens`) its block ids are the page ids, and it alone owns
    them. Where blocks are smaller, such as vLLM's 16 tokens, pages are dealt out here as sequences grow: sequence by sequence,
    because a page holds the anchors of one sequence. For the same reason no two sequences may share a block: run the
    scheduler without prefix caching, or fork by computing the prompt again.

    Parameters
    ----------
    slots, pages, page_tokens, sequence_pages : int
        As in kvb_cuda_cache_options.
    block_tokens : int
        Tokens of the scheduler's block: `page_tokens`, or a divisor of it.
    """

    def __init__(self, *, slots: int, pages: int, page_tokens: int, sequence_pages: int, block_tokens: int):
        if page_tokens < 32 or page_tokens & (page_tokens - 1) or block_tokens < 1 or page_tokens % block_tokens:
            raise Error(Status.USAGE, "page_tokens, block_tokens", f"{page_tokens}, {block_tokens}: expected a power of two from 32, "
                        "and a divisor of it")
        self.page_tokens, self.block_tokens, self.sequence_pages = page_tokens, block_tokens, sequence_pages
        self._pages = pages
        self._slots = list(range(slots))[::-1]
        self._free = list(range(pages))[::-1]
        self._slot_of: dict[Hashable, int] = {}
        self._pages_of: dict[Hashable, list[int]] = {}

    def batch(self, ids: Sequence[Hashable], blocks: Sequence[Sequence[int]], lengths: Sequence[int], tokens: int) -> Batch:
        """One step.

        Parameters
        ----------
        ids : sequence of hashable, [B]
            The scheduler's names of the sequences; a new one takes a slot.
        blocks : sequence of sequence of int, [B][blocks of the sequence]
            Its block table with room for the new tokens.
        lengths : sequence of int, [B]
            Tokens before this step.
        tokens : int
            New tokens of each.

        Raises
        ------
        Error
            USAGE where a table is too short or a block belongs to two sequences; MEMORY where slots or pages are used up:
            preempt a sequence, release() it and try again. After an error nothing has changed.
        """
        if not len(ids) == len(blocks) == len(lengths) == len(set(ids)):
            raise Error(Status.USAGE, "ids, blocks, lengths", "of different lengths, or an id stands twice")
        wanted = [-(-(length + tokens) // self.page_tokens) for length in lengths]
        for name, table, length, count in zip(ids, blocks, lengths, wanted):
            if len(table) * self.block_tokens < length + tokens:
                raise Error(Status.USAGE, f"blocks of {name!r}", f"{len(table)} of {self.block_tokens} tokens, too few for "
                            f"{length} + {tokens}")
            if count > self.sequence_pages:
                raise Error(Status.USAGE, f"{name!r}", f"{length} + {tokens} tokens, more than {self.sequence_pages} pages of "
                            f"{self.page_tokens}")
        used = [b for table, length in zip(blocks, lengths) for b in table[:-(-(length + tokens) // self.block_tokens)]]
        if len(set(used)) != len(used):
            raise Error(Status.USAGE, "blocks", "two sequences share a block, but a page belongs to one: switch prefix caching off")
        mine = self.block_tokens == self.page_tokens
        if mine and used and not 0 <= min(used) <= max(used) < self._pages:
            raise Error(Status.USAGE, "blocks", f"ids {min(used)} to {max(used)}, the cache has pages 0 to {self._pages - 1}")
        fresh = [name for name in ids if name not in self._slot_of]
        more = [0 if mine else count - len(self._pages_of.get(name, [])) for name, count in zip(ids, wanted)]
        if len(fresh) > len(self._slots) or sum(max(0, n) for n in more) > len(self._free):
            raise Error(Status.MEMORY, "batch", f"{len(self._slots)} slots and {len(self._free)} pages are free, too few; release() "
                        "a sequence")
        for name in fresh:
            self._slot_of[name], self._pages_of[name] = self._slots.pop(), []
        page = np.zeros((len(ids), self.sequence_pages), np.int32)
        for i, (name, count) in enumerate(zip(ids, wanted)):
            held = list(blocks[i][:count]) if mine else self._pages_of[name]
            while len(held) < count:
                held.append(self._free.pop())
            page[i, :count] = held[:count]
        return Batch(np.asarray(lengths, np.int32), np.asarray([self._slot_of[name] for name in ids], np.int32), page,
                     max((length + tokens for length in lengths), default=0))

    def release(self, name: Hashable) -> None:
        """Gives back what a finished or preempted sequence held; KeyError for an unknown one."""
        self._slots.append(self._slot_of.pop(name))
        self._free += self._pages_of.pop(name)[::-1]
