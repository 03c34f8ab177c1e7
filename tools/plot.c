#include "tools/plot.h"

#include <math.h>
#include <stdbool.h>

#include "tools/output.h"

enum { WIDTH = 520, HEIGHT = 340, LEFT = 70, TOP = 44, RIGHT = 180, BOTTOM = 56, MOST_TICKS = 16, COLOURS = 8, SHAPES = 3 };

/* Middle tones of different lightness: they stand out from white and from black. */
static const char *const colours[COLOURS] = {"#2f7fd0", "#e0701b", "#2a9d5b", "#c63d8a", "#8a63d2", "#b8860b", "#17a2b8", "#d0473e"};

typedef struct range {
    double least, most;
} range;

static void put_text(FILE *out, const char *text)
{
    for (; *text != '\0'; text++)
        kvb_put_markup(out, (unsigned char)*text < 0x20 ? ' ' : *text);
}

static bool drawable(const kvb_plot_point *p)
{
    return isfinite(p->x) && isfinite(p->y) && p->x > 0 && p->y > 0;
}

static void widen(range *r, double x)
{
    r->least = fmin(r->least, x);
    r->most = fmax(r->most, x);
}

/* All points with a margin, and never so narrow that rounding decides the picture. */
static range padded(range r, double share)
{
    if (!(r.least <= r.most))
        r = (range){1, 2};
    const double span = fmax(log(r.most / r.least), 0.02);
    return (range){r.least * exp(-share * span), r.most * exp(share * span)};
}

static range range_of(const kvb_plot *plot, bool of_x)
{
    range r = {INFINITY, -INFINITY};
    for (size_t l = 0; l < plot->lines; l++)
        for (size_t i = 0; i < plot->line[l].count; i++) {
            const kvb_plot_point *p = &plot->line[l].point[i];
            if (drawable(p))
                widen(&r, of_x ? p->x : p->y);
        }
    if (!of_x && plot->base > 0 && isfinite(plot->base))
        widen(&r, plot->base);
    return padded(r, 0.06);
}

/* Multiples of 1, 2 or 5 powers of ten where the range is narrow, and 1, 2, 5 of each power where it is wide. */
size_t kvb_plot_ticks(double least, double most, double *tick, size_t room)
{
    size_t count = 0;
    if (most / least < 6.25) { /* 1, 2, 5 could leave one alone */
        const double rough = (most - least) / 6, power = pow(10, floor(log10(rough))), digit = rough / power;
        const double step = power * (digit <= 1 ? 1 : digit <= 2 ? 2 : digit <= 5 ? 5 : 10);
        for (double n = ceil(least / step); n * step <= most && count < room; n++)
            tick[count++] = n * step;
        return count;
    }
    static const double usual[] = {1, 2, 5};
    const bool sparse = most / least > 1e4;
    for (double e = floor(log10(least)); e <= log10(most); e++)
        for (int i = 0; i < (sparse ? 1 : 3); i++) {
            const double x = usual[i] * pow(10, e);
            if (x >= least && x <= most && count < room)
                tick[count++] = x;
        }
    return count;
}

static double at_x(range r, double x)
{
    return WIDTH * log(x / r.least) / log(r.most / r.least);
}

static double at_y(range r, double y)
{
    return HEIGHT * (1 - log(y / r.least) / log(r.most / r.least));
}

static void put_axes(const kvb_plot *plot, range x, range y, FILE *out)
{
    double tick[MOST_TICKS];
    size_t count = kvb_plot_ticks(x.least, x.most, tick, MOST_TICKS);
    for (size_t i = 0; i < count; i++)
        fprintf(out, "<line class=\"grid\" x1=\"%.1f\" x2=\"%.1f\" y1=\"0\" y2=\"%d\"/><text x=\"%.1f\" y=\"%d\" "
                "text-anchor=\"middle\">%.6g</text>\n", at_x(x, tick[i]), at_x(x, tick[i]), HEIGHT, at_x(x, tick[i]), HEIGHT + 18, tick[i]);
    count = kvb_plot_ticks(y.least, y.most, tick, MOST_TICKS);
    for (size_t i = 0; i < count; i++)
        fprintf(out, "<line class=\"grid\" x1=\"0\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\"/><text x=\"-8\" y=\"%.1f\" "
                "text-anchor=\"end\">%.6g</text>\n", WIDTH, at_y(y, tick[i]), at_y(y, tick[i]), at_y(y, tick[i]) + 4, tick[i]);
    fprintf(out, "<rect class=\"frame\" width=\"%d\" height=\"%d\"/>\n<text class=\"title\" x=\"0\" y=\"-16\">", WIDTH, HEIGHT);
    put_text(out, plot->title);
    fprintf(out, "</text>\n<text x=\"%d\" y=\"%d\" text-anchor=\"middle\">", WIDTH / 2, HEIGHT + 42);
    put_text(out, plot->x_label);
    fprintf(out, "</text>\n<text transform=\"translate(-52,%d) rotate(-90)\" text-anchor=\"middle\">", HEIGHT / 2);
    put_text(out, plot->y_label);
    fputs("</text>\n", out);
}

static void put_base(const kvb_plot *plot, range y, FILE *out)
{
    if (!(plot->base > 0) || !isfinite(plot->base))
        return;
    const double at = at_y(y, plot->base);
    fprintf(out, "<line class=\"base\" x1=\"0\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\"/><text x=\"%d\" y=\"%.1f\">", WIDTH, at, at,
            WIDTH + 12, at + 4);
    put_text(out, plot->base_name);
    fprintf(out, " %.3f</text>\n", plot->base);
}

/* Shapes tell lines apart where colours come round again, and for those who see few colours. */
static void put_mark(FILE *out, size_t line, double x, double y)
{
    const char *colour = colours[line % COLOURS];
    switch (line % SHAPES) {
    case 0: fprintf(out, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"4\" fill=\"%s\">", x, y, colour); break;
    case 1: fprintf(out, "<rect x=\"%.1f\" y=\"%.1f\" width=\"8\" height=\"8\" fill=\"%s\">", x - 4, y - 4, colour); break;
    default: fprintf(out, "<path d=\"M%.1f %.1fl5 9h-10z\" fill=\"%s\">", x, y - 5, colour);
    }
}

static void end_mark(FILE *out, size_t line)
{
    static const char *const ends[SHAPES] = {"</circle>\n", "</rect>\n", "</path>\n"};
    fputs(ends[line % SHAPES], out);
}

/* The next drawable point in ascending order after `last`; by index where two have the same x. */
static const kvb_plot_point *next_point(const kvb_plot_line *line, const kvb_plot_point *last)
{
    const kvb_plot_point *best = NULL;
    for (const kvb_plot_point *p = line->point; p < line->point + line->count; p++) {
        const bool after = last == NULL || p->x > last->x || (!(p->x < last->x) && p > last);
        if (drawable(p) && after && (best == NULL || p->x < best->x))
            best = p;
    }
    return best;
}

static void put_line(const kvb_plot_line *line, size_t index, range x, range y, FILE *out)
{
    fprintf(out, "<polyline fill=\"none\" stroke-width=\"2\" stroke=\"%s\" points=\"", colours[index % COLOURS]);
    for (const kvb_plot_point *p = NULL; (p = next_point(line, p)) != NULL;)
        fprintf(out, "%.1f,%.1f ", at_x(x, p->x), at_y(y, p->y));
    fputs("\"/>\n", out);
    for (const kvb_plot_point *p = NULL; (p = next_point(line, p)) != NULL;) {
        put_mark(out, index, at_x(x, p->x), at_y(y, p->y));
        fputs("<title>", out);
        put_text(out, line->name);
        fprintf(out, " at %g: %.3f with %.3f bits</title>", p->label, p->y, p->x);
        end_mark(out, index);
    }
    put_mark(out, index, WIDTH + 18, 8.0 + 18.0 * (double)index);
    end_mark(out, index);
    fprintf(out, "<text x=\"%d\" y=\"%d\">", WIDTH + 30, (int)(12 + 18 * index));
    put_text(out, line->name);
    fputs("</text>\n", out);
}

void kvb_plot_write(const kvb_plot *plot, FILE *out)
{
    const range x = range_of(plot, true), y = range_of(plot, false);
    const int keys = (int)(18 * plot->lines), body = keys > HEIGHT ? keys : HEIGHT;
    fprintf(out, "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" font-family=\"sans-serif\" font-size=\"12\">\n"
            "<style>svg{background:#fff}text{fill:#444}.title{font-weight:bold;font-size:13px}.frame{fill:none;stroke:#999}"
            ".grid{stroke:#ddd}.base{stroke:#666;stroke-dasharray:5 4}@media(prefers-color-scheme:dark){svg{background:#16181c}"
            "text{fill:#c8ccd2}.frame{stroke:#666}.grid{stroke:#333842}.base{stroke:#aaa}}</style>\n"
            "<g transform=\"translate(%d,%d)\">\n", LEFT + WIDTH + RIGHT, TOP + body + BOTTOM, LEFT, TOP);
    put_axes(plot, x, y, out);
    put_base(plot, y, out);
    for (size_t l = 0; l < plot->lines; l++)
        put_line(&plot->line[l], l, x, y, out);
    fputs("</g>\n</svg>\n", out);
}
