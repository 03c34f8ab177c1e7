/* The parts of a report that are pictures or sentences about the whole book; tools/report.c puts them together. */
#ifndef KVB_TOOLS_REPORT_PARTS_H
#define KVB_TOOLS_REPORT_PARTS_H

#include "tools/report.h"

/* Heat maps, layer by head, for keys and values: error, and bits where heads have shapes of their own. */
void kvb_report_put_maps(const kvb_report *r, FILE *out);
/* Where the bytes of a cache go at three lengths. */
void kvb_report_put_bytes(const kvb_report *r, FILE *out);
/* How well the codes are used, and what a reader should know, in words. */
void kvb_report_put_usage(const kvb_report *r, FILE *out);
void kvb_report_put_notes(const kvb_report *r, FILE *out);

/* Which tokens matter: where anchors stand and how scores are distributed, as training saw it. Nothing of a book that does not know. */
void kvb_report_put_anchors(const kvb_report *r, FILE *out);
/* How the error fell by iteration of k-means, over all heads, and what did not come to rest. Nothing of a book that does not know. */
void kvb_report_put_training(const kvb_report *r, FILE *out);
/* Perplexity against effective bits, where there are scores of books. */
void kvb_report_put_curve(const kvb_report *r, FILE *out);

#endif
