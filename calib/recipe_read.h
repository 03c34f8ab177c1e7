/* Reading the members of a recipe: each checks one thing and names its place when it is wrong. */
#ifndef KVB_CALIB_RECIPE_READ_H
#define KVB_CALIB_RECIPE_READ_H

#include "calib/recipe.h"

#define COUNT(array) (sizeof(array) / sizeof *(array))

/* What a failing check needs to name its place. */
typedef struct recipe_reader {
    const char *file;
    kvb_recipe *recipe;
    kvb_error *err;
} recipe_reader;

kvb_status kvb_recipe_refuse(const recipe_reader *r, const char *place, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* A user's word in an error: printable and short. */
const char *kvb_recipe_quoted(const char *word, char *text, size_t size);

/* Each leaves the value as it was where v is NULL. */
kvb_status kvb_recipe_read_word(const recipe_reader *r, const char *place, const kvb_json *v, const char *const *known,
                                size_t count, uint32_t *index);
kvb_status kvb_recipe_read_bool(const recipe_reader *r, const char *place, const kvb_json *v, bool *value);
kvb_status kvb_recipe_read_u32(const recipe_reader *r, const char *place, const kvb_json *v, uint32_t least, uint32_t most,
                               uint32_t *value);
kvb_status kvb_recipe_read_number(const recipe_reader *r, const char *place, const kvb_json *v, double least, double most,
                                  double *value);
/* Refuses members that nobody reads: a misspelt option must not pass for its default. */
kvb_status kvb_recipe_check_members(const recipe_reader *r, const char *place, const kvb_json *object,
                                    const char *const *known, size_t count);

/* recipe_scale.c: "scale" of a kind, named "keys" or "values". */
kvb_status kvb_recipe_read_scale(const recipe_reader *r, const char *name, const kvb_json *object, kvb_recipe_scale *scale);

#endif
