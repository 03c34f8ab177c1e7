#include "tools/commands.h"

const kvb_command *const kvb_commands[KVB_COMMANDS] = {
    &kvb_calibrate_command, &kvb_eval_command,    &kvb_generate_command, &kvb_capture_command, &kvb_train_command,
    &kvb_merge_command,     &kvb_tune_command,    &kvb_pack_command,     &kvb_info_command,    &kvb_verify_command,
    &kvb_diff_command,      &kvb_report_command,  &kvb_export_command,   &kvb_import_command,  &kvb_recipes_command,
    &kvb_compare_command,   &kvb_bench_command,
};
