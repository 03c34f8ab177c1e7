/* A self-contained HTML page about a book, light or dark as the reader likes, without scripts: what it is, what to know of it
 * in words, scores, where the bits go, maps of error and bits, where it comes from. */
#ifndef KVB_TOOLS_REPORT_H
#define KVB_TOOLS_REPORT_H

#include <stdio.h>

#include "format/base/json.h"
#include "kvbook/book.h"

typedef struct kvb_report {
    const char *path; /* of the book */
    const kvb_book *book;
    const kvb_json *meta;
    const kvb_json *const *score; /* [scores] objects of `kvbook eval --json` */
    size_t scores;
} kvb_report;

/* The same book and scores give the same bytes. */
void kvb_report_write(const kvb_report *r, FILE *out);

#endif
