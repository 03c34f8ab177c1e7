#include "tools/args.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "calib/device.h"
#include "calib/suggest.h"
#include "format/base/checked.h"
#include "format/base/fail.h"

/* The words still to be read, and where they go. */
typedef struct arg_reader {
    const kvb_command_spec *spec;
    char **word;
    int count, at;
    const char **pool;
    unsigned char *args;
    bool seen[KVB_MOST_FLAGS];
    bool literal; /* after "--" every word is an operand */
    kvb_error *err;
} arg_reader;

bool kvb_parse_count(const char *text, uint64_t *value)
{
    if (!isdigit((unsigned char)text[0]))
        return false;
    char *end;
    errno = 0;
    unsigned long long parsed = strtoull(text, &end, 10);
    *value = parsed;
    return errno == 0 && *end == '\0';
}

bool kvb_parse_size(const char *text, uint64_t *bytes)
{
    static const char units[] = "KMGT";
    char digits[32];
    size_t length = strlen(text);
    if (length == 0 || length >= sizeof digits)
        return false;
    memcpy(digits, text, length + 1);
    const char *unit = strchr(units, toupper((unsigned char)digits[length - 1]));
    if (unit != NULL)
        digits[length - 1] = '\0';
    uint64_t count;
    if (!kvb_parse_count(digits, &count))
        return false;
    return kvb_mul_u64(count, unit == NULL ? 1 : (uint64_t)1 << (10 * (unit - units + 1)), bytes);
}

bool kvb_parse_real(const char *text, bool percent, double *value)
{
    /* strtod also takes "inf", "nan" and hexadecimal, which nobody means here. */
    if (strspn(text, "+-.0123456789eE%") != strlen(text) || text[0] == '\0')
        return false;
    char *end;
    errno = 0;
    *value = strtod(text, &end);
    if (end == text || !isfinite(*value) || errno == ERANGE)
        return false;
    if (percent && *end == '%') {
        *value /= 100;
        end++;
    }
    return *end == '\0';
}

/* The n-th flag of all groups, or NULL. */
static const kvb_flag *flag_at(const kvb_command_spec *spec, size_t n, size_t *base)
{
    for (size_t g = 0; g < spec->groups; g++) {
        if (n < spec->group[g].count) {
            *base = spec->group[g].base;
            return &spec->group[g].flags[n];
        }
        n -= spec->group[g].count;
    }
    return NULL;
}

static const kvb_flag *find_flag(const kvb_command_spec *spec, const char *name, size_t length, size_t *index)
{
    size_t base;
    const kvb_flag *flag;
    for (size_t i = 0; (flag = flag_at(spec, i, &base)) != NULL; i++)
        if ((strlen(flag->name) == length && memcmp(flag->name, name, length) == 0) ||
            (flag->letter != NULL && strlen(flag->letter) == length && memcmp(flag->letter, name, length) == 0)) {
            *index = i;
            return flag;
        }
    return NULL;
}

static kvb_status refuse_unknown(arg_reader *r, const char *word)
{
    const char *known[KVB_MOST_FLAGS], *elsewhere = r->spec->elsewhere;
    size_t count = 0, base;
    const kvb_flag *flag;
    while (count < KVB_MOST_FLAGS && (flag = flag_at(r->spec, count, &base)) != NULL)
        known[count++] = flag->name;
    char name[64];
    snprintf(name, sizeof name, "%.*s", (int)strcspn(word, "="), word);
    if (elsewhere != NULL && strncmp(name, elsewhere, strlen(elsewhere)) == 0)
        return kvb_fail(r->err, KVB_E_USAGE, name, "%s", r->spec->instead);
    return kvb_fail(r->err, KVB_E_USAGE, name,
                    "unknown flag of `kvbook %s`; did you mean %s? `kvbook %s --help` lists them",
                    r->spec->name, kvb_suggest(name, known, count), r->spec->name);
}

static bool is_flag(const char *word)
{
    return word[0] == '-' && word[1] != '\0' && !isdigit((unsigned char)word[1]) && word[1] != '.';
}

static kvb_status refuse_value(arg_reader *r, const kvb_flag *flag, const char *text, const char *expected)
{
    return kvb_fail(r->err, KVB_E_USAGE, flag->name, "found \"%.100s\", expected %s", text, expected);
}

static kvb_status read_number(arg_reader *r, const kvb_flag *flag, const char *text, unsigned char *to)
{
    char expected[120];
    kvb_arg_u64 number = {.set = true};
    bool count = flag->type == KVB_FLAG_COUNT;
    double most = flag->most > 0 ? flag->most : 9007199254740992.0;
    if (count)
        snprintf(expected, sizeof expected, "a whole number from %.0f to %.0f", flag->least, most);
    else
        snprintf(expected, sizeof expected, "a size in bytes such as 500M or 4G");
    if (!(count ? kvb_parse_count(text, &number.value) : kvb_parse_size(text, &number.value)))
        return refuse_value(r, flag, text, expected);
    if (count && ((double)number.value < flag->least || (double)number.value > most))
        return refuse_value(r, flag, text, expected);
    memcpy(to, &number, sizeof number);
    return KVB_OK;
}

static kvb_status read_real(arg_reader *r, const kvb_flag *flag, const char *text, unsigned char *to)
{
    char expected[120];
    kvb_arg_real number = {.set = true};
    bool fraction = flag->type == KVB_FLAG_FRACTION;
    double least = fraction ? 0 : flag->least, most = fraction ? 1 : flag->most;
    if (fraction)
        snprintf(expected, sizeof expected, "a fraction from 0 to 1, or a percentage such as 1%%");
    else
        snprintf(expected, sizeof expected, "a number from %g to %g", least, most);
    if (!kvb_parse_real(text, fraction, &number.value) || number.value < least || number.value > most)
        return refuse_value(r, flag, text, expected);
    memcpy(to, &number, sizeof number);
    return KVB_OK;
}

static kvb_status read_choice(arg_reader *r, const kvb_flag *flag, const char *text, unsigned char *to)
{
    kvb_arg_u64 choice = {.set = true};
    size_t count = 0;
    while (flag->choices[count] != NULL)
        count++;
    for (; choice.value < count; choice.value++)
        if (strcmp(flag->choices[choice.value], text) == 0) {
            memcpy(to, &choice, sizeof choice);
            return KVB_OK;
        }
    char list[200];
    return kvb_fail(r->err, KVB_E_USAGE, flag->name, "found \"%.60s\", did you mean %s? Expected one of: %s", text,
                    kvb_suggest(text, flag->choices, count), kvb_join_words(flag->choices, count, list, sizeof list));
}

static kvb_status read_device(arg_reader *r, const kvb_flag *flag, const char *text, unsigned char *to)
{
    kvb_arg_u64 device = {.set = true};
    if (!kvb_device_parse(text, &device.value))
        return refuse_value(r, flag, text, "cpu, cuda, cuda:all, or GPUs by number such as cuda:0,1");
    memcpy(to, &device, sizeof device);
    return KVB_OK;
}

/* The words after the flag up to the next flag, or the one after '='. */
static void read_strings(arg_reader *r, const char *first, bool only_one, unsigned char *to)
{
    kvb_strings list;
    memcpy(&list, to, sizeof list);
    if (list.items == NULL) {
        list.items = r->pool;
        r->pool += r->count;
    }
    list.items[list.count++] = first;
    while (!only_one && r->at < r->count && !is_flag(r->word[r->at]))
        list.items[list.count++] = r->word[r->at++];
    memcpy(to, &list, sizeof list);
}

static kvb_status read_value(arg_reader *r, const kvb_flag *flag, const char *text, bool joined, unsigned char *to)
{
    switch (flag->type) {
    case KVB_FLAG_STRING:
        if (text[0] == '\0')
            return refuse_value(r, flag, text, "something");
        memcpy(to, &text, sizeof text);
        return KVB_OK;
    case KVB_FLAG_STRINGS:
        read_strings(r, text, joined, to);
        return KVB_OK;
    case KVB_FLAG_COUNT:
    case KVB_FLAG_SIZE:
        return read_number(r, flag, text, to);
    case KVB_FLAG_REAL:
    case KVB_FLAG_FRACTION:
        return read_real(r, flag, text, to);
    case KVB_FLAG_CHOICE:
        return read_choice(r, flag, text, to);
    case KVB_FLAG_DEVICE:
        return read_device(r, flag, text, to);
    case KVB_FLAG_BOOL:
        break;
    }
    return KVB_OK;
}

static kvb_status read_flag(arg_reader *r, const char *word)
{
    size_t length = strcspn(word, "="), index = 0, base = 0;
    const char *joined = word[length] == '=' ? word + length + 1 : NULL;
    const kvb_flag *flag = find_flag(r->spec, word, length, &index);
    if (flag == NULL)
        return refuse_unknown(r, word);
    if (r->seen[index] && flag->type != KVB_FLAG_STRINGS && flag->type != KVB_FLAG_BOOL)
        return kvb_fail(r->err, KVB_E_USAGE, flag->name, "given twice, expected once");
    r->seen[index] = true;
    flag_at(r->spec, index, &base);
    unsigned char *to = r->args + base + flag->offset;
    if (flag->type == KVB_FLAG_BOOL) {
        if (joined != NULL)
            return kvb_fail(r->err, KVB_E_USAGE, flag->name, "takes no value, found \"%.100s\"", joined);
        memcpy(to, &(bool){true}, sizeof(bool));
        return KVB_OK;
    }
    const bool none = joined == NULL && (r->at == r->count || find_flag(r->spec, r->word[r->at], strlen(r->word[r->at]), &index));
    if (none && flag->usual != NULL)
        return read_value(r, flag, flag->usual, true, to);
    if (none)
        return kvb_fail(r->err, KVB_E_USAGE, flag->name, "needs a value (%s)", flag->value);
    return read_value(r, flag, joined != NULL ? joined : r->word[r->at++], joined != NULL, to);
}

static kvb_status read_operand(arg_reader *r, const char *word)
{
    if (r->spec->operands == NULL)
        return kvb_fail(r->err, KVB_E_USAGE, word,
                        "unexpected word: `kvbook %s` takes flags only; see `kvbook %s --help`",
                        r->spec->name, r->spec->name);
    read_strings(r, word, true, r->args + r->spec->operands_offset);
    return KVB_OK;
}

static kvb_status check_required(arg_reader *r)
{
    size_t base;
    const kvb_flag *flag;
    for (size_t i = 0; (flag = flag_at(r->spec, i, &base)) != NULL; i++)
        if (flag->required && !r->seen[i])
            return kvb_fail(r->err, KVB_E_USAGE, flag->name, "missing: `kvbook %s` needs %s %s (%s)", r->spec->name,
                            flag->name, flag->value, flag->help);
    return KVB_OK;
}

kvb_status kvb_args_parse(const kvb_command_spec *spec, int argc, char **argv, const char **pool, void *args,
                          bool *help,
                          kvb_error *err)
{
    arg_reader r = {.spec = spec, .word = argv, .count = argc, .pool = pool, .args = args, .err = err};
    *help = false;
    for (int i = 0; i < argc && strcmp(argv[i], "--") != 0; i++)
        *help = *help || strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0;
    kvb_status status = KVB_OK;
    while (!*help && status == KVB_OK && r.at < r.count) {
        const char *word = r.word[r.at++];
        if (!r.literal && strcmp(word, "--") == 0)
            r.literal = true;
        else
            status = !r.literal && is_flag(word) ? read_flag(&r, word) : read_operand(&r, word);
    }
    return status == KVB_OK && !*help ? check_required(&r) : status;
}

enum { HELP_INDENT = 28, HELP_WIDTH = 80 };

/* Wraps `text` at HELP_WIDTH columns with the given indentation; the cursor stands at column `at`. */
static void print_wrapped(const char *text, int at, int indent)
{
    while (*text != '\0') {
        int length = (int)strcspn(text, " ");
        if (at > indent && at + 1 + length > HELP_WIDTH) {
            printf("\n%*s", indent, "");
            at = indent;
        } else if (at > indent) {
            putchar(' ');
            at++;
        }
        printf("%.*s", length, text);
        at += length;
        text += length;
        text += strspn(text, " ");
    }
    putchar('\n');
}

static void print_flag(const kvb_flag *flag)
{
    char left[64];
    snprintf(left, sizeof left, "%s%s%s%s%s%s", flag->letter != NULL ? flag->letter : "",
             flag->letter != NULL ? ", " : "", flag->name, flag->value != NULL ? " " : "",
             flag->value != NULL ? flag->value : "", flag->type == KVB_FLAG_STRINGS ? "..." : "");
    /* Two blanks at least before the text, or a line of its own for it. */
    const int at = printf("  %s", left);
    printf("%s%*s", at > HELP_INDENT - 2 ? "\n" : "", at > HELP_INDENT - 2 ? HELP_INDENT : HELP_INDENT - at, "");
    char text[600];
    int n = snprintf(text, sizeof text, "%s", flag->help);
    if (flag->choices != NULL && n > 0) {
        size_t count = 0;
        char list[200];
        while (flag->choices[count] != NULL)
            count++;
        snprintf(text + n, sizeof text - (size_t)n, ": %s", kvb_join_words(flag->choices, count, list, sizeof list));
    }
    print_wrapped(text, HELP_INDENT, HELP_INDENT);
}

void kvb_args_print_help(const kvb_command_spec *spec)
{
    printf("usage: kvbook %s%s%s", spec->name, spec->operands != NULL ? " " : "",
           spec->operands != NULL ? spec->operands : "");
    size_t base;
    const kvb_flag *flag;
    for (size_t i = 0; (flag = flag_at(spec, i, &base)) != NULL; i++)
        if (flag->required)
            printf(" %s %s", flag->name, flag->value);
    printf(" [flags]\n\n%s.\n", spec->summary);
    if (spec->about != NULL)
        printf("\n%s\n", spec->about);
    for (size_t g = 0; g < spec->groups; g++) {
        printf("\n%s:\n", spec->group[g].title);
        for (size_t i = 0; i < spec->group[g].count; i++)
            print_flag(&spec->group[g].flags[i]);
    }
}
