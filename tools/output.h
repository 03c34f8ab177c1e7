/* What commands print: JSON, and text inside markup. */
#ifndef KVB_TOOLS_OUTPUT_H
#define KVB_TOOLS_OUTPUT_H

#include <stdio.h>

#include "format/base/json.h"

/* Prints the finished text with a line's end and frees the writer; KVB_E_MEMORY, of `what`, where there was none for it. */
kvb_status kvb_print_json(kvb_json_writer *w, const char *what, kvb_error *err);

/* One character of a name, which may come from a file: nothing of it may be read as markup (HTML, SVG). */
void kvb_put_markup(FILE *out, char c);

#endif
