#include "tools/flags.h"

#include "format/base/fail.h"

#define COUNT(array) (sizeof(array) / sizeof *(array))

static const char *const tune_streams[] = {"coded", "exact", NULL};
static const char *const tune_objectives[] = {"kl", "attention", NULL};
static const char *const tune_exact[] = {"policy", "none", NULL};
static const char *const scores[] = {"exact-k", "exact-v", "key-norm", "first-n", "random", NULL};
static const char *const backends[] = {"own", "faiss", NULL}; /* by kvb_kmeans_backend */

static const char *const forms[] = {"half", "fine", NULL}; /* by kvb_exact_form */

const kvb_flag kvb_common_flags[6] = {
    {"--quiet", KVB_FLAG_BOOL, NULL, "say nothing but errors and warnings", .offset = offsetof(kvb_common_args, quiet),
     .letter = "-q"},
    {"--verbose", KVB_FLAG_BOOL, NULL, "say more", .offset = offsetof(kvb_common_args, verbose), .letter = "-v"},
    {"--no-progress", KVB_FLAG_BOOL, NULL, "no progress lines", .offset = offsetof(kvb_common_args, no_progress)},
    {"--threads", KVB_FLAG_COUNT, "N", "threads to use (default: all cores); results do not depend on it",
     .offset = offsetof(kvb_common_args, threads), .least = 1, .most = 1024},
    {"--help", KVB_FLAG_BOOL, NULL, "print this", .offset = offsetof(kvb_common_args, help), .letter = "-h"},
    {"--version", KVB_FLAG_BOOL, NULL, "print the version", .offset = offsetof(kvb_common_args, version)},
};

const kvb_flag kvb_model_flags[3] = {
    {"--model", KVB_FLAG_STRING, "FILE", "the model: GGUF, a Hugging Face folder, or a llama2.c checkpoint",
     .offset = offsetof(kvb_model_args, model), .required = true},
    {"--tokenizer", KVB_FLAG_STRING, "FILE", "llama2.c's tokenizer.bin (a GGUF has its own)",
     .offset = offsetof(kvb_model_args, tokenizer)},
    {"--max-weights", KVB_FLAG_SIZE, "SIZE",
     "memory for weights expanded to float32; beyond it they are expanded whenever used, which is slower (default: no "
     "limit)",
     .offset = offsetof(kvb_model_args, max_weights)},
};

const kvb_flag kvb_text_flags[6] = {
    {"--text", KVB_FLAG_STRINGS, "FILE",
     "UTF-8 files, read in order; of a .jsonl file the field `text` of each line",
     .offset = offsetof(kvb_text_args, text),
     .required = true},
    {"--ctx", KVB_FLAG_COUNT, "N", "tokens of a chunk (default 2048, or the model's context where that is shorter)",
     .offset = offsetof(kvb_text_args, ctx), .least = 2, .most = 1 << 24},
    {"--chunks", KVB_FLAG_COUNT, "N", "chunks to use at most (default: all)", .offset = offsetof(kvb_text_args, chunks),
     .least = 1, .most = 0},
    {"--skip", KVB_FLAG_COUNT, "N", "chunks to pass over first (default 0)", .offset = offsetof(kvb_text_args, skip)},
    {"--bos", KVB_FLAG_BOOL, NULL,
     "put the beginning-of-sequence token in place of each chunk's first (default: what the model file asks for)",
     .offset = offsetof(kvb_text_args, bos)},
    {"--no-bos", KVB_FLAG_BOOL, NULL, "do not, whatever the model file asks for",
     .offset = offsetof(kvb_text_args, no_bos)},
};

const kvb_flag kvb_recipe_flags[8] = {
    {"--recipe", KVB_FLAG_STRING, "NAME", "a built-in recipe (`kvbook recipes`) or a recipe file (.json)",
     .offset = offsetof(kvb_recipe_args, recipe)},
    {"--bits", KVB_FLAG_REAL, "B", "bits per element: 0.375, 0.5, 0.75, 1, 2, 3 or 4, and any number between where they are dealt out",
     .offset = offsetof(kvb_recipe_args, bits), .least = 0, .most = 16},
    {"--allocate", KVB_FLAG_BOOL, NULL, "deal the bits out over layers, heads, keys and values, also where the recipe does not",
     .offset = offsetof(kvb_recipe_args, allocate)},
    {"--no-allocate", KVB_FLAG_BOOL, NULL, "one shape for all keys and one for all values, also where the recipe deals out",
     .offset = offsetof(kvb_recipe_args, no_allocate)},
    {"--k", KVB_FLAG_STRING, "DxK",
     "shape of the keys' codebooks: 8x256 (channels x centroids) or add:8x16+16 (sums of stages)",
     .offset = offsetof(kvb_recipe_args, shape_k)},
    {"--v", KVB_FLAG_STRING, "DxK", "shape of the values' codebooks", .offset = offsetof(kvb_recipe_args, shape_v)},
    {"--seed", KVB_FLAG_COUNT, "N", "of everything drawn at random (default 1)",
     .offset = offsetof(kvb_recipe_args, seed)},
    {"--kmeans", KVB_FLAG_CHOICE, "NAME", "who trains (default own; faiss in a build with `make FAISS=1`)",
     .offset = offsetof(kvb_recipe_args, kmeans), .choices = backends},
};

const kvb_flag kvb_policy_flags[5] = {
    {"--anchors", KVB_FLAG_FRACTION, "SHARE", "of the tokens that left the window stay exact: 0.01 or 1%",
     .offset = offsetof(kvb_policy_args, anchors)},
    {"--anchor-score", KVB_FLAG_CHOICE, "NAME", "what makes a token an anchor",
     .offset = offsetof(kvb_policy_args, score),
     .choices = scores},
    {"--window", KVB_FLAG_COUNT, "N", "most recent tokens kept exact, the current one included",
     .offset = offsetof(kvb_policy_args, window), .most = 1 << 24},
    {"--sinks", KVB_FLAG_COUNT, "N", "first tokens kept exact", .offset = offsetof(kvb_policy_args, sinks),
     .most = 1 << 24},
    {"--exact", KVB_FLAG_CHOICE, "FORM",
     "window and anchors as half floats, or as codes of the book's fine codebooks (sinks: always half floats)",
     .offset = offsetof(kvb_policy_args, exact), .choices = forms},
};

const char *const kvb_on_nan_choices[] = {"stop", "quarantine", NULL};

const char *const kvb_device_names[] = {"cpu", "cuda", "cuda:all", NULL};
const char *const kvb_protocol_names[] = {"causal", "chunk", NULL};

const kvb_flag kvb_capture_flags[3] = {
    {"--max-memory", KVB_FLAG_SIZE, "SIZE",
     "memory of the whole calibration (default 8G); tokens are sampled evenly where all would not fit",
     .offset = offsetof(kvb_capture_args, max_memory)},
    {"--on-nan", KVB_FLAG_CHOICE, "WHAT", KVB_ON_NAN_HELP, .offset = offsetof(kvb_capture_args, on_nan),
     .choices = kvb_on_nan_choices},
    {"--device", KVB_FLAG_DEVICE, "NAME", "where the model runs and k-means trains: cpu (the default), cuda, cuda:all or cuda:0,1",
     .offset = offsetof(kvb_capture_args, device), .choices = kvb_device_names},
};

const kvb_flag kvb_checkpoint_flags[2] = {
    {"--checkpoint", KVB_FLAG_STRING, "DIR",
     "keep what is done in this folder while the job runs (with --resume and without this: the book's name and .ckpt); it is "
     "removed when the book is written", .offset = offsetof(kvb_checkpoint_args, folder)},
    {"--resume", KVB_FLAG_BOOL, NULL,
     "go on from the checkpoint of a job that was killed; begins one where there is none, refuses one of another job",
     .offset = offsetof(kvb_checkpoint_args, resume)},
};

const kvb_flag kvb_tune_flags[6] = {
    {"--tune", KVB_FLAG_COUNT, "N", "tune the centroids, N passes over the text (0: do not)",
     .offset = offsetof(kvb_tune_args, epochs), .most = 1000},
    {"--tune-batch", KVB_FLAG_COUNT, "N", "chunks of a step (default 2)", .offset = offsetof(kvb_tune_args, batch),
     .least = 1, .most = 1 << 20},
    {"--tune-rate", KVB_FLAG_REAL, "R", "length of the first step, in standard deviations of the centroids (default 0.05, "
     "of --tune-objective attention 0.02)",
     .offset = offsetof(kvb_tune_args, rate), .least = 1e-6, .most = 1e6},
    {"--tune-exact", KVB_FLAG_CHOICE, "NAME", "which tokens are read exactly meanwhile: those that the book's policy keeps, "
     "or none", .offset = offsetof(kvb_tune_args, exact), .choices = tune_exact},
    {"--tune-stream", KVB_FLAG_CHOICE, "NAME", "with --tune-objective attention: whose queries, keys and values a layer is tuned "
     "on, those behind earlier layers that read codes, or the exact model's, which is quicker", .offset = offsetof(kvb_tune_args, stream),
     .choices = tune_streams},
    {"--tune-objective", KVB_FLAG_CHOICE, "NAME", "what comes closer to the exact model: its predictions, or each layer's "
     "attention output, which is quicker and worse", .offset = offsetof(kvb_tune_args, objective),
     .choices = tune_objectives},
};

const kvb_flag kvb_override_flags[2] = {
    {"--allow-model-mismatch", KVB_FLAG_BOOL, NULL, "use a book that was made from another model file",
     .offset = offsetof(kvb_override_args, model)},
    {"--allow-tokenizer-mismatch", KVB_FLAG_BOOL, NULL, "use a book that was made with another tokenizer",
     .offset = offsetof(kvb_override_args, tokenizer)},
};

kvb_status kvb_recipe_from_args(const kvb_recipe_args *a, kvb_recipe *recipe, kvb_error *err)
{
    if (a->recipe == NULL)
        return kvb_fail(err, KVB_E_USAGE, "--recipe", "missing: name one, such as antkv; `kvbook recipes` lists them");
    if (!kvb_kmeans_has_backend((kvb_kmeans_backend)a->kmeans.value))
        return kvb_fail(err, KVB_E_USAGE, "--kmeans",
                        "%s is not in this build: install libfaiss-dev and build with `make FAISS=1`, or use own",
                        backends[a->kmeans.value]);
    kvb_status status = kvb_recipe_load(a->recipe, recipe, err);
    if (status != KVB_OK)
        return status;
    recipe->backend = (kvb_kmeans_backend)a->kmeans.value;
    const char *shape = a->shape_k != NULL ? "--k" : a->shape_v != NULL ? "--v" : NULL;
    if (a->allocate && (shape != NULL || a->no_allocate))
        status = kvb_fail(err, KVB_E_USAGE, "--allocate", "chooses shapes by itself: expected --bits alone, without %s",
                          a->no_allocate ? "--no-allocate" : shape);
    else if (a->allocate)
        status = kvb_recipe_allocate(recipe, err);
    if (recipe->ladder_count > 0 && !a->allocate && (a->no_allocate || shape != NULL))
        kvb_recipe_fix_shapes(recipe);
    if (status == KVB_OK && a->bits.set)
        status = kvb_recipe_set_bits(recipe, a->bits.value, err);
    if (status == KVB_OK && a->shape_k != NULL)
        status = kvb_recipe_set_shape(recipe, KVB_KEY, a->shape_k, err);
    if (status == KVB_OK && a->shape_v != NULL)
        status = kvb_recipe_set_shape(recipe, KVB_VALUE, a->shape_v, err);
    if (status == KVB_OK && recipe->ladder_count > 0 && !(recipe->budget > 0.0))
        status = kvb_fail(err, KVB_E_USAGE, "--bits", "missing: recipe %s deals out bits over heads; say how many on average, "
                          "such as --bits 1", recipe->name);
    if (status == KVB_OK && (recipe->kind[KVB_KEY].shape.channels == 0 || recipe->kind[KVB_VALUE].shape.channels == 0))
        status = kvb_fail(err, KVB_E_USAGE, "--bits",
                          "missing: recipe %s names no shape; give --bits 1, or --k and --v",
                          recipe->name);
    if (status != KVB_OK)
        kvb_recipe_free(recipe);
    return status;
}

const char *kvb_policy_flag_given(const kvb_policy_args *a)
{
    return a->anchors.set  ? "--anchors"
           : a->score.set  ? "--anchor-score"
           : a->window.set ? "--window"
           : a->sinks.set  ? "--sinks"
           : a->exact.set  ? "--exact"
                           : NULL;
}

kvb_policy kvb_policy_from_args(const kvb_policy_args *a, kvb_policy policy)
{
    if (a->anchors.set)
        policy.anchor_fraction = a->anchors.value;
    if (a->score.set)
        policy.score = (kvb_anchor_score)a->score.value;
    if (a->window.set)
        policy.window = (uint32_t)a->window.value;
    if (a->sinks.set)
        policy.sinks = (uint32_t)a->sinks.value;
    if (a->exact.set)
        policy.exact = (kvb_exact_form)a->exact.value;
    return policy;
}

kvb_status kvb_check_exact_form(const kvb_policy *policy, bool has_fine, const char *name, kvb_error *err)
{
    if (policy->exact == KVB_EXACT_HALF || has_fine)
        return KVB_OK;
    return kvb_fail(err, KVB_E_USAGE, "--exact", "fine: %s has no fine codebooks; make a book with a recipe that gives "
                    "\"fine\" shapes (such as \"2x256\") to keys and values, or say --exact half", name);
}

const char *kvb_form_name(kvb_exact_form form)
{
    return (size_t)form < COUNT(forms) - 1 ? forms[form] : "?";
}

const char *kvb_score_name(kvb_anchor_score score)
{
    return (size_t)score < COUNT(scores) - 1 ? scores[score] : "?";
}
