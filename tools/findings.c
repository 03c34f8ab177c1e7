#include "tools/findings.h"

#include <inttypes.h>
#include <stdio.h>

#include "format/base/fail.h"

enum { MOST_PRINTED = 20 };

void kvb_findings_failed(kvb_findings *f, const char *text)
{
    f->failures++;
    if (f->json != NULL)
        kvb_json_put_string(f->json, NULL, text);
    else if (f->failures <= MOST_PRINTED)
        printf("FAILED %s\n", text);
}

void kvb_findings_put_counts(const kvb_findings *f)
{
    kvb_json_put_u64(f->json, "checks", f->checks);
    kvb_json_put_u64(f->json, "failures", f->failures);
}

void kvb_findings_put_ok(const kvb_findings *f)
{
    kvb_json_put_bool(f->json, "ok", f->failures == 0);
}

void kvb_findings_print_rest(const kvb_findings *f)
{
    if (f->failures > MOST_PRINTED)
        printf("FAILED %" PRIu64 " more\n", f->failures - MOST_PRINTED);
}

void kvb_findings_print_summary(const kvb_findings *f, const char *path)
{
    printf("%s: %" PRIu64 " checks, %" PRIu64 " failed\n", path, f->checks, f->failures);
}

kvb_status kvb_findings_status(const kvb_findings *f, const char *path, const char *advice, kvb_error *err)
{
    if (f->failures == 0)
        return KVB_OK;
    return kvb_fail(err, KVB_E_CHECK, path, "%" PRIu64 " of %" PRIu64 " checks failed; %s", f->failures, f->checks, advice);
}
