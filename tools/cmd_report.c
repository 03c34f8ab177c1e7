#include <stdlib.h>
#include <string.h>

#include "format/base/fail.h"
#include "format/base/mapfile.h"
#include "format/base/outfile.h"
#include "tools/commands.h"
#include "tools/input.h"
#include "tools/report.h"

enum { MOST_SCORES = 64, SCORES_MOST_BYTES = 1 << 24 };

typedef struct report_args {
    kvb_common_args common;
    kvb_strings books;
    const char *scores, *output;
} report_args;

static const kvb_flag flags[] = {
    {"--output", KVB_FLAG_STRING, "FILE", "the page to write (.html)", .offset = offsetof(report_args, output),
     .letter = "-o", .required = true},
    {"--scores", KVB_FLAG_STRING, "FILE", "what `kvbook eval --json` printed, one object a line: they become a table",
     .offset = offsetof(report_args, scores)},
};

static const kvb_command_spec spec = {
    .name = "report",
    .operands = "BOOK.kvb",
    .summary = "Write an HTML page about a book: what to know of it, scores, maps of error and bits, settings",
    .args_size = sizeof(report_args),
    .operands_offset = offsetof(report_args, books),
    .group = {{"Flags", flags, 2, 0}, KVB_GROUP(common, "Common flags", report_args, common)},
    .groups = 2,
};

typedef struct score_list {
    kvb_json_doc *doc[MOST_SCORES];
    const kvb_json *score[MOST_SCORES];
    size_t count;
} score_list;

static kvb_status read_line(score_list *list, const char *line, size_t size, const char *path, size_t number,
                            kvb_error *err)
{
    char where[256];
    snprintf(where, sizeof where, "%.200s: line %zu", path, number);
    if (list->count == MOST_SCORES)
        return kvb_fail(err, KVB_E_FORMAT, where, "found more than %d results, expected at most that", MOST_SCORES);
    kvb_status status = kvb_json_parse(line, size, where, &list->doc[list->count], err);
    if (status != KVB_OK)
        return status;
    list->score[list->count] = kvb_json_root(list->doc[list->count]);
    list->count++;
    if (kvb_json_type_of(kvb_json_get(list->score[list->count - 1], "ppl")) != KVB_JSON_NUMBER)
        return kvb_fail(err, KVB_E_FORMAT, where, "found no number `ppl`, expected an object of `kvbook eval --json`");
    return KVB_OK;
}

static kvb_status read_scores(score_list *list, const char *path, kvb_error *err)
{
    char *text;
    size_t size, number = 0;
    kvb_status status = kvb_read_file(path, SCORES_MOST_BYTES, &text, &size, err);
    if (status != KVB_OK)
        return status;
    for (const char *line = text; line < text + size && status == KVB_OK; number++) {
        const char *end = memchr(line, '\n', (size_t)(text + size - line));
        size_t length = (size_t)((end != NULL ? end : text + size) - line);
        if (length > 0)
            status = read_line(list, line, length, path, number + 1, err);
        line += length + 1;
    }
    free(text);
    return status;
}

static kvb_status write_page(const kvb_report *report, const char *path, kvb_error *err)
{
    char *page = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&page, &size);
    if (out == NULL)
        return kvb_fail_memory(err, "report");
    kvb_report_write(report, out);
    int failed = ferror(out);
    failed |= fclose(out);
    kvb_status status = failed ? kvb_fail_memory(err, "report") : kvb_write_file(path, page, size, err);
    free(page);
    return status;
}

static kvb_status run(const void *args, kvb_progress *p, kvb_error *err)
{
    const report_args *a = args;
    score_list list = {.count = 0};
    kvb_book *book = NULL;
    kvb_json_doc *meta = NULL;
    if (a->books.count != 1)
        return kvb_fail(err, KVB_E_USAGE, "report", "found %zu files, expected one book (.kvb)", a->books.count);
    const char *inputs[] = {a->books.items[0], a->scores};
    kvb_status status = kvb_check_output(a->output, inputs, 2, err);
    if (status == KVB_OK)
        status = kvb_book_open_with(a->books.items[0], KVB_OPEN_VERIFIED, &book, err);
    if (status == KVB_OK && a->scores != NULL)
        status = read_scores(&list, a->scores, err);
    size_t size = 0;
    const char *text = status == KVB_OK ? kvb_book_meta(book, &size) : NULL;
    if (status == KVB_OK)
        status = kvb_json_parse(text, size, a->books.items[0], &meta, err);
    if (status == KVB_OK)
        status = write_page(&(kvb_report){a->books.items[0], book, kvb_json_root(meta), list.score, list.count},
                            a->output, err);
    if (status == KVB_OK)
        kvb_say(p, "wrote %s", a->output);
    for (size_t i = 0; i < list.count; i++)
        kvb_json_free(list.doc[i]);
    kvb_json_free(meta);
    kvb_book_close(book);
    return status;
}

static const report_args defaults;
const kvb_command kvb_report_command = {&spec, &defaults, run};
