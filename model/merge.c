#include "model/merge.h"

#include <stdlib.h>

bool kvb_merger_reserve(kvb_merger *m, size_t count)
{
    if (count <= m->symbol_room)
        return true;
    if (count >= KVB_MERGE_END || count > SIZE_MAX / 2 / sizeof *m->symbols)
        return false;
    kvb_symbol *grown = realloc(m->symbols, 2 * count * sizeof *grown);
    if (grown == NULL)
        return false;
    m->symbols = grown;
    m->symbol_room = 2 * count;
    return true;
}

void kvb_merger_free(kvb_merger *m)
{
    free(m->symbols);
    free(m->heap);
    *m = (kvb_merger){0};
}

static bool before(const kvb_candidate *a, const kvb_candidate *b)
{
    return a->priority > b->priority || (!(a->priority < b->priority) && a->left < b->left);
}

static bool push(kvb_merger *m, kvb_candidate c)
{
    if (m->heap_count == m->heap_room) {
        size_t room = m->heap_room ? 2 * m->heap_room : 64;
        kvb_candidate *grown = realloc(m->heap, room * sizeof *grown);
        if (grown == NULL)
            return false;
        m->heap = grown;
        m->heap_room = room;
    }
    size_t at = m->heap_count++;
    for (; at > 0 && before(&c, &m->heap[(at - 1) / 2]); at = (at - 1) / 2)
        m->heap[at] = m->heap[(at - 1) / 2];
    m->heap[at] = c;
    return true;
}

static kvb_candidate pop(kvb_merger *m)
{
    kvb_candidate top = m->heap[0], last = m->heap[--m->heap_count];
    size_t at = 0;
    for (size_t child = 1; child < m->heap_count; child = 2 * at + 1) {
        if (child + 1 < m->heap_count && before(&m->heap[child + 1], &m->heap[child]))
            child++;
        if (!before(&m->heap[child], &last))
            break;
        m->heap[at] = m->heap[child];
        at = child;
    }
    m->heap[at] = last;
    return top;
}

/* Pushes the pair of `left` and its right neighbour where they may merge. */
static bool consider(kvb_merger *m, uint32_t left, kvb_merge_find find, const void *user)
{
    if (left == KVB_MERGE_END || m->symbols[left].next == KVB_MERGE_END)
        return true;
    const kvb_symbol *a = &m->symbols[left], *b = &m->symbols[a->next];
    kvb_candidate c = {.left = left, .right = a->next, .size = a->size + b->size};
    return !find(user, a, b, &c.priority, &c.id) || push(m, c);
}

static void join(kvb_merger *m, const kvb_candidate *c)
{
    kvb_symbol *a = &m->symbols[c->left], *b = &m->symbols[c->right];
    a->size = c->size;
    a->id = c->id;
    a->next = b->next;
    b->size = 0;
    if (a->next != KVB_MERGE_END)
        m->symbols[a->next].prev = c->left;
}

bool kvb_merger_run(kvb_merger *m, size_t count, kvb_merge_find find, const void *user)
{
    m->heap_count = 0;
    for (size_t i = 0; i < count; i++) {
        m->symbols[i].prev = i > 0 ? (uint32_t)(i - 1) : (uint32_t)KVB_MERGE_END;
        m->symbols[i].next = i + 1 < count ? (uint32_t)(i + 1) : (uint32_t)KVB_MERGE_END;
    }
    for (size_t i = 0; i + 1 < count; i++)
        if (!consider(m, (uint32_t)i, find, user))
            return false;
    while (m->heap_count > 0) {
        kvb_candidate c = pop(m);
        const kvb_symbol *a = &m->symbols[c.left], *b = &m->symbols[c.right];
        if (a->size == 0 || b->size == 0 || a->size + b->size != c.size)
            continue;
        join(m, &c);
        if (!consider(m, m->symbols[c.left].prev, find, user) || !consider(m, c.left, find, user))
            return false;
    }
    return true;
}
