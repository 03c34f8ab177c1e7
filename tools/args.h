/* Command-line flags as data: one table a command, from which parsing, --help and suggestions all come.
 *
 * A command's options are a struct; each flag names the member that it fills by its offset. Flags that several commands
 * share (model, text, recipe, policy) are groups of their own with a struct of their own inside the command's. */
#ifndef KVB_TOOLS_ARGS_H
#define KVB_TOOLS_ARGS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kvbook/status.h"

typedef enum kvb_flag_type {
    KVB_FLAG_BOOL,     /* bool: no value */
    KVB_FLAG_STRING,   /* const char * */
    KVB_FLAG_STRINGS,  /* kvb_strings: may be given again; takes every word up to the next flag */
    KVB_FLAG_COUNT,    /* kvb_arg_u64 in [least, most] */
    KVB_FLAG_SIZE,     /* kvb_arg_u64: bytes, with K, M, G or T for powers of 1024 */
    KVB_FLAG_REAL,     /* kvb_arg_real in [least, most] */
    KVB_FLAG_FRACTION, /* kvb_arg_real in [0, 1]: 0.01 or 1% */
    KVB_FLAG_CHOICE,   /* kvb_arg_u64: index into choices, which ends with NULL */
    KVB_FLAG_DEVICE,   /* kvb_arg_u64: a kvb_device; choices are those that completion offers */
} kvb_flag_type;

typedef struct kvb_strings {
    const char **items; /* borrowed from argv */
    size_t count;
} kvb_strings;

/* `set` tells whether the command line gave it; `value` otherwise keeps what the command's defaults put there. */
typedef struct kvb_arg_u64 {
    uint64_t value;
    bool set;
} kvb_arg_u64;

typedef struct kvb_arg_real {
    double value;
    bool set;
} kvb_arg_real;

typedef struct kvb_flag {
    const char *name; /* "--ctx", or "-o" where there is only a letter */
    kvb_flag_type type;
    const char *value; /* how --help calls the value: "N", "FILE" */
    const char *help;
    size_t offset;
    const char *letter; /* "-q", or NULL */
    const char *usual;  /* the value where the command line gives none; NULL: it must */
    double least, most;
    const char *const *choices;
    bool required;
} kvb_flag;

typedef struct kvb_flag_group {
    const char *title;
    const kvb_flag *flags;
    size_t count;
    size_t base; /* offset of the group's struct in the command's */
} kvb_flag_group;

enum { KVB_MOST_GROUPS = 10, KVB_MOST_FLAGS = 64, KVB_MOST_LISTS = 4 };

typedef struct kvb_command_spec {
    const char *name;
    const char *operands; /* for the usage line: "CAPTURE.kvc..."; NULL where the command takes none */
    const char *summary;  /* one line */
    const char *about;    /* paragraphs of --help; may be NULL */
    size_t args_size;
    size_t operands_offset; /* a kvb_strings member; used where operands is not NULL */
    kvb_flag_group group[KVB_MOST_GROUPS];
    size_t groups;
    /* A flag of other commands that people look for here, with all flags that begin with it, and what to do instead; or NULL. */
    const char *elsewhere, *instead;
} kvb_command_spec;

/* Reads argv[0..argc) (the words after the command's name) into `args`, which holds the defaults. KVB_E_USAGE names the
 * word and says what was expected. With --help among the words nothing else is checked: *help is set.
 * `pool` has room for argc * KVB_MOST_LISTS strings and backs every kvb_strings. */
kvb_status kvb_args_parse(const kvb_command_spec *spec, int argc, char **argv, const char **pool, void *args,
                          bool *help,
                          kvb_error *err);

/* The --help text. */
void kvb_args_print_help(const kvb_command_spec *spec);

/* "1G" and such; false where the text is anything else. */
bool kvb_parse_size(const char *text, uint64_t *bytes);
/* Digits only, no sign, no space; false where that is not all there is or it does not fit. */
bool kvb_parse_count(const char *text, uint64_t *value);
/* A finite decimal number; with `percent`, "1%" is 0.01. */
bool kvb_parse_real(const char *text, bool percent, double *value);

#endif
