/* The cells of a comparison: which recipes at which rates, and which of them make sense. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "format/base/fail.h"
#include "tools/compare.h"

enum { MOST_WORDS = 64, MOST_WORD = 1024 };

typedef struct word_list {
    char *copy;
    char *word[MOST_WORDS];
    size_t count;
} word_list;

static kvb_status split(const char *text, const char *flag, word_list *list, kvb_error *err)
{
    *list = (word_list){.copy = strdup(text)};
    if (list->copy == NULL)
        return kvb_fail_memory(err, flag);
    char *rest = list->copy;
    for (char *word; (word = strsep(&rest, ",")) != NULL;) {
        word += strspn(word, " ");
        if (word[0] == '\0' || strlen(word) > MOST_WORD)
            return kvb_fail(err, KVB_E_USAGE, flag, "found an empty or very long word in \"%.100s\", expected words with a comma between them",
                            text);
        if (list->count == MOST_WORDS)
            return kvb_fail(err, KVB_E_USAGE, flag, "over %d words, expected fewer", MOST_WORDS);
        for (size_t i = 0; i < list->count; i++)
            if (strcmp(list->word[i], word) == 0)
                return kvb_fail(err, KVB_E_USAGE, flag, "\"%.100s\" stands there twice, expected once", word);
        list->word[list->count++] = word;
    }
    return KVB_OK;
}

static kvb_status parse_rates(const word_list *words, double rate[MOST_WORDS], kvb_error *err)
{
    for (size_t i = 0; i < words->count; i++) {
        if (!kvb_parse_real(words->word[i], false, &rate[i]) || rate[i] <= 0 || rate[i] > 16)
            return kvb_fail(err, KVB_E_USAGE, "--bits", "found \"%.100s\", expected numbers up to 16 such as 4,2,1,0.375", words->word[i]);
        for (size_t j = 0; j < i; j++)
            if (rate[j] == rate[i])
                return kvb_fail(err, KVB_E_USAGE, "--bits", "%g stands there twice, expected once", rate[i]);
    }
    return KVB_OK;
}

static void refuse(kvb_compare_cell *cell, const kvb_error *why)
{
    cell->refused = true;
    snprintf(cell->why, sizeof cell->why, "%s: %s", why->where, why->message);
}

/* The recipe is read once more for each rate: setting one changes it. An unknown name must not pass for a refused rate. */
static kvb_status make_cell(const char *name, double bits, kvb_compare_cell *cell, kvb_error *err)
{
    kvb_error why = {0};
    cell->bits = bits;
    kvb_status status = kvb_recipe_load(name, &cell->recipe, err);
    if (status != KVB_OK)
        return status;
    status = kvb_recipe_set_bits(&cell->recipe, bits, &why);
    if (status == KVB_E_USAGE) {
        refuse(cell, &why);
        return KVB_OK;
    }
    if (status != KVB_OK && err != NULL)
        *err = why;
    return status;
}

static kvb_status check_names(const kvb_compare_grid *grid, size_t rates, kvb_error *err)
{
    for (size_t i = 0; i < grid->count; i += rates)
        for (size_t j = 0; j < i; j += rates)
            if (strcmp(grid->cell[i].recipe.name, grid->cell[j].recipe.name) == 0)
                return kvb_fail(err, KVB_E_USAGE, "--recipes", "two of them are called \"%s\"; give one another \"name\"",
                                grid->cell[i].recipe.name);
    return KVB_OK;
}

kvb_status kvb_compare_parse(const char *recipes, const char *bits, kvb_compare_grid *grid, kvb_error *err)
{
    word_list name = {0}, word = {0};
    double rate[MOST_WORDS];
    *grid = (kvb_compare_grid){0};
    kvb_status status = split(recipes, "--recipes", &name, err);
    if (status == KVB_OK)
        status = split(bits, "--bits", &word, err);
    if (status == KVB_OK)
        status = parse_rates(&word, rate, err);
    if (status == KVB_OK) {
        grid->cell = calloc(name.count * word.count, sizeof *grid->cell);
        status = grid->cell != NULL ? KVB_OK : kvb_fail_memory(err, "compare");
    }
    for (size_t r = 0; r < name.count && status == KVB_OK; r++)
        for (size_t b = 0; b < word.count && status == KVB_OK; b++)
            status = make_cell(name.word[r], rate[b], &grid->cell[grid->count++], err);
    if (status == KVB_OK)
        status = check_names(grid, word.count, err);
    free(name.copy);
    free(word.copy);
    return status;
}

kvb_status kvb_compare_fit(const kvb_compare_job *job, kvb_compare_grid *grid, kvb_error *err)
{
    size_t left = 0;
    for (size_t i = 0; i < grid->count; i++) {
        kvb_compare_cell *cell = &grid->cell[i];
        kvb_calibration_plan plan;
        kvb_error why = {0};
        cell->policy = kvb_policy_from_args(job->policy, cell->recipe.policy);
        kvb_status status = kvb_check_exact_form(&cell->policy, kvb_recipe_has_fine(&cell->recipe), cell->recipe.name, err);
        if (status != KVB_OK)
            return status;
        if (cell->refused)
            continue;
        kvb_plan_calibration(job->calibration, &cell->recipe, job->capture->max_memory.value, &plan);
        status = kvb_check_plan(job->calibration, &cell->recipe, &plan, &why);
        if (status == KVB_E_USAGE)
            refuse(cell, &why);
        else if (status != KVB_OK) {
            *err = why;
            return status;
        }
        left += !cell->refused;
    }
    return left > 0 ? KVB_OK : kvb_fail(err, KVB_E_USAGE, "--bits", "no recipe can be had at any of these rates; the first, %s at %g: %s",
                                        grid->cell[0].recipe.name, grid->cell[0].bits, grid->cell[0].why);
}

void kvb_compare_free(kvb_compare_grid *grid)
{
    for (size_t i = 0; i < grid->count; i++) {
        kvb_book_close(grid->cell[i].book);
        free(grid->cell[i].path);
        kvb_recipe_free(&grid->cell[i].recipe);
    }
    free(grid->cell);
    *grid = (kvb_compare_grid){0};
}
