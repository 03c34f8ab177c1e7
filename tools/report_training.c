/* How training went: the errors of all heads by iteration of k-means, keys beside values. */
#include <math.h>

#include "tools/identity.h"
#include "tools/report_parts.h"

enum { CURVE_LEFT = 50, CURVE_GAP = 60, CURVE_WIDTH = 280, CURVE_HEIGHT = 160, CURVE_TOP = 22, QUARTILES = 5, MOST_POINTS = 1001 };
static const char *const quartile_names[QUARTILES] = {"least", "quarter", "median", "three_quarters", "most"};

/* What META says of one kind. */
typedef struct curves {
    const kvb_json *of, *quartile[QUARTILES];
    size_t points;
    double top; /* of the scale */
} curves;

static double value_at(const curves *c, int quartile, size_t i)
{
    return kvb_json_number(kvb_json_at(c->quartile[quartile], i), NAN);
}

/* False where a list is missing, short, or has anything but errors. */
static bool read_curves(const kvb_json *meta, const char *path, curves *c)
{
    *c = (curves){.of = kvb_meta_find(meta, path)};
    for (int q = 0; q < QUARTILES; q++) {
        c->quartile[q] = kvb_json_get(c->of, quartile_names[q]);
        const size_t points = kvb_json_type_of(c->quartile[q]) == KVB_JSON_ARRAY ? kvb_json_count(c->quartile[q]) : 0;
        if (points < 2 || points > MOST_POINTS || (q > 0 && points != c->points))
            return false;
        c->points = points;
        for (size_t i = 0; i < points; i++) {
            if (!(value_at(c, q, i) >= 0.0 && value_at(c, q, i) < 1e9))
                return false;
            c->top = fmax(c->top, value_at(c, q, i));
        }
    }
    return true;
}

static void put_point(const curves *c, int quartile, size_t i, double left, double top, FILE *out)
{
    fprintf(out, "%.1f,%.1f ", left + CURVE_WIDTH * (double)i / (double)(c->points - 1),
            CURVE_TOP + CURVE_HEIGHT * (1.0 - value_at(c, quartile, i) / top));
}

/* The area between two quartiles. */
static void put_band(const curves *c, int low, int high, const char *class, double left, double top, FILE *out)
{
    fprintf(out, "<polygon class=\"%s\" points=\"", class);
    for (size_t i = 0; i < c->points; i++)
        put_point(c, high, i, left, top, out);
    for (size_t i = c->points; i-- > 0;)
        put_point(c, low, i, left, top, out);
    fputs("\"/>\n", out);
}

static void put_kind(const curves *c, int kind, double left, double top, FILE *out)
{
    static const char *const bands[2][3] = {{"band k", "half k", "line k"}, {"band v", "half v", "line v"}};
    const double bottom = CURVE_TOP + CURVE_HEIGHT;
    put_band(c, 0, 4, bands[kind][0], left, top, out);
    put_band(c, 1, 3, bands[kind][1], left, top, out);
    fprintf(out, "<polyline class=\"%s\" points=\"", bands[kind][2]);
    for (size_t i = 0; i < c->points; i++)
        put_point(c, 2, i, left, top, out);
    fprintf(out, "\"><title>median: %.3g at the start, %.3g at the end</title></polyline>\n", value_at(c, 2, 0),
            value_at(c, 2, c->points - 1));
    fprintf(out, "<text x=\"%.0f\" y=\"12\">%s, %.0f heads</text>", left, kind == KVB_KEY ? "Keys" : "Values",
            kvb_json_number(kvb_json_get(c->of, "heads"), 0));
    fprintf(out, "<text x=\"%.0f\" y=\"%d\" text-anchor=end>%.3g</text><text x=\"%.0f\" y=\"%.0f\" text-anchor=end>0</text>", left - 6,
            CURVE_TOP + 10, top, left - 6, bottom);
    fprintf(out, "<text x=\"%.0f\" y=\"%.0f\">0</text><text x=\"%.0f\" y=\"%.0f\" text-anchor=end>%zu iterations</text>\n", left,
            bottom + 14, left + CURVE_WIDTH, bottom + 14, c->points - 1);
}

/* In words: who could have gone on. */
static void put_unsettled(const curves *c, int kind, FILE *out)
{
    const char *what = kind == KVB_KEY ? "keys" : "values";
    const double many = kvb_json_number(kvb_json_get(c->of, "unsettled"), NAN);
    const kvb_json *worst = kvb_json_get(c->of, "worst");
    if (many >= 1)
        fprintf(out, "<p>%.0f of %.0f heads of the %s had not come to rest: their last iteration still took more than 1 %% of the error "
                     "away, most in layer %.0f, head %.0f (%.1f %%). More iterations (<code>kmeans.iterations</code> of the recipe) would "
                     "gain a little.</p>\n",
                many, kvb_json_number(kvb_json_get(c->of, "heads"), NAN), what, kvb_json_number(kvb_json_get(worst, "layer"), NAN),
                kvb_json_number(kvb_json_get(worst, "head"), NAN), 100 * kvb_json_number(kvb_json_get(worst, "change"), NAN));
    else if (isfinite(many))
        fprintf(out, "<p>All heads of the %s had come to rest: the last iteration took at most 1 %% of the error away.</p>\n", what);
}

void kvb_report_put_training(const kvb_report *r, FILE *out)
{
    static const char *const paths[2] = {"training.curves.keys", "training.curves.values"};
    curves c[2];
    bool there[2];
    double top = 0.0;
    for (int kind = 0; kind < 2; kind++) {
        there[kind] = read_curves(r->meta, paths[kind], &c[kind]);
        top = there[kind] ? fmax(top, c[kind].top) : top;
    }
    if (!(top > 0.0))
        return;
    fprintf(out, "<h2>Training</h2>\n<p>Error on the training points by iteration of k-means, relative to the variance: median of the heads, "
                 "the middle half of them, and all. Centroids that move elsewhere may raise it for an iteration.</p>\n"
                 "<svg viewBox=\"0 0 %d %d\" width=\"%d\" height=\"%d\" role=img aria-label=\"training error by iteration\">\n",
            CURVE_LEFT + 2 * CURVE_WIDTH + CURVE_GAP + 4, CURVE_TOP + CURVE_HEIGHT + 22, CURVE_LEFT + 2 * CURVE_WIDTH + CURVE_GAP + 4,
            CURVE_TOP + CURVE_HEIGHT + 22);
    for (int kind = 0; kind < 2; kind++)
        if (there[kind])
            put_kind(&c[kind], kind, CURVE_LEFT + kind * (CURVE_WIDTH + CURVE_GAP), top, out);
    fputs("</svg>\n", out);
    for (int kind = 0; kind < 2; kind++)
        if (there[kind])
            put_unsettled(&c[kind], kind, out);
}
