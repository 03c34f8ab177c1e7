/* What the checks of `kvbook verify` find: counted, and each failure named, as text or inside an array of JSON. */
#ifndef KVB_TOOLS_FINDINGS_H
#define KVB_TOOLS_FINDINGS_H

#include "format/base/json.h"

typedef struct kvb_findings {
    kvb_json_writer *json; /* NULL: failures go to stdout, the first twenty of them */
    uint64_t checks, failures;
} kvb_findings;

/* A check failed; it is counted as a check elsewhere. */
void kvb_findings_failed(kvb_findings *f, const char *text);
/* The last members of the JSON: "checks", "failures", then "ok" by kvb_findings_put_ok(). */
void kvb_findings_put_counts(const kvb_findings *f);
void kvb_findings_put_ok(const kvb_findings *f);
/* How many failures were not printed; then the summary. */
void kvb_findings_print_rest(const kvb_findings *f);
void kvb_findings_print_summary(const kvb_findings *f, const char *path);
/* KVB_E_CHECK where a check failed, with what to do about it. */
kvb_status kvb_findings_status(const kvb_findings *f, const char *path, const char *advice, kvb_error *err);

#endif
