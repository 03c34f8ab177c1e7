#include "tools/summary.h"

#include <math.h>
#include <stdio.h>

static void add_fine(kvb_book_summary *s, const kvb_codebook *fine, int kind)
{
    if (fine == NULL)
        return;
    const kvb_codebook *first = s->fine[kind] != NULL ? s->fine[kind] : fine;
    s->fine_uniform[kind] &= fine->channels == first->channels && fine->centroids == first->centroids &&
                             fine->stages == first->stages;
    s->fine[kind] = first;
    s->fine_bytes += (uint64_t)fine->groups * fine->stages * fine->stage_centroids * fine->channels * sizeof *fine->table;
}

kvb_book_summary kvb_summarise_book(const kvb_book *book)
{
    kvb_book_summary s = {.uniform = {true, true}, .fine_uniform = {true, true},
                          .rate = {{NAN, NAN, NAN}, {NAN, NAN, NAN}}};
    double bits[2] = {0}, elements[2] = {0};
    for (uint32_t l = 0; l < kvb_book_layers(book); l++) {
        const kvb_layer *layer = kvb_book_layer(book, l);
        s.layers_exact += layer->kind == KVB_LAYER_UNSUPPORTED;
        for (uint32_t h = 0; h < layer->kv_heads; h++)
            for (int kind = 0; kind < 2; kind++) {
                const kvb_codebook *c = kvb_book_codebook(book, l, h, (kvb_kind)kind);
                if (c == NULL)
                    continue;
                const kvb_codebook *first = s.first[kind] != NULL ? s.first[kind] : c;
                s.uniform[kind] &= c->channels == first->channels && c->centroids == first->centroids &&
                                   c->stages == first->stages;
                s.first[kind] = first;
                s.codebooks++;
                add_fine(&s, kvb_book_fine(book, l, h, (kvb_kind)kind), kind);
                bits[kind] += (double)c->groups * c->code_bits;
                elements[kind] += layer->head_dim;
                const double rate = (double)c->code_bits / c->channels;
                s.rate[kind].least = fmin(s.rate[kind].least, rate);
                s.rate[kind].most = fmax(s.rate[kind].most, rate);
                s.rate[kind].mean = bits[kind] / elements[kind];
            }
    }
    const double all = elements[KVB_KEY] + elements[KVB_VALUE];
    s.bits_nominal = all > 0 ? (bits[KVB_KEY] + bits[KVB_VALUE]) / all : NAN;
    return s;
}

double kvb_effective_bits(const kvb_book *book, const kvb_policy *policy, uint64_t tokens)
{
    if (book == NULL)
        return KVB_EXACT_BITS;
    kvb_cache_bytes b = kvb_cache_predict_bytes(book, policy, tokens);
    return b.elements > 0 ? 8.0 * (double)b.total / (double)b.elements : NAN;
}

kvb_status kvb_check_book_form(const kvb_policy_args *a, const kvb_book *book, const char *path, kvb_error *err)
{
    const kvb_policy policy = kvb_policy_from_args(a, kvb_book_policy(book));
    return kvb_check_exact_form(&policy, kvb_summarise_book(book).fine[KVB_KEY] != NULL, path, err);
}

void kvb_put_effective_bits(kvb_json_writer *w, const kvb_book *book, const kvb_policy *policy)
{
    kvb_json_put_number(w, "bits_effective_2k", kvb_effective_bits(book, policy, KVB_CTX_2K));
    kvb_json_put_number(w, "bits_effective_32k", kvb_effective_bits(book, policy, KVB_CTX_32K));
    kvb_json_put_number(w, "bits_effective_128k", kvb_effective_bits(book, policy, KVB_CTX_128K));
}

kvb_layer_quality kvb_average_quality(const kvb_book *book, uint32_t layer, kvb_kind kind)
{
    kvb_layer_quality q = {0};
    double groups = 0;
    for (uint32_t h = 0; h < kvb_book_layer(book, layer)->kv_heads; h++) {
        const kvb_codebook *c = kvb_book_codebook(book, layer, h, kind);
        const kvb_quality *from = c != NULL ? kvb_book_quality(book, layer, h, kind) : NULL;
        for (uint32_t s = 0; from != NULL && s < c->groups; s++) {
            double error = (double)(isnan(from[s].heldout_error) ? from[s].train_error : from[s].heldout_error);
            q.train += (double)from[s].train_error;
            q.heldout += (double)from[s].heldout_error;
            q.usage += (double)from[s].usage;
            q.entropy += (double)from[s].entropy;
            q.worst = fmax(q.worst, error);
            groups++;
        }
    }
    if (groups == 0)
        return (kvb_layer_quality){NAN, NAN, NAN, NAN, NAN};
    return (kvb_layer_quality){q.train / groups, q.heldout / groups, q.usage / groups, q.entropy / groups, q.worst};
}

kvb_layer_quality kvb_average_book_quality(const kvb_book *book, kvb_kind kind)
{
    kvb_layer_quality sum = {0};
    double layers = 0;
    for (uint32_t l = 0; l < kvb_book_layers(book); l++) {
        kvb_layer_quality q = kvb_average_quality(book, l, kind);
        if (isnan(q.train))
            continue;
        sum.train += q.train;
        sum.heldout += q.heldout;
        sum.usage += q.usage;
        sum.entropy += q.entropy;
        sum.worst = fmax(sum.worst, q.worst);
        layers++;
    }
    if (layers == 0)
        return (kvb_layer_quality){NAN, NAN, NAN, NAN, NAN};
    return (kvb_layer_quality){sum.train / layers, sum.heldout / layers, sum.usage / layers, sum.entropy / layers,
                               sum.worst};
}

const char *kvb_codebook_text(const kvb_codebook *c, char text[KVB_SHAPE_TEXT])
{
    if (c->scaling == NULL)
        return kvb_shape_text(c->channels, c->stage_centroids, c->stages, text);
    const kvb_scaling *s = c->scaling;
    char outliers[32] = "";
    const char *fp8 = s->store == KVB_STORE_FP8 ? ", scales as e4m3" : "", *clips = s->clips != NULL ? ", clips" : "";
    if (s->pool > 0)
        snprintf(outliers, sizeof outliers, ", pools of %u and %u", s->pool, s->spill);
    if (s->outliers > 0)
        snprintf(outliers, sizeof outliers, ", %u outliers", s->outliers);
    if (s->form == KVB_SCALE_FIXED)
        snprintf(text, KVB_SHAPE_TEXT, "%u-bit numbers, a fixed scale of a channel%s", c->code_bits, outliers);
    else if (s->lists > 0)
        snprintf(text, KVB_SHAPE_TEXT, "%u-bit numbers, a scale for each of %u lists of channels%s%s", c->code_bits, s->lists, clips, fp8);
    else
        snprintf(text, KVB_SHAPE_TEXT, "%u-bit numbers, a scale for %u %s%s%s%s", c->code_bits, s->group,
                 s->axis == KVB_AXIS_CHANNEL ? "tokens of a channel" : "channels of a token", outliers, clips, fp8);
    return text;
}

const char *kvb_frame_text(const kvb_layer *layer, char text[32])
{
    if (layer->frame == KVB_FRAME_BLOCK)
        snprintf(text, 32, "block:%u", layer->rope_block);
    else
        snprintf(text, 32, "%s", layer->frame == KVB_FRAME_PRE ? "pre" : "post");
    return text;
}

void kvb_put_policy_members(kvb_json_writer *w, const kvb_policy *policy, const char *protocol)
{
    kvb_json_put_number(w, "anchors", policy->anchor_fraction);
    kvb_json_put_string(w, "score", kvb_score_name(policy->score));
    if (protocol != NULL)
        kvb_json_put_string(w, "protocol", protocol);
    kvb_json_put_u64(w, "window", policy->window);
    kvb_json_put_u64(w, "sinks", policy->sinks);
    kvb_json_put_string(w, "exact", kvb_form_name(policy->exact));
}

void kvb_put_policy(kvb_json_writer *w, const kvb_policy *policy, const char *protocol)
{
    kvb_json_begin_object(w, "policy");
    kvb_put_policy_members(w, policy, protocol);
    kvb_json_end_object(w);
}

const char *kvb_policy_text(const kvb_policy *policy, char text[96])
{
    snprintf(text, 96, "anchors %g %% by %s, window %u, sinks %u%s", policy->anchor_fraction * 100,
             kvb_score_name(policy->score), policy->window, policy->sinks,
             policy->exact == KVB_EXACT_FINE ? ", as fine codes" : "");
    return text;
}
