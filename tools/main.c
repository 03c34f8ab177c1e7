#include <stdlib.h>
#include <string.h>

#include "calib/capture_meta.h"
#include "calib/suggest.h"
#include "calib/team.h"
#include "format/base/fail.h"
#include "tools/commands.h"
#include "tools/input.h"

static void print_version(void)
{
    printf("kvbook %s\n", KVB_VERSION);
}

static void print_help(void)
{
    puts("usage: kvbook COMMAND [flags]\n\n"
         "Trains codebooks for the KV cache of a language model and scores them.\n\nCommands:");
    for (int i = 0; i < KVB_COMMANDS; i++)
        printf("  %-10s %s\n", kvb_commands[i]->spec->name, kvb_commands[i]->spec->summary);
    puts("\n`kvbook COMMAND --help` lists a command's flags; `kvbook --version` prints the version.\n\n"
         "Exit codes: 0 ok, 1 a check failed, 2 usage, 3 bad input file, 4 I/O, 5 out of memory or budget,\n"
         "6 mismatch (model, tokenizer, geometry), 7 no device, 130 interrupted.");
}

static kvb_status find_command(const char *name, const kvb_command **command, kvb_error *err)
{
    const char *known[KVB_COMMANDS];
    for (int i = 0; i < KVB_COMMANDS; i++) {
        known[i] = kvb_commands[i]->spec->name;
        if (strcmp(name, known[i]) == 0) {
            *command = kvb_commands[i];
            return KVB_OK;
        }
    }
    if (name[0] == '-')
        return kvb_fail(err, KVB_E_USAGE, name, "expected a command first, such as `kvbook info`; see `kvbook --help`");
    return kvb_fail(err, KVB_E_USAGE, name, "unknown command; did you mean %s? `kvbook --help` lists them",
                    kvb_suggest(name, known, KVB_COMMANDS));
}

/* Output that never reached its file is a failure, even where every printf() looked well. */
static kvb_status close_stdout(kvb_status status, kvb_error *err)
{
    int failed = ferror(stdout);
    if ((fflush(stdout) != 0 || failed) && status == KVB_OK)
        return kvb_fail(err, KVB_E_IO, "standard output", "could not be written in full; is the disk full?");
    return status;
}

static bool asked_for_version(int argc, char **argv)
{
    for (int i = 0; i < argc && strcmp(argv[i], "--") != 0; i++)
        if (strcmp(argv[i], "--version") == 0)
            return true;
    return false;
}

static kvb_status run_command(const kvb_command *command, int argc, char **argv, kvb_error *err)
{
    const kvb_command_spec *spec = command->spec;
    void *args = malloc(spec->args_size);
    const char **pool = calloc((size_t)argc * KVB_MOST_LISTS + 1, sizeof *pool);
    kvb_status status = KVB_OK;
    bool help = false;
    if (args == NULL || pool == NULL) {
        status = kvb_fail_memory(err, "command line");
        goto out;
    }
    memcpy(args, command->defaults, spec->args_size);
    status = kvb_args_parse(spec, argc, argv, pool, args, &help, err);
    if (status != KVB_OK)
        goto out;
    if (help) {
        kvb_args_print_help(spec);
        goto out;
    }
    if (command != &kvb_calibrate_command && kvb_team_launched().size > 1) {
        status = kvb_fail(err, KVB_E_USAGE, spec->name, "started as one of %u processes; of all commands calibrate alone shares its work",
                          kvb_team_launched().size);
        goto out;
    }
    const kvb_common_args *common = args;
    kvb_progress progress;
    kvb_progress_init(&progress, common->quiet, common->verbose, common->no_progress);
    kvb_use_threads(common);
    kvb_interrupt_install();
    status = command->run(args, &progress, err);
    kvb_progress_drop(&progress);
out:
    free(args);
    free(pool);
    return status;
}

static kvb_status run(int argc, char **argv, kvb_error *err)
{
    const kvb_command *command = NULL;
    if (argc < 2)
        return kvb_fail(err, KVB_E_USAGE, "", "no command; see `kvbook --help`");
    if (strcmp(argv[1], "--version") == 0) {
        print_version();
        return KVB_OK;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 || strcmp(argv[1], "help") == 0) {
        print_help();
        return KVB_OK;
    }
    kvb_status status = find_command(argv[1], &command, err);
    if (status != KVB_OK)
        return status;
    if (asked_for_version(argc - 2, argv + 2)) {
        print_version();
        return KVB_OK;
    }
    return run_command(command, argc - 2, argv + 2, err);
}

int main(int argc, char **argv)
{
    kvb_error err = {0};
    kvb_status status = run(argc, argv, &err);
    status = close_stdout(status, &err);
    /* All processes of a team end with the same error. The first one says it, and alone exits with it: mpirun ends all of them as soon as
     * one does, which could be before it was said. */
    if (kvb_team_launched().rank > 0)
        return 0;
    if (status != KVB_OK)
        kvb_print_error(&err);
    return (int)status;
}
