/* Heat maps of a book, and where a cache's bytes go: inline SVG that follows the page's colours. */
#include <math.h>

#include "tools/report_parts.h"
#include "tools/summary.h"

enum { MAP_WIDTH = 720, MAP_LEFT = 60, LEGEND_STEPS = 6, BYTES_WIDTH = 560, BYTES_ROW = 26 };

/* What a map shows of one codebook; NaN where nothing is known. */
typedef double (*value_fn)(const kvb_book *book, uint32_t layer, uint32_t head, kvb_kind kind);

/* Mean over groups, held out where there is a held-out error. */
static double error_of(const kvb_book *book, uint32_t layer, uint32_t head, kvb_kind kind)
{
    const kvb_codebook *c = kvb_book_codebook(book, layer, head, kind);
    const kvb_quality *q = kvb_book_quality(book, layer, head, kind);
    double sum = 0.0;
    if (c == NULL || q == NULL)
        return NAN;
    for (uint32_t s = 0; s < c->groups; s++)
        sum += (double)(isnan(q[s].heldout_error) ? q[s].train_error : q[s].heldout_error);
    return sum / c->groups;
}

static double bits_of(const kvb_book *book, uint32_t layer, uint32_t head, kvb_kind kind)
{
    const kvb_codebook *c = kvb_book_codebook(book, layer, head, kind);
    return c != NULL ? (double)c->code_bits / c->channels : NAN;
}

typedef struct map {
    const kvb_book *book;
    value_fn value;
    const char *what;
    kvb_kind kind;
    uint32_t layers, heads; /* heads: of the layer with the most */
    double most;            /* over both kinds, so that their maps compare */
    unsigned width, height; /* of a cell */
} map;

static map describe(const kvb_book *book, value_fn value, const char *what)
{
    map m = {.book = book, .value = value, .what = what, .layers = kvb_book_layers(book)};
    for (uint32_t l = 0; l < m.layers; l++) {
        const uint32_t heads = kvb_book_layer(book, l)->kv_heads;
        m.heads = heads > m.heads ? heads : m.heads;
        for (uint32_t i = 0; i < 2 * heads; i++) {
            const double v = value(book, l, i / 2, (kvb_kind)(i % 2));
            m.most = v > m.most ? v : m.most; /* false for NaN */
        }
    }
    m.width = (MAP_WIDTH - MAP_LEFT) / m.layers;
    m.width = m.width > 22 ? 22 : m.width < 4 ? 4 : m.width;
    m.height = m.heads > 16 ? 8 : 18;
    return m;
}

static double shade(const map *m, double value)
{
    return m->most > 0.0 ? 0.08 + 0.92 * value / m->most : 0.08;
}

static const char *class_of(kvb_kind kind)
{
    return kind == KVB_KEY ? "k" : "v";
}

static void put_cell(const map *m, uint32_t layer, uint32_t head, FILE *out)
{
    const double v = m->value(m->book, layer, head, m->kind);
    const unsigned x = MAP_LEFT + layer * m->width, y = head * m->height;
    if (isnan(v))
        fprintf(out, "<rect class=none x=\"%u\" y=\"%u\" width=\"%u\" height=\"%u\"><title>layer %u, head %u: %s</title>"
                     "</rect>\n",
                x, y, m->width - 1, m->height - 1, layer, head,
                kvb_book_codebook(m->book, layer, head, m->kind) != NULL ? "not on record" : "kept exact");
    else
        fprintf(out, "<rect class=%s x=\"%u\" y=\"%u\" width=\"%u\" height=\"%u\" fill-opacity=\"%.3f\"><title>layer %u, "
                     "head %u: %.4g</title></rect>\n",
                class_of(m->kind), x, y, m->width - 1, m->height - 1, shade(m, v), layer, head, v);
}

static void put_axes(const map *m, FILE *out)
{
    const uint32_t every = m->layers > 40 ? 10 : m->layers > 12 ? 5 : 1, heads_every = m->heads > 16 ? 8 : 1;
    for (uint32_t g = 0; g < m->heads; g += heads_every)
        fprintf(out, "<text x=\"%d\" y=\"%u\" text-anchor=end>%s%u</text>", MAP_LEFT - 6,
                g * m->height + m->height / 2 + 4, g == 0 ? "head " : "", g);
    for (uint32_t l = 0; l < m->layers; l += every)
        fprintf(out, "<text x=\"%u\" y=\"%u\" text-anchor=middle>%u</text>", MAP_LEFT + l * m->width + m->width / 2,
                m->heads * m->height + 13, l);
    fprintf(out, "<text x=\"%d\" y=\"%u\" text-anchor=end>layer</text>\n", MAP_LEFT - 6, m->heads * m->height + 13);
}

static void put_legend(const map *m, FILE *out)
{
    const unsigned y = m->heads * m->height + 22;
    fprintf(out, "<text x=\"%d\" y=\"%u\" text-anchor=end>0</text>", MAP_LEFT - 6, y + 10);
    for (int i = 0; i < LEGEND_STEPS; i++)
        fprintf(out, "<rect class=%s x=\"%d\" y=\"%u\" width=\"24\" height=\"10\" fill-opacity=\"%.3f\"/>",
                class_of(m->kind), MAP_LEFT + 24 * i, y, shade(m, m->most * i / (LEGEND_STEPS - 1)));
    fprintf(out, "<text x=\"%d\" y=\"%u\">%.3g</text>\n", MAP_LEFT + 24 * LEGEND_STEPS + 6, y + 10, m->most);
}

static void put_map(map *m, kvb_kind kind, FILE *out)
{
    m->kind = kind;
    const unsigned width = MAP_LEFT + m->layers * m->width + 60, least = MAP_LEFT + 24 * LEGEND_STEPS + 60;
    const unsigned across = width > least ? width : least, down = m->heads * m->height + 36;
    fprintf(out, "<h3>%s of %s</h3>\n<svg viewBox=\"0 0 %u %u\" width=\"%u\" height=\"%u\" role=img aria-label=\"%s of %s, "
                 "layer by head\">\n",
            m->what, kind == KVB_KEY ? "keys" : "values", across, down, across, down, m->what,
            kind == KVB_KEY ? "keys" : "values");
    for (uint32_t l = 0; l < m->layers; l++)
        for (uint32_t g = 0; g < kvb_book_layer(m->book, l)->kv_heads; g++)
            put_cell(m, l, g, out);
    put_axes(m, out);
    put_legend(m, out);
    fputs("</svg>\n", out);
}

void kvb_report_put_maps(const kvb_report *r, FILE *out)
{
    const kvb_book_summary s = kvb_summarise_book(r->book);
    map errors = describe(r->book, error_of, "Error");
    fputs("<h2>Error, layer by head</h2>\n<p>Squared error of what codes decode to, relative to the variance, behind the "
          "book&rsquo;s transform and held out where that is known: 0 is exact, 1 no better than the mean.</p>\n", out);
    put_map(&errors, KVB_KEY, out);
    put_map(&errors, KVB_VALUE, out);
    if (s.uniform[KVB_KEY] && s.uniform[KVB_VALUE] &&
        !(s.rate[KVB_KEY].most > s.rate[KVB_VALUE].most || s.rate[KVB_KEY].most < s.rate[KVB_VALUE].most))
        return;
    map bits = describe(r->book, bits_of, "Bits");
    fputs("<h2>Bits per element, layer by head</h2>\n", out);
    put_map(&bits, KVB_KEY, out);
    put_map(&bits, KVB_VALUE, out);
}

/* --- bytes --- */

static const char *const part_names[] = {"codes", "anchors", "window", "sinks", "index", "codebooks"};
enum { BYTE_PARTS = 6 };

static void put_bytes_row(const kvb_report *r, uint32_t tokens, const char *label, unsigned y, double scale, FILE *out)
{
    const kvb_policy policy = kvb_book_policy(r->book);
    const kvb_cache_bytes b = kvb_cache_predict_bytes(r->book, &policy, tokens);
    const uint64_t part[BYTE_PARTS] = {b.codes, b.anchors, b.window, b.sinks, b.index, b.codebooks};
    double x = MAP_LEFT, sum = 0.0;
    fprintf(out, "<text x=\"%d\" y=\"%u\" text-anchor=end>%s</text>", MAP_LEFT - 6, y + 13, label);
    for (int i = 0; i < BYTE_PARTS; i++) {
        const double bits = 8.0 * (double)part[i] / (double)b.elements, width = bits * scale;
        sum += bits;
        if (part[i] == 0)
            continue;
        fprintf(out, "<rect class=p%d x=\"%.1f\" y=\"%u\" width=\"%.1f\" height=\"16\"><title>%s: %.3f bits</title></rect>", i,
                x, y, width, part_names[i], bits);
        x += width;
    }
    fprintf(out, "<text x=\"%.1f\" y=\"%u\">%.3f bits</text>\n", x + 6, y + 13, sum);
}

void kvb_report_put_bytes(const kvb_report *r, FILE *out)
{
    static const struct {
        uint32_t tokens;
        const char *label;
    } rows[] = {{KVB_CTX_2K, "2K"}, {KVB_CTX_32K, "32K"}, {KVB_CTX_128K, "128K"}};
    const kvb_policy policy = kvb_book_policy(r->book);
    double most = 0.0;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        most = fmax(most, kvb_effective_bits(r->book, &policy, rows[i].tokens));
    fprintf(out, "<h2>Where the bits go</h2>\n<p>Bits per element of a cache of so many tokens, by what holds them. Half floats "
                 "would take 16.</p>\n<svg viewBox=\"0 0 %d %d\" width=\"%d\" height=\"%d\" role=img aria-label=\"effective "
                 "bits\">\n",
            MAP_WIDTH, 3 * BYTES_ROW + 22, MAP_WIDTH, 3 * BYTES_ROW + 22);
    for (unsigned i = 0; i < sizeof rows / sizeof *rows; i++)
        put_bytes_row(r, rows[i].tokens, rows[i].label, i * BYTES_ROW, BYTES_WIDTH / fmax(most, 1e-9), out);
    for (int i = 0; i < BYTE_PARTS; i++)
        fprintf(out, "<rect class=p%d x=\"%d\" y=\"%d\" width=\"10\" height=\"10\"/><text x=\"%d\" y=\"%d\">%s</text>", i,
                MAP_LEFT + 95 * i, 3 * BYTES_ROW + 6, MAP_LEFT + 95 * i + 15, 3 * BYTES_ROW + 15, part_names[i]);
    fputs("</svg>\n", out);
}
