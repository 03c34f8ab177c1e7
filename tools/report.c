#include "tools/report.h"

#include <math.h>
#include <string.h>

#include "format/base/path.h"
#include "format/base/sha256.h"
#include "tools/identity.h"
#include "tools/output.h"
#include "tools/progress.h"
#include "tools/report_parts.h"
#include "tools/summary.h"

enum { BAR_WIDTH = 460, BAR_HEIGHT = 9, ROW_HEIGHT = 24 };

/* Colours are variables, so that light and dark are one sheet; pictures use them by class. */
static const char style[] =
    ":root{color-scheme:light dark;--back:#fff;--ink:#222;--dim:#555;--line:#ddd;--k:#2b6cb0;--v:#c05621;--none:#bbb;"
    "--p1:#2f855a;--p2:#b7791f;--p3:#805ad5;--p4:#718096;--p5:#97266d;--card:#f6f7f9}"
    "@media(prefers-color-scheme:dark){:root{--back:#16181c;--ink:#e6e6e6;--dim:#a8adb5;--line:#3a3f47;--k:#63a8f0;"
    "--v:#f0935a;--none:#555;--p1:#68d391;--p2:#ecc94b;--p3:#b794f4;--p4:#a0aec0;--p5:#f687b3;--card:#20242a}}"
    "body{font:15px/1.5 system-ui,sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem;color:var(--ink);"
    "background:var(--back)}h1{margin-bottom:.2rem}h2{margin-top:2rem}h3{font-size:1rem;margin:.8rem 0 .3rem}"
    "table{border-collapse:collapse;margin:.5rem 0}td,th{padding:.15rem .7rem .15rem 0;text-align:left;"
    "vertical-align:top}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}th{font-weight:600}"
    "tr+tr td{border-top:1px solid var(--line)}code{font-size:13px}svg{max-width:100%;height:auto}"
    "svg text{font:11px system-ui,sans-serif;fill:var(--dim)}.k,.p0{fill:var(--k)}.v{fill:var(--v)}"
    ".p1{fill:var(--p1)}.p2{fill:var(--p2)}.p3{fill:var(--p3)}.p4{fill:var(--p4)}.p5{fill:var(--p5)}"
    ".band{opacity:.15}.half{opacity:.3}.line{fill:none;stroke-width:2}.line.k{stroke:var(--k)}.line.v{stroke:var(--v)}"
    ".none{fill:none;stroke:var(--none);stroke-dasharray:2}.lead{color:var(--dim)}.notes{background:var(--card);"
    "border-left:4px solid var(--v);padding:.6rem 1rem .6rem 2rem;border-radius:4px}"
    "summary{cursor:pointer;margin:1rem 0}td{overflow-wrap:anywhere}td.n{white-space:nowrap;overflow-wrap:normal}td:first-child{white-space:nowrap}";

static void put_text(FILE *out, const char *text)
{
    for (; *text != '\0'; text++)
        kvb_put_markup(out, *text);
}

static void put_setting(FILE *out, const char *name, const char *value)
{
    fprintf(out, "<tr><td>%s</td><td>", name);
    put_text(out, value);
    fputs("</td></tr>\n", out);
}

static void put_sources(FILE *out, const kvb_json *meta)
{
    const kvb_json *sources = kvb_meta_find(meta, "text.sources");
    char extent[KVB_EXTENT_TEXT];
    fprintf(out, "<tr><td>Calibration text</td><td>%s", kvb_meta_extent(kvb_meta_find(meta, "text"), extent));
    for (size_t i = 0; i < kvb_json_count(sources); i++) {
        fputs("<br>", out);
        put_text(out, kvb_meta_string(kvb_json_at(sources, i), "name"));
        fprintf(out, " <code>%.12s</code>", kvb_meta_string(kvb_json_at(sources, i), "sha256"));
    }
    fputs("</td></tr>\n", out);
}

/* How training went: k-means over the sample, then tuning, each on what it learnt from and on what was held out. */
static void put_training(const kvb_report *r, FILE *out)
{
    const kvb_json *t = kvb_meta_find(r->meta, "training"), *tuning = kvb_meta_find(r->meta, "tuning");
    char text[200];
    const double passes = kvb_json_number(kvb_meta_find(t, "kmeans.iterations"), NAN);
    if (isfinite(passes)) {
        snprintf(text, sizeof text, "%.0f iterations at most over %.0f tokens a head, %.0f points a centroid", passes,
                 kvb_json_number(kvb_json_get(t, "rows"), NAN),
                 kvb_json_number(kvb_meta_find(t, "quality.points_per_centroid"), NAN));
        put_setting(out, "K-means", text);
    }
    const double before = kvb_json_number(kvb_json_get(tuning, "heldout_before"), NAN);
    if (isfinite(before)) {
        snprintf(text, sizeof text, "%.0f passes, %.0f steps: held-out loss %.4g before, %.4g after%s",
                 kvb_json_number(kvb_json_get(tuning, "epochs"), NAN), kvb_json_number(kvb_json_get(tuning, "steps"), NAN), before,
                 kvb_json_number(kvb_json_get(tuning, "heldout_after"), NAN),
                 kvb_json_type_of(kvb_json_get(tuning, "accepted")) == KVB_JSON_BOOL && !kvb_json_bool(kvb_json_get(tuning, "accepted"), true)
                     ? "; not better, so the book stayed as it was" : "");
        put_setting(out, "Tuning", text);
    }
}

static void put_settings(const kvb_report *r, FILE *out)
{
    const kvb_book_summary s = kvb_summarise_book(r->book);
    const kvb_layer *g = kvb_book_layer(r->book, 0);
    const kvb_policy policy = kvb_book_policy(r->book);
    char text[512], frame[32], hex[65], shape[KVB_SHAPE_TEXT];
    fputs("<h2>Settings</h2>\n<table>\n", out);
    snprintf(text, sizeof text, "%.100s (%.40s)", kvb_meta_string(r->meta, "model.name"),
             kvb_meta_string(r->meta, "model.architecture"));
    put_setting(out, "Model", text);
    put_setting(out, "Weights, SHA-256", kvb_meta_string(r->meta, "model.weights_sha256"));
    snprintf(text, sizeof text, "%u layers, %u query heads, %u KV heads of %u channels", kvb_book_layers(r->book),
             g->heads, g->kv_heads, g->head_dim);
    put_setting(out, "Geometry", text);
    put_sources(out, r->meta);
    snprintf(text, sizeof text, "%.60s, %.400s", kvb_meta_string(r->meta, "recipe.name"),
             kvb_meta_string(r->meta, "recipe.source"));
    put_setting(out, "Recipe", text);
    put_training(r, out);
    put_setting(out, "Keys relative to RoPE", kvb_frame_text(g, frame));
    for (int kind = 0; kind < 2; kind++)
        if (s.first[kind] != NULL) {
            snprintf(text, sizeof text, "%s: %u channels, %u centroids%s%s", kvb_codebook_text(s.first[kind], shape),
                     s.first[kind]->channels, s.first[kind]->centroids,
                     s.first[kind]->stages > 1 ? ", sums of one of each stage" : "", s.uniform[kind] ? "" : ", and others");
            put_setting(out, kind == KVB_KEY ? "Keys" : "Values", text);
        }
    for (int kind = 0; kind < 2; kind++)
        if (s.fine[kind] != NULL) {
            snprintf(text, sizeof text, "%u channels, %u centroids%s", s.fine[kind]->channels, s.fine[kind]->centroids,
                     s.fine_uniform[kind] ? "" : ", and others");
            put_setting(out, kind == KVB_KEY ? "Fine keys" : "Fine values", text);
        }
    snprintf(text, sizeof text, "%g nominal; effective %.3f at 2K, %.3f at 32K, %.3f at 128K tokens", s.bits_nominal,
             kvb_effective_bits(r->book, &policy, KVB_CTX_2K), kvb_effective_bits(r->book, &policy, KVB_CTX_32K),
             kvb_effective_bits(r->book, &policy, KVB_CTX_128K));
    put_setting(out, "Bits per element", text);
    put_setting(out, "Kept exact", kvb_policy_text(&policy, text));
    kvb_sha256_hex(kvb_book_id(r->book), hex);
    put_setting(out, "Identity of the book", hex);
    fputs("</table>\n", out);
}

static void put_number(FILE *out, const kvb_json *score, const char *key, int digits, double factor)
{
    double value = kvb_json_number(kvb_json_get(score, key), NAN) * factor;
    if (isfinite(value))
        fprintf(out, "<td class=n>%.*f</td>", digits, value);
    else
        fputs("<td class=n>&ndash;</td>", out);
}

static void put_score(FILE *out, const kvb_json *score)
{
    const kvb_json *policy = kvb_json_get(score, "policy");
    const char *book = kvb_json_string(kvb_json_get(score, "book"), "exact cache");
    fputs("<tr><td>", out);
    put_text(out, kvb_base_name(book));
    if (policy != NULL) {
        const char *form = kvb_json_string(kvb_json_get(policy, "exact"), "");
        fprintf(out, "<br>anchors %g %%, window %.0f, sinks %.0f%s",
                100 * kvb_json_number(kvb_json_get(policy, "anchors"), NAN),
                kvb_json_number(kvb_json_get(policy, "window"), NAN),
                kvb_json_number(kvb_json_get(policy, "sinks"), NAN), strcmp(form, "fine") == 0 ? ", as fine codes" : "");
    }
    fputs("</td>", out);
    put_number(out, score, "ppl", 3, 1);
    put_number(out, score, "nll_delta", 4, 1);
    put_number(out, score, "nll_delta_error", 4, 1);
    put_number(out, score, "kl", 4, 1);
    put_number(out, score, "top1", 2, 100);
    put_number(out, score, "bits_nominal", 3, 1);
    put_number(out, score, "bits_effective", 3, 1);
    put_number(out, score, "bits_effective_128k", 3, 1);
    fputs("</tr>\n", out);
}

/* What a score of a book says of the exact cache beside it. */
static void put_exact(FILE *out, const kvb_json *score)
{
    if (kvb_json_type_of(kvb_json_get(score, "book")) == KVB_JSON_NULL)
        return;
    fputs("<tr><td>exact cache</td>", out);
    put_number(out, score, "ppl_exact", 3, 1);
    for (int i = 0; i < 4; i++)
        fputs("<td class=n>&ndash;</td>", out);
    fputs("<td class=n>16</td><td class=n>16</td><td class=n>16</td></tr>\n", out);
}

static void put_scores(const kvb_report *r, FILE *out)
{
    char extent[KVB_EXTENT_TEXT];
    if (r->scores == 0)
        return;
    fprintf(out,
            "<h2>Scores</h2>\n<p>%s.</p>\n<table>\n"
            "<tr><th>Cache</th><th class=n>Perplexity</th><th class=n>&Delta; NLL</th><th class=n>&plusmn;</th>"
            "<th class=n>KL</th><th class=n>Top-1 %%</th><th class=n>Bits</th><th class=n>Effective</th>"
            "<th class=n>at 128K</th></tr>\n",
            kvb_meta_extent(r->score[0], extent));
    put_exact(out, r->score[0]);
    for (size_t i = 0; i < r->scores; i++)
        put_score(out, r->score[i]);
    fputs("</table>\n", out);
}

/* The held-out error where there is one. */
static double shown_error(kvb_layer_quality q)
{
    return isnan(q.heldout) ? q.train : q.heldout;
}

static void put_bar(FILE *out, unsigned y, const char *class, double error)
{
    if (!isfinite(error))
        return;
    double width = error > 1 ? 1 : error;
    fprintf(out, "<rect class=%s x=\"40\" y=\"%u\" width=\"%.1f\" height=\"%d\"/>", class, y, width * BAR_WIDTH,
            BAR_HEIGHT);
    fprintf(out, "<text x=\"%.1f\" y=\"%u\">%.3f</text>\n", 44 + width * BAR_WIDTH, y + BAR_HEIGHT, error);
}

static void put_errors(const kvb_report *r, FILE *out)
{
    const unsigned layers = kvb_book_layers(r->book);
    fprintf(out,
            "<details><summary>The same by layer, in numbers: keys blue, values orange</summary>\n"
            "<svg width=\"%d\" height=\"%u\" role=\"img\" aria-label=\"error by layer\">\n",
            BAR_WIDTH + 100, layers * ROW_HEIGHT + 4);
    for (unsigned l = 0; l < layers; l++) {
        fprintf(out, "<text x=\"0\" y=\"%u\">%u</text>", l * ROW_HEIGHT + 14, l);
        put_bar(out, l * ROW_HEIGHT + 1, "k", shown_error(kvb_average_quality(r->book, l, KVB_KEY)));
        put_bar(out, l * ROW_HEIGHT + 1 + BAR_HEIGHT + 1, "v", shown_error(kvb_average_quality(r->book, l, KVB_VALUE)));
    }
    fputs("</svg>\n</details>\n", out);
}

/* What this is, for which model, how small: one paragraph. */
static void put_lead(const kvb_report *r, FILE *out)
{
    const kvb_book_summary s = kvb_summarise_book(r->book);
    const kvb_policy policy = kvb_book_policy(r->book);
    char size[32], hex[65];
    kvb_sha256_hex(kvb_book_id(r->book), hex);
    fprintf(out, "<p class=lead>A codebook of %s for the KV cache of <b>", kvb_size_text(kvb_book_file_size(r->book), size));
    put_text(out, kvb_meta_string(r->meta, "model.name"));
    fprintf(out, "</b>: %.4g nominal bits per element, %.3f with all that a cache of 32K tokens holds. Identity <code>%.16s</code>.</p>\n",
            s.bits_nominal, kvb_effective_bits(r->book, &policy, KVB_CTX_32K), hex);
}

void kvb_report_write(const kvb_report *r, FILE *out)
{
    const char *name = kvb_base_name(r->path);
    fputs("<!doctype html>\n<html lang=en><meta charset=utf-8>\n<meta name=viewport content=\"width=device-width\">\n<title>", out);
    put_text(out, name);
    fprintf(out, "</title>\n<style>%s</style>\n<h1>", style);
    put_text(out, name);
    fputs("</h1>\n", out);
    put_lead(r, out);
    kvb_report_put_notes(r, out);
    put_scores(r, out);
    kvb_report_put_curve(r, out);
    kvb_report_put_bytes(r, out);
    kvb_report_put_maps(r, out);
    put_errors(r, out);
    kvb_report_put_training(r, out);
    kvb_report_put_usage(r, out);
    kvb_report_put_anchors(r, out);
    put_settings(r, out);
    fputs("</html>\n", out);
}
