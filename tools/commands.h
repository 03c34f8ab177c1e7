/* The sub-commands: what main.c needs of each. */
#ifndef KVB_TOOLS_COMMANDS_H
#define KVB_TOOLS_COMMANDS_H

#include "tools/flags.h"
#include "tools/progress.h"

typedef struct kvb_command {
    const kvb_command_spec *spec;
    const void *defaults; /* args_size bytes, beginning with a kvb_common_args */
    kvb_status (*run)(const void *args, kvb_progress *p, kvb_error *err);
} kvb_command;

extern const kvb_command kvb_capture_command, kvb_train_command, kvb_tune_command, kvb_calibrate_command, kvb_eval_command,
    kvb_generate_command, kvb_info_command, kvb_verify_command, kvb_report_command, kvb_recipes_command, kvb_compare_command,
    kvb_bench_command, kvb_pack_command, kvb_diff_command, kvb_export_command, kvb_import_command, kvb_merge_command;

/* All of them, in the order of `kvbook --help`, the manual and the completions. */
enum { KVB_COMMANDS = 17 };
extern const kvb_command *const kvb_commands[KVB_COMMANDS];

#endif
