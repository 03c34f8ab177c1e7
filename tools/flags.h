/* Groups of flags that several commands share, and the structs that they fill. */
#ifndef KVB_TOOLS_FLAGS_H
#define KVB_TOOLS_FLAGS_H

#include "calib/recipe.h"
#include "runtime/prefill.h"
#include "tools/args.h"

/* Every command's options begin with this. */
typedef struct kvb_common_args {
    bool quiet, verbose, no_progress, help, version;
    kvb_arg_u64 threads;
} kvb_common_args;

typedef struct kvb_model_args {
    const char *model, *tokenizer;
    kvb_arg_u64 max_weights;
} kvb_model_args;

typedef struct kvb_text_args {
    kvb_strings text;
    kvb_arg_u64 ctx, chunks, skip;
    bool bos, no_bos;
} kvb_text_args;

typedef struct kvb_recipe_args {
    const char *recipe, *shape_k, *shape_v;
    kvb_arg_real bits;
    kvb_arg_u64 seed, kmeans;
    bool allocate, no_allocate;
} kvb_recipe_args;

typedef struct kvb_policy_args {
    kvb_arg_real anchors;
    kvb_arg_u64 score, window, sinks, exact;
} kvb_policy_args;

/* How a run over text is captured. */
typedef struct kvb_capture_args {
    kvb_arg_u64 max_memory;
    kvb_arg_u64 on_nan; /* KVB_ON_NAN_STOP or _QUARANTINE */
    kvb_arg_u64 device; /* kvb_device */
} kvb_capture_args;

/* What a NaN or infinity among keys, values or weights does. */
enum { KVB_ON_NAN_STOP = 0, KVB_ON_NAN_QUARANTINE = 1 };
extern const char *const kvb_on_nan_choices[];
#define KVB_ON_NAN_HELP                                                                                                 \
    "what a NaN or infinity does: stop (the default) ends the run and names layer, head and token; quarantine leaves "  \
    "the row out and counts it"

/* A job that may be killed and goes on later. */
typedef struct kvb_checkpoint_args {
    const char *folder;
    bool resume;
} kvb_checkpoint_args;

/* What tuning lets queries read exactly. */
enum { KVB_TUNE_EXACT_POLICY = 0, KVB_TUNE_EXACT_NONE = 1 };
enum { KVB_TUNE_PREDICTIONS = 0, KVB_TUNE_ATTENTION = 1 };

/* Tuning of centroids. */
typedef struct kvb_tune_args {
    kvb_arg_u64 epochs, batch, exact, stream, objective;
    kvb_arg_real rate;
} kvb_tune_args;

/* Using a book with a model that it was not made from. */
typedef struct kvb_override_args {
    bool model, tokenizer;
} kvb_override_args;

extern const kvb_flag kvb_common_flags[6], kvb_model_flags[3], kvb_text_flags[6], kvb_recipe_flags[8],
    kvb_policy_flags[5], kvb_capture_flags[3], kvb_tune_flags[6],
    kvb_override_flags[2], kvb_checkpoint_flags[2];

/* What completion offers for --device, and the choices of --anchor-protocol, by kvb_anchor_protocol. */
extern const char *const kvb_device_names[], *const kvb_protocol_names[];

/* A group of a command whose options are `type`, with the group's struct as `member`. */
#define KVB_GROUP(name_, title_, type, member)                                                                          \
    {                                                                                                                  \
        .title = (title_), .flags = kvb_##name_##_flags,                                                               \
        .count = sizeof kvb_##name_##_flags / sizeof *kvb_##name_##_flags, .base = offsetof(type, member)              \
    }

/* The recipe that the flags ask for. KVB_E_USAGE where neither flags nor recipe say how many bits. */
kvb_status kvb_recipe_from_args(const kvb_recipe_args *a, kvb_recipe *recipe, kvb_error *err);
/* `policy` with what the flags override. */
kvb_policy kvb_policy_from_args(const kvb_policy_args *a, kvb_policy policy);
/* The first flag of the group that was given, or NULL. */
const char *kvb_policy_flag_given(const kvb_policy_args *a);
/* KVB_E_USAGE where the policy asks for fine codes of a book or recipe, `name`, that has none. */
kvb_status kvb_check_exact_form(const kvb_policy *policy, bool has_fine, const char *name, kvb_error *err);
/* What --json and tables call a score, and the form of what is kept: "half" or "fine". */
const char *kvb_form_name(kvb_exact_form form);
const char *kvb_score_name(kvb_anchor_score score);

#endif
