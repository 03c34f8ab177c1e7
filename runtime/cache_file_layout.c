#include "runtime/cache_file_layout.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "format/base/checked.h"
#include "format/base/cursor.h"
#include "format/base/utf8.h"
#include "runtime/anchor_pool.h"

const char kvb_saved_names[KVB_SAVED_SECTIONS][5] = {"KEPT", "CODE", "ANCH", "GAIN"};

static uint32_t least(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

kvb_saved_counts kvb_saved_count(const kvb_policy *policy, bool coded, uint32_t tokens)
{
    if (!coded)
        return (kvb_saved_counts){.window = tokens};
    kvb_saved_counts n = {.sinks = least(tokens, policy->sinks)};
    n.window = least(tokens - n.sinks, policy->window);
    uint32_t left = tokens - n.sinks - n.window;
    n.anchors = (uint32_t)kvb_pool_capacity(policy->anchor_fraction, left);
    n.coded = left - n.anchors;
    return n;
}

unsigned kvb_saved_parts(const kvb_policy *policy, const kvb_saved_layer *layer, uint32_t tokens,
                         kvb_saved_section section, uint32_t g, kvb_saved_part part[KVB_SAVED_PARTS])
{
    const kvb_saved_counts n = kvb_saved_count(policy, layer->coded, tokens);
    const kvb_saved_rows *r = layer->rows + g;
    const uint32_t half = layer->head_dim * (uint32_t)sizeof(uint16_t);
    switch (section) {
    case KVB_SAVED_KEPT:
        part[0] = part[1] = (kvb_saved_part){n.sinks, half};
        part[2] = (kvb_saved_part){n.window, r->kept[KVB_KEY]};
        part[3] = (kvb_saved_part){n.window, r->kept[KVB_VALUE]};
        part[4] = (kvb_saved_part){n.anchors, r->kept[KVB_KEY]};
        part[5] = (kvb_saved_part){n.anchors, r->kept[KVB_VALUE]};
        return 6;
    case KVB_SAVED_CODE:
        part[0] = (kvb_saved_part){n.coded, r->code[KVB_KEY]};
        part[1] = (kvb_saved_part){n.coded, r->code[KVB_VALUE]};
        return 2;
    case KVB_SAVED_ANCH:
        part[0] = (kvb_saved_part){n.anchors, sizeof(uint32_t)};
        part[1] = (kvb_saved_part){n.anchors, sizeof(float)};
        return 2;
    case KVB_SAVED_GAIN:
        part[0] = (kvb_saved_part){layer->coded && kvb_policy_scores_attention(policy) ? n.window : 0, sizeof(double)};
        return 1;
    }
    return 0;
}

uint64_t kvb_saved_size(const kvb_policy *policy, const kvb_saved_layer *layer, uint32_t tokens,
                        kvb_saved_section section)
{
    kvb_saved_part part[KVB_SAVED_PARTS];
    uint64_t size = 0;
    for (uint32_t g = 0; g < layer->kv_heads; g++) {
        unsigned parts = kvb_saved_parts(policy, layer, tokens, section, g, part);
        for (unsigned i = 0; i < parts; i++)
            size += (uint64_t)part[i].rows * part[i].bytes;
    }
    return size;
}

/* in [rows][bytes] -> out [bytes][rows], a few rows at a time so that they stay in the cache. */
static void transpose(const uint8_t *in, size_t rows, size_t bytes, uint8_t *out)
{
    enum { BLOCK = 64 };
    for (size_t first = 0; first < rows; first += BLOCK) {
        const size_t last = rows - first < BLOCK ? rows : first + BLOCK;
        for (size_t b = 0; b < bytes; b++)
            for (size_t r = first; r < last; r++)
                out[b * rows + r] = in[r * bytes + b];
    }
}

static void reorder(const kvb_policy *policy, const kvb_saved_layer *layer, uint32_t tokens, kvb_saved_section section,
                    bool to_planes, const uint8_t *in, uint8_t *out)
{
    kvb_saved_part part[KVB_SAVED_PARTS];
    for (uint32_t g = 0; g < layer->kv_heads; g++) {
        unsigned parts = kvb_saved_parts(policy, layer, tokens, section, g, part);
        for (unsigned i = 0; i < parts; i++) {
            const size_t size = (size_t)part[i].rows * part[i].bytes;
            if (to_planes)
                transpose(in, part[i].rows, part[i].bytes, out);
            else
                transpose(in, part[i].bytes, part[i].rows, out);
            in += size;
            out += size;
        }
    }
}

void kvb_saved_to_planes(const kvb_policy *policy, const kvb_saved_layer *layer, uint32_t tokens,
                         kvb_saved_section section, const uint8_t *rows, uint8_t *planes)
{
    reorder(policy, layer, tokens, section, true, rows, planes);
}

void kvb_saved_from_planes(const kvb_policy *policy, const kvb_saved_layer *layer, uint32_t tokens,
                           kvb_saved_section section, const uint8_t *planes, uint8_t *rows)
{
    reorder(policy, layer, tokens, section, false, planes, rows);
}

/* --- content --- */

/* Index of the first half float that is infinite or NaN, or `count`. */
static size_t first_bad_half(const uint8_t *bytes, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if ((bytes[2 * i + 1] & 0x7C) == 0x7C)
            return i;
    return count;
}

static bool kept_problem(const kvb_policy *policy, const kvb_saved_layer *layer, uint32_t g, const uint8_t *bytes,
                         const kvb_saved_part part[], char *problem, size_t size)
{
    static const char *const places[] = {"a sink", "a sink", "the window", "the window", "an anchor", "an anchor"};
    const bool fine = layer->coded && policy->exact == KVB_EXACT_FINE;
    for (unsigned i = 0; i < 6; i++) {
        const size_t halves = fine && i >= 2 ? 0 : (size_t)part[i].rows * layer->head_dim;
        const size_t bad = first_bad_half(bytes, halves);
        if (bad < halves) {
            snprintf(problem, size, "KV head %u: a %s of %s has channel %zu infinite or NaN", g,
                     i % 2 == 0 ? "key" : "value", places[i], bad % layer->head_dim);
            return true;
        }
        bytes += (size_t)part[i].rows * part[i].bytes;
    }
    return false;
}

/* Anchors lie between the sinks and the window, in ascending order. */
static bool anchors_problem(uint32_t g, const uint8_t *bytes, uint32_t count, uint32_t first, uint32_t end,
                            char *problem, size_t size)
{
    kvb_cursor c = kvb_cursor_over(bytes, (size_t)count * (sizeof(uint32_t) + sizeof(float)));
    uint32_t least_next = first;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t position = kvb_cursor_u32(&c);
        if (position < least_next || position >= end) {
            snprintf(problem, size, "KV head %u: anchor %u stands at position %u, expected %u..%u", g, i, position,
                     least_next, end - 1);
            return true;
        }
        least_next = position + 1;
    }
    for (uint32_t i = 0; i < count; i++)
        if (isnan(kvb_cursor_f32(&c))) {
            snprintf(problem, size, "KV head %u: the score of anchor %u is NaN", g, i);
            return true;
        }
    return false;
}

static bool gains_problem(uint32_t g, const uint8_t *bytes, uint32_t count, char *problem, size_t size)
{
    kvb_cursor c = kvb_cursor_over(bytes, (size_t)count * sizeof(double));
    for (uint32_t i = 0; i < count; i++) {
        const double gain = kvb_cursor_f64(&c);
        if (!(gain >= 0.0)) {
            snprintf(problem, size, "KV head %u: token %u of the window has the score %g, expected none below 0", g, i,
                     gain);
            return true;
        }
    }
    return false;
}

bool kvb_saved_problem(const kvb_policy *policy, const kvb_saved_layer *layer, uint32_t tokens,
                       kvb_saved_section section, const uint8_t *rows, char *problem, size_t size)
{
    const kvb_saved_counts n = kvb_saved_count(policy, layer->coded, tokens);
    kvb_saved_part part[KVB_SAVED_PARTS];
    bool bad = false;
    for (uint32_t g = 0; !bad && g < layer->kv_heads; g++) {
        unsigned parts = kvb_saved_parts(policy, layer, tokens, section, g, part);
        if (section == KVB_SAVED_KEPT)
            bad = kept_problem(policy, layer, g, rows, part, problem, size);
        else if (section == KVB_SAVED_ANCH)
            bad = anchors_problem(g, rows, n.anchors, n.sinks, tokens - n.window, problem, size);
        else if (section == KVB_SAVED_GAIN)
            bad = gains_problem(g, rows, part[0].rows, problem, size);
        for (unsigned i = 0; i < parts; i++)
            rows += (size_t)part[i].rows * part[i].bytes;
    }
    return bad;
}

bool kvb_saved_name_problem(const char *name, size_t size, char *problem, size_t room)
{
    if (size < 1 || size > KVB_PROMPT_NAME_MOST) {
        snprintf(problem, room, "a prompt's name of %zu bytes, expected 1..%d", size, KVB_PROMPT_NAME_MOST);
        return true;
    }
    const uint8_t *at = (const uint8_t *)name;
    for (size_t left = size, n; left > 0; left -= n, at += n) {
        n = kvb_utf8_length(at, left);
        if (n == 0 || *at < 0x20 || *at == 0x7F) {
            snprintf(problem, room, "a prompt's name with a byte %02x, expected UTF-8 without control characters", *at);
            return true;
        }
    }
    return false;
}

char *kvb_saved_copy(const char *text)
{
    const size_t size = strlen(text) + 1;
    char *copy = kvb_alloc_array(size, 1);
    if (copy != NULL)
        memcpy(copy, text, size);
    return copy;
}
