#include "tools/output.h"

#include "format/base/fail.h"

kvb_status kvb_print_json(kvb_json_writer *w, const char *what, kvb_error *err)
{
    const char *text = kvb_json_writer_text(w);
    kvb_status status = text != NULL ? KVB_OK : kvb_fail_memory(err, what);
    if (text != NULL)
        puts(text);
    kvb_json_writer_free(w);
    return status;
}

void kvb_put_markup(FILE *out, char c)
{
    switch (c) {
    case '&': fputs("&amp;", out); break;
    case '<': fputs("&lt;", out); break;
    case '>': fputs("&gt;", out); break;
    case '"': fputs("&quot;", out); break;
    default: fputc(c, out);
    }
}
