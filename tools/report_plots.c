/* Plots of a report: anchors by place, scores by size, perplexity against bits. */
#include <math.h>
#include <stdlib.h>

#include "format/base/checked.h"
#include "tools/identity.h"
#include "tools/plot.h"
#include "tools/report_parts.h"
#include "tools/summary.h"

enum { PLOT_LEFT = 60, PLOT_HEIGHT = 110, PLOT_WIDTH = 560, MOST_BINS = 64 };

typedef struct bars {
    double share[MOST_BINS];
    size_t count;
    double most;
} bars;

/* False where it is no array of shares. */
static bool read_bars(const kvb_json *array, bars *b)
{
    *b = (bars){.count = kvb_json_count(array)};
    if (kvb_json_type_of(array) != KVB_JSON_ARRAY || b->count == 0 || b->count > MOST_BINS)
        return false;
    for (size_t i = 0; i < b->count; i++) {
        b->share[i] = kvb_json_number(kvb_json_at(array, i), NAN);
        if (!(b->share[i] >= 0.0 && b->share[i] <= 1.0))
            return false;
        b->most = fmax(b->most, b->share[i]);
    }
    return b->most > 0.0;
}

/* Labels stand under the left edge of a bar: first + i * step, one in `every`. */
static void put_bars(const bars *b, const char *label, double first, double step, size_t every, FILE *out)
{
    const double width = (double)PLOT_WIDTH / (double)b->count;
    fprintf(out, "<svg viewBox=\"0 0 %d %d\" width=\"%d\" height=\"%d\" role=img aria-label=\"%s\">\n", PLOT_LEFT + PLOT_WIDTH + 40,
            PLOT_HEIGHT + 34, PLOT_LEFT + PLOT_WIDTH + 40, PLOT_HEIGHT + 34, label);
    fprintf(out, "<text x=\"%d\" y=\"12\" text-anchor=end>%.3g %%</text><text x=\"%d\" y=\"%d\" text-anchor=end>0</text>",
            PLOT_LEFT - 6, 100 * b->most, PLOT_LEFT - 6, PLOT_HEIGHT);
    for (size_t i = 0; i < b->count; i++) {
        const double height = (PLOT_HEIGHT - 2) * b->share[i] / b->most, x = PLOT_LEFT + width * (double)i;
        fprintf(out, "<rect class=k x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\"><title>from %g: %.3g %%</title></rect>",
                x, PLOT_HEIGHT - height, width - 2, height, first + step * (double)i, 100 * b->share[i]);
        if (i % every == 0)
            fprintf(out, "<text x=\"%.1f\" y=\"%d\">%g</text>", x, PLOT_HEIGHT + 14, first + step * (double)i);
    }
    fprintf(out, "<text x=\"%d\" y=\"%d\" text-anchor=end>%s</text>\n</svg>\n", PLOT_LEFT + PLOT_WIDTH, PLOT_HEIGHT + 30, label);
}

void kvb_report_put_anchors(const kvb_report *r, FILE *out)
{
    const kvb_json *scores = kvb_meta_find(r->meta, "training.scores");
    const double share = kvb_json_number(kvb_json_get(scores, "anchors"), NAN), ctx = kvb_json_number(kvb_json_get(scores, "ctx"), NAN);
    const double first = kvb_json_number(kvb_json_get(scores, "first_log2"), NAN);
    bars places, sizes;
    if (!(ctx >= 1.0) || !isfinite(share) || !isfinite(first) || !read_bars(kvb_json_get(scores, "anchor_positions"), &places) ||
        !read_bars(kvb_json_get(scores, "distribution"), &sizes))
        return;
    fprintf(out, "<h2>Which tokens matter</h2>\n<p>The %g %% of the calibrated tokens whose keys matter most to attention, head by head: "
                 "where in a chunk of %.0f they stand. Sums over later queries favour early tokens.</p>\n", 100 * share, ctx);
    put_bars(&places, "position in the chunk", 0, ctx / (double)places.count, 2, out);
    fputs("<p>How unequal the tokens are: share of tokens by score over the mean score of their head, each bar twice the one before it; the "
          "first also holds all below.</p>\n", out);
    put_bars(&sizes, "log2 of score over mean", first, 1, 4, out);
}

void kvb_report_put_curve(const kvb_report *r, FILE *out)
{
    kvb_plot_point *point = kvb_alloc_array(r->scores + 1, sizeof *point);
    size_t count = 0;
    double exact = NAN;
    for (size_t i = 0; point != NULL && i < r->scores; i++) {
        const kvb_json *s = r->score[i];
        const kvb_plot_point p = {.x = kvb_json_number(kvb_json_get(s, "bits_effective_128k"), NAN),
                                  .y = kvb_json_number(kvb_json_get(s, "ppl"), NAN),
                                  .label = kvb_json_number(kvb_json_get(s, "bits_nominal"), NAN)};
        exact = kvb_json_number(kvb_json_get(s, "ppl_exact"), exact);
        if (kvb_json_type_of(kvb_json_get(s, "book")) != KVB_JSON_NULL && p.x > 0 && p.y > 0)
            point[count++] = p;
    }
    /* Ascending in bits, as a line needs them. */
    for (size_t i = 1; i < count; i++)
        for (size_t j = i; j > 0 && point[j].x < point[j - 1].x; j--) {
            const kvb_plot_point other = point[j];
            point[j] = point[j - 1];
            point[j - 1] = other;
        }
    const kvb_plot_line line = {.name = "scores above", .point = point, .count = count};
    if (count > 0 && isfinite(exact))
        kvb_plot_write(&(kvb_plot){.title = "Perplexity against bits", .x_label = "effective bits per element at 128K tokens",
                                   .y_label = "perplexity", .base_name = "exact cache", .base = exact, .line = &line, .lines = 1},
                       out);
    free(point);
}
