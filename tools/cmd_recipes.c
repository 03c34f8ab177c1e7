#include <string.h>

#include "calib/recipe.h"
#include "format/base/fail.h"
#include "tools/commands.h"
#include "tools/output.h"

typedef struct recipes_args {
    kvb_common_args common;
    kvb_strings words;
    bool json;
} recipes_args;

static const kvb_flag flags[] = {
    {"--json", KVB_FLAG_BOOL, NULL, "print one JSON object", .offset = offsetof(recipes_args, json)},
};

static const kvb_command_spec spec = {
    .name = "recipes",
    .operands = "[list | show NAME]",
    .summary = "List the built-in recipes, or print one",
    .about = "`kvbook recipes show NAME > mine.json` gives a file to change and use with --recipe mine.json.",
    .args_size = sizeof(recipes_args),
    .operands_offset = offsetof(recipes_args, words),
    .group = {{"Flags", flags, 1, 0}, KVB_GROUP(common, "Common flags", recipes_args, common)},
    .groups = 2,
};

static kvb_status parse(size_t i, kvb_json_doc **doc, kvb_error *err)
{
    const kvb_recipe_text *t = &kvb_recipe_texts[i];
    return kvb_json_parse(t->json, strlen(t->json), t->name, doc, err);
}

static kvb_status list_table(kvb_error *err)
{
    for (size_t i = 0; i < kvb_recipe_text_count; i++) {
        kvb_json_doc *doc;
        kvb_status status = parse(i, &doc, err);
        if (status != KVB_OK)
            return status;
        printf("%-12s %s (%s)\n", kvb_recipe_texts[i].name,
               kvb_json_string(kvb_json_get(kvb_json_root(doc), "about"), ""),
               kvb_json_string(kvb_json_get(kvb_json_root(doc), "source"), ""));
        kvb_json_free(doc);
    }
    return KVB_OK;
}

static kvb_status list_json(kvb_error *err)
{
    kvb_json_writer w = {0};
    kvb_status status = KVB_OK;
    kvb_json_begin_object(&w, NULL);
    kvb_json_put_u64(&w, "schema", 1);
    kvb_json_begin_array(&w, "recipes");
    for (size_t i = 0; i < kvb_recipe_text_count && status == KVB_OK; i++) {
        kvb_json_doc *doc;
        status = parse(i, &doc, err);
        if (status == KVB_OK)
            kvb_json_put_value(&w, NULL, kvb_json_root(doc));
        if (status == KVB_OK)
            kvb_json_free(doc);
    }
    kvb_json_end_array(&w);
    kvb_json_end_object(&w);
    if (status == KVB_OK)
        return kvb_print_json(&w, "recipes", err);
    kvb_json_writer_free(&w);
    return status;
}

static kvb_status show(const char *name, kvb_error *err)
{
    for (size_t i = 0; i < kvb_recipe_text_count; i++)
        if (strcmp(kvb_recipe_texts[i].name, name) == 0) {
            fputs(kvb_recipe_texts[i].json, stdout);
            return KVB_OK;
        }
    /* The loader knows how to refuse a name, and to suggest another. */
    kvb_recipe recipe;
    kvb_status status = kvb_recipe_load(name, &recipe, err);
    if (status != KVB_OK)
        return status;
    kvb_json_writer w = {0};
    kvb_json_put_value(&w, NULL, kvb_json_root(recipe.doc));
    status = kvb_print_json(&w, "recipe", err);
    kvb_recipe_free(&recipe);
    return status;
}

static kvb_status run(const void *args, kvb_progress *p, kvb_error *err)
{
    const recipes_args *a = args;
    const kvb_strings *w = &a->words;
    (void)p;
    if (w->count == 2 && strcmp(w->items[0], "show") == 0)
        return show(w->items[1], err);
    if (w->count > 1 || (w->count == 1 && strcmp(w->items[0], "list") != 0))
        return kvb_fail(err, KVB_E_USAGE, w->items[0], "expected `kvbook recipes list` or `kvbook recipes show NAME`");
    return a->json ? list_json(err) : list_table(err);
}

static const recipes_args defaults;
const kvb_command kvb_recipes_command = {&spec, &defaults, run};
