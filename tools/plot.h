/* A plot of lines as SVG, both axes logarithmic, legible on light and dark ground. */
#ifndef KVB_TOOLS_PLOT_H
#define KVB_TOOLS_PLOT_H

#include <stddef.h>
#include <stdio.h>

typedef struct kvb_plot_point {
    double x, y; /* over 0; a point that is not finite is left out */
    double label; /* what the pointer shows beside name and y: the rate asked for */
} kvb_plot_point;

typedef struct kvb_plot_line {
    const char *name;
    const kvb_plot_point *point; /* [count], joined in ascending order of x */
    size_t count;
} kvb_plot_line;

typedef struct kvb_plot {
    const char *title, *x_label, *y_label;
    const char *base_name; /* of the level that everything is compared with */
    double base;
    const kvb_plot_line *line; /* [lines] */
    size_t lines;
} kvb_plot;

/* The same plot gives the same bytes. With no point that can be drawn, axes alone. */
void kvb_plot_write(const kvb_plot *plot, FILE *out);

/* Where ticks of a logarithmic axis from `least` to `most` (0 < least < most) stand: at most `room`, in ascending order. */
size_t kvb_plot_ticks(double least, double most, double *tick, size_t room);

#endif
