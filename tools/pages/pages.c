/* The manual and the shells' completions out of the tables that parsing and --help come from.
 *
 *     pages names            the sub-commands, one a line
 *     pages man              the list of sub-commands for kvbook(1), as scdoc source
 *     pages man COMMAND      kvbook-COMMAND(1) as scdoc source
 *     pages bash | zsh       a completion file */
#include <ctype.h>
#include <stdio.h>
#include <string.h>

#include "calib/recipe.h"
#include "tools/commands.h"

static bool is_recipe(const kvb_flag *flag)
{
    return strcmp(flag->name, "--recipe") == 0 || strcmp(flag->name, "--recipes") == 0;
}

/* A value that is the name of a file, or of a folder. */
static bool is_file(const kvb_flag *flag)
{
    return flag->value != NULL && (strncmp(flag->value, "FILE", 4) == 0 || strcmp(flag->value, "DIR") == 0);
}

static void print_recipes(const char *between)
{
    for (size_t i = 0; i < kvb_recipe_text_count; i++)
        printf("%s%s", i > 0 ? between : "", kvb_recipe_texts[i].name);
}

static void print_choices(const kvb_flag *flag, const char *between)
{
    for (size_t i = 0; flag->choices[i] != NULL; i++)
        printf("%s%s", i > 0 ? between : "", flag->choices[i]);
}

/* ---- scdoc */

/* scdoc takes these for formatting, wherever they stand. */
static void put_scdoc(const char *text, size_t length)
{
    for (size_t i = 0; i < length; i++) {
        if (strchr("\\*_#[]|~<>.-'`", text[i]) != NULL && text[i] != '\0')
            putchar('\\');
        putchar(text[i]);
    }
}

static void put_scdoc_text(const char *text)
{
    put_scdoc(text, strlen(text));
}

/* Paragraphs; lines that begin with two spaces stand as they are. */
static void print_about(const char *about)
{
    while (*about != '\0') {
        const char *end = strstr(about, "\n\n");
        const size_t length = end != NULL ? (size_t)(end - about) : strlen(about);
        if (strncmp(about, "  ", 2) == 0)
            printf("```\n%.*s\n```\n\n", (int)length, about);
        else {
            put_scdoc(about, length);
            printf("\n\n");
        }
        about += length + (end != NULL ? 2 : 0);
    }
}

static void print_man_flag(const kvb_flag *flag)
{
    if (flag->letter != NULL)
        printf("*%s*, ", flag->letter);
    printf("*%s*", flag->name);
    if (flag->value != NULL) {
        printf(" _");
        put_scdoc_text(flag->value);
        printf("_%s", flag->type == KVB_FLAG_STRINGS ? "..." : "");
    }
    printf("\n\t");
    put_scdoc_text(flag->help);
    if (flag->choices != NULL) {
        printf(" (");
        print_choices(flag, ", ");
        putchar(')');
    }
    printf("\n\n");
}

static void print_man(const kvb_command_spec *spec)
{
    printf("kvbook-%s(1)\n\n# NAME\n\nkvbook-%s - ", spec->name, spec->name);
    /* apropos wants one line that is no sentence. */
    putchar(tolower((unsigned char)spec->summary[0]));
    put_scdoc_text(spec->summary + 1);
    printf("\n\n# SYNOPSIS\n\n*kvbook %s* ", spec->name);
    if (spec->operands != NULL) {
        putchar('_');
        put_scdoc_text(spec->operands);
        printf("_ ");
    }
    for (size_t g = 0; g < spec->groups; g++)
        for (size_t i = 0; i < spec->group[g].count; i++)
            if (spec->group[g].flags[i].required)
                printf("*%s* _%s_ ", spec->group[g].flags[i].name, spec->group[g].flags[i].value);
    printf("[flags]\n\n# DESCRIPTION\n\n");
    put_scdoc_text(spec->summary);
    printf("\\.\n\n");
    if (spec->about != NULL)
        print_about(spec->about);
    printf("# OPTIONS\n\n");
    for (size_t g = 0; g < spec->groups; g++) {
        printf("## ");
        put_scdoc_text(spec->group[g].title);
        printf("\n\n");
        for (size_t i = 0; i < spec->group[g].count; i++)
            print_man_flag(&spec->group[g].flags[i]);
    }
    printf("# EXIT STATUS\n\nSee *kvbook*(1).\n\n# SEE ALSO\n\n*kvbook*(1)\n");
}

static void print_man_list(void)
{
    for (int i = 0; i < KVB_COMMANDS; i++) {
        printf("*kvbook-%s*(1)\n\t", kvb_commands[i]->spec->name);
        put_scdoc_text(kvb_commands[i]->spec->summary);
        printf("\\.\n\n");
    }
}

/* ---- bash */

static void print_bash_command(const kvb_command_spec *spec)
{
    printf("    %s)\n        case $before in\n", spec->name);
    for (size_t g = 0; g < spec->groups; g++)
        for (size_t i = 0; i < spec->group[g].count; i++) {
            const kvb_flag *flag = &spec->group[g].flags[i];
            if (flag->type == KVB_FLAG_BOOL)
                continue;
            printf("        %s%s%s) ", flag->letter != NULL ? flag->letter : "", flag->letter != NULL ? " | " : "", flag->name);
            if (is_recipe(flag)) {
                printf("words='");
                print_recipes(" ");
                printf("' files=1");
            } else if (flag->choices != NULL) {
                printf("words='");
                print_choices(flag, " ");
                putchar('\'');
            } else
                printf(is_file(flag) ? "files=1" : "return");
            printf(" ;;\n");
        }
    printf("        *)\n            words='");
    for (size_t g = 0; g < spec->groups; g++)
        for (size_t i = 0; i < spec->group[g].count; i++)
            printf("%s%s", g + i > 0 ? " " : "", spec->group[g].flags[i].name);
    printf("'\n            [[ $now == -* ]] || files=1 words=%s\n            ;;\n        esac\n        ;;\n",
           strcmp(spec->name, "recipes") == 0 ? "'list show'" : strcmp(spec->name, "bench") == 0 ? "kmeans" : "");
}

static void print_bash(void)
{
    printf("# bash completion of kvbook; made by the build out of the flags themselves\n\n_kvbook() {\n"
           "    local now=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} words= files=\n"
           "    COMPREPLY=()\n"
           "    if [[ $COMP_CWORD -eq 1 ]]; then\n        COMPREPLY=($(compgen -W '");
    for (int i = 0; i < KVB_COMMANDS; i++)
        printf("%s ", kvb_commands[i]->spec->name);
    printf("help --help --version' -- \"$now\"))\n        return\n    fi\n    case ${COMP_WORDS[1]} in\n");
    for (int i = 0; i < KVB_COMMANDS; i++)
        print_bash_command(kvb_commands[i]->spec);
    printf("    esac\n    COMPREPLY=($(compgen -W \"$words\" -- \"$now\"))\n"
           "    if [[ -n $files ]]; then\n        local IFS=$'\\n'\n"
           "        compopt -o filenames 2>/dev/null\n        COMPREPLY+=($(compgen -f -- \"$now\"))\n    fi\n}\n"
           "complete -F _kvbook kvbook\n");
}

/* ---- zsh */

/* Inside single quotes, and inside the brackets or before the colon of an _arguments specification. */
static void put_zsh(const char *text)
{
    for (; *text != '\0'; text++) {
        if (*text == '\'')
            printf("'\\'");
        else if (strchr("[]:\\", *text) != NULL)
            putchar('\\');
        putchar(*text);
    }
}

static void print_zsh_flag(const kvb_flag *flag)
{
    if (flag->letter != NULL)
        printf("        '(%s %s)'{%s,%s%s}'", flag->letter, flag->name, flag->letter, flag->name,
               flag->type == KVB_FLAG_BOOL ? "" : "=");
    else
        printf("        '%s%s%s", flag->type == KVB_FLAG_STRINGS ? "*" : "", flag->name,
               flag->type == KVB_FLAG_BOOL ? "" : "=");
    putchar('[');
    put_zsh(flag->help);
    putchar(']');
    if (flag->type != KVB_FLAG_BOOL) {
        putchar(':');
        put_zsh(flag->value);
        putchar(':');
        if (is_recipe(flag)) {
            printf("_alternative \"recipes:recipe:(");
            print_recipes(" ");
            printf(")\" \"files:file:_files\"");
        } else if (flag->choices != NULL) {
            putchar('(');
            print_choices(flag, " ");
            putchar(')');
        } else if (is_file(flag))
            printf("_files");
    }
    printf("' \\\n");
}

static void print_zsh(void)
{
    printf("#compdef kvbook\n# zsh completion of kvbook; made by the build out of the flags themselves\n\n_kvbook() {\n"
           "    local -a commands\n    commands=(\n");
    for (int i = 0; i < KVB_COMMANDS; i++) {
        printf("        '%s:", kvb_commands[i]->spec->name);
        put_zsh(kvb_commands[i]->spec->summary);
        printf("'\n");
    }
    printf("    )\n    if ((CURRENT == 2)); then\n        _describe -t commands 'kvbook command' commands\n        return\n    fi\n"
           "    shift words\n    ((CURRENT--))\n    case $words[1] in\n");
    for (int i = 0; i < KVB_COMMANDS; i++) {
        const kvb_command_spec *spec = kvb_commands[i]->spec;
        printf("    %s)\n        _arguments -S \\\n", spec->name);
        for (size_t g = 0; g < spec->groups; g++)
            for (size_t f = 0; f < spec->group[g].count; f++)
                print_zsh_flag(&spec->group[g].flags[f]);
        printf("        '*:file:_files'\n        ;;\n");
    }
    printf("    esac\n}\n\n_kvbook \"$@\"\n");
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";
    if (strcmp(what, "names") == 0 && argc == 2)
        for (int i = 0; i < KVB_COMMANDS; i++)
            puts(kvb_commands[i]->spec->name);
    else if (strcmp(what, "bash") == 0 && argc == 2)
        print_bash();
    else if (strcmp(what, "zsh") == 0 && argc == 2)
        print_zsh();
    else if (strcmp(what, "man") == 0 && argc == 2)
        print_man_list();
    else if (strcmp(what, "man") == 0 && argc == 3) {
        for (int i = 0; i < KVB_COMMANDS; i++)
            if (strcmp(kvb_commands[i]->spec->name, argv[2]) == 0) {
                print_man(kvb_commands[i]->spec);
                return ferror(stdout) || fflush(stdout) != 0;
            }
        fprintf(stderr, "pages: no command %s\n", argv[2]);
        return 2;
    } else {
        fprintf(stderr, "usage: pages names | man [COMMAND] | bash | zsh\n");
        return 2;
    }
    return ferror(stdout) || fflush(stdout) != 0;
}
