/* What a report says in words: how well the codes are used, and what a reader of the numbers should know. */
#include <math.h>
#include <stdarg.h>

#include "kvbook/kmeans.h"
#include "tools/identity.h"
#include "tools/report_parts.h"
#include "tools/summary.h"

/* Figures over all groups of one kind; NaN or 0 where nothing is on record. */
typedef struct use {
    double usage, usage_least, entropy, bits, train, heldout, error_worst;
    uint64_t groups, held; /* with a record; of these with a held-out error too */
    uint32_t worst_layer, worst_head;
} use;

static void add_group(use *u, const kvb_codebook *c, const kvb_quality *q, uint32_t layer, uint32_t head)
{
    const double error = (double)(isnan(q->heldout_error) ? q->train_error : q->heldout_error);
    u->groups++;
    u->usage += (double)q->usage;
    u->usage_least = fmin(u->usage_least, (double)q->usage);
    u->entropy += (double)q->entropy;
    u->bits += c->code_bits;
    if (!isnan(q->heldout_error) && !isnan(q->train_error)) {
        u->held++;
        u->train += (double)q->train_error;
        u->heldout += (double)q->heldout_error;
    }
    if (error > u->error_worst) {
        u->error_worst = error;
        u->worst_layer = layer;
        u->worst_head = head;
    }
}

static use count_use(const kvb_book *book, kvb_kind kind)
{
    use u = {.usage_least = INFINITY};
    for (uint32_t l = 0; l < kvb_book_layers(book); l++)
        for (uint32_t g = 0; g < kvb_book_layer(book, l)->kv_heads; g++) {
            const kvb_codebook *c = kvb_book_codebook(book, l, g, kind);
            const kvb_quality *q = kvb_book_quality(book, l, g, kind);
            for (uint32_t s = 0; q != NULL && s < c->groups; s++)
                add_group(&u, c, q + s, l, g);
        }
    return u;
}

void kvb_report_put_usage(const kvb_report *r, FILE *out)
{
    static const char *const names[] = {"Keys", "Values"};
    fputs("<h2>Use of the codes</h2>\n<table>\n<tr><th></th><th class=n>Centroids used</th><th class=n>least</th>"
          "<th class=n>Entropy of a code</th><th class=n>of bits</th><th class=n>Held-out error over training error</th></tr>\n",
          out);
    for (int kind = 0; kind < 2; kind++) {
        const use u = count_use(r->book, (kvb_kind)kind);
        const double n = (double)u.groups;
        if (u.groups == 0) {
            fprintf(out, "<tr><td>%s</td><td colspan=5>not on record</td></tr>\n", names[kind]);
            continue;
        }
        fprintf(out, "<tr><td>%s</td><td class=n>%.1f %%</td><td class=n>%.1f %%</td><td class=n>%.2f bits</td>"
                     "<td class=n>%.2f</td>",
                names[kind], 100 * u.usage / n, 100 * u.usage_least, u.entropy / n, u.bits / n);
        if (u.held > 0 && u.train > 0)
            fprintf(out, "<td class=n>%.3f</td></tr>\n", u.heldout / u.train);
        else
            fputs("<td class=n>&ndash;</td></tr>\n", out);
    }
    fputs("</table>\n", out);
}

/* --- notes --- */

typedef struct notes {
    FILE *out;
    unsigned count;
} notes;

/* One sentence or two; numbers and fixed words only, so that nothing needs escaping. */
static void note(notes *n, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void note(notes *n, const char *format, ...)
{
    if (n->count++ == 0)
        fputs("<h2>Worth knowing</h2>\n<ul class=notes>\n", n->out);
    fputs("<li>", n->out);
    va_list args;
    va_start(args, format);
    vfprintf(n->out, format, args);
    va_end(args);
    fputs("</li>\n", n->out);
}

static void note_training(notes *n, const kvb_report *r)
{
    const double points = kvb_json_number(kvb_meta_find(r->meta, "training.quality.points_per_centroid"), NAN);
    const double bad = kvb_json_number(kvb_meta_find(r->meta, "capture.quarantined"), 0);
    if (points < KVB_KMEANS_FEW_POINTS)
        note(n, "Only %.0f training points a centroid, where %d are few: the codebooks fit their sample and not what it stands "
                "for. Calibrate on more text, or with fewer centroids.", points, KVB_KMEANS_FEW_POINTS);
    if (bad > 0)
        note(n, "%.0f rows with a NaN or an infinity were left out of training: look at the model file.", bad);
}

static void note_use(notes *n, const kvb_report *r, kvb_kind kind)
{
    const char *what = kind == KVB_KEY ? "keys" : "values";
    const use u = count_use(r->book, kind);
    if (u.groups == 0) {
        note(n, "There are no quality records of the %s: errors and use of their codebooks are unknown.", what);
        return;
    }
    if (u.usage_least < 0.9)
        note(n, "Some codebook of the %s uses only %.0f %% of its centroids: the others are dead weight. More text, or fewer "
                "centroids.", what, 100 * u.usage_least);
    if (u.held > 0 && u.train > 0 && u.heldout > 1.1 * u.train)
        note(n, "Held-out %s have %.0f %% more error than those trained on: the codebooks fit their text too closely. Calibrate on "
                "more text, of more kinds.", what, 100 * (u.heldout / u.train - 1));
    if (u.error_worst >= 0.9)
        note(n, "The worst group of the %s, in layer %u, head %u, is coded hardly better than by its mean (error %.2f).", what,
             u.worst_layer, u.worst_head, u.error_worst);
    if (u.bits > 0 && u.entropy < 0.85 * u.bits)
        note(n, "Codes of the %s carry %.0f %% of the bits they take (entropy): other shapes would use them better.", what,
             100 * u.entropy / u.bits);
}

static void note_policy(notes *n, const kvb_report *r)
{
    const kvb_policy policy = kvb_book_policy(r->book);
    const kvb_cache_bytes b = kvb_cache_predict_bytes(r->book, &policy, 2048);
    const kvb_book_summary s = kvb_summarise_book(r->book);
    const double share = b.total > 0 ? (double)b.codebooks / (double)b.total : 0;
    if (policy.window == 0 && policy.sinks == 0 && !(policy.anchor_fraction > 0))
        note(n, "The book&rsquo;s policy keeps nothing exact. A window of recent tokens and one per cent of anchors cost few bits at "
                "long contexts and save much of the error.");
    if (share > 0.2)
        note(n, "At 2K tokens %.0f %% of a cache&rsquo;s bytes are the codebooks themselves. One copy serves all sequences of a "
                "server; for one short sequence this is a heavy book.", 100 * share);
    if (s.layers_exact > 0)
        note(n, "%u of %u layers have no codebooks: they stay exact.", s.layers_exact, kvb_book_layers(r->book));
}

static void note_scores(notes *n, const kvb_report *r)
{
    for (size_t i = 0; i < r->scores; i++) {
        const double ppl = kvb_json_number(kvb_json_get(r->score[i], "ppl"), NAN);
        const double exact = kvb_json_number(kvb_json_get(r->score[i], "ppl_exact"), NAN);
        if (ppl > 1.1 * exact)
            note(n, "In line %zu of the scores the perplexity is %.0f %% above that of the exact cache: expect to see it in what the "
                    "model writes.", i + 1, 100 * (ppl / exact - 1));
    }
}

void kvb_report_put_notes(const kvb_report *r, FILE *out)
{
    notes n = {.out = out};
    note_training(&n, r);
    note_use(&n, r, KVB_KEY);
    note_use(&n, r, KVB_VALUE);
    note_policy(&n, r);
    note_scores(&n, r);
    if (n.count > 0)
        fputs("</ul>\n", out);
    else
        fputs("<p>Nothing in this book&rsquo;s records calls for a warning.</p>\n", out);
}
