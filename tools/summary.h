/* Numbers about a whole book that info, verify, eval and report all show. */
#ifndef KVB_TOOLS_SUMMARY_H
#define KVB_TOOLS_SUMMARY_H

#include "calib/shape.h"
#include "format/base/json.h"
#include "format/book_write.h"
#include "kvbook/cache.h"
#include "tools/flags.h"

/* Bits per element over the heads of one kind. */
typedef struct kvb_rate_range {
    double least, most, mean;
} kvb_rate_range;

typedef struct kvb_book_summary {
    kvb_rate_range rate[2];           /* by kvb_kind; NaN where there are no codebooks */
    double bits_nominal; /* log2(K)/d, averaged over the elements of layers with codebooks */
    uint32_t codebooks, layers_exact; /* layers_exact: without codebooks */
    const kvb_codebook *first[2];     /* by kvb_kind: the first of each; NULL where there is none */
    bool uniform[2];                  /* whether all have that d, K and stages */
    const kvb_codebook *fine[2];      /* the first fine one of each kind; NULL where the book has none */
    bool fine_uniform[2];
    uint64_t fine_bytes;              /* of all fine tables */
} kvb_book_summary;

kvb_book_summary kvb_summarise_book(const kvb_book *book);

/* Lengths of a cache whose effective bits are always told, and those of a cache without a book: half floats. */
enum { KVB_CTX_2K = 2048, KVB_CTX_32K = 32768, KVB_CTX_128K = 131072, KVB_EXACT_BITS = 16 };

/* 8 * bytes / elements of a cache of `tokens` tokens, codebooks included; of an exact one where the book is NULL. */
double kvb_effective_bits(const kvb_book *book, const kvb_policy *policy, uint64_t tokens);

/* KVB_E_USAGE where the policy that flags make of the book's asks for fine codes, and the book at `path` has none. */
kvb_status kvb_check_book_form(const kvb_policy_args *a, const kvb_book *book, const char *path, kvb_error *err);

/* The members bits_effective_2k, _32k and _128k of a JSON object. */
void kvb_put_effective_bits(kvb_json_writer *w, const kvb_book *book, const kvb_policy *policy);

/* Means over the groups of one layer's codebooks of a kind, and the worst; NaN where nothing is known. */
typedef struct kvb_layer_quality {
    double train, heldout, usage, entropy, worst; /* worst: of the held-out errors, or else of the train errors */
} kvb_layer_quality;
kvb_layer_quality kvb_average_quality(const kvb_book *book, uint32_t layer, kvb_kind kind);

/* Mean over layers of train or held-out errors. */
kvb_layer_quality kvb_average_book_quality(const kvb_book *book, kvb_kind kind);

/* "8x256" or "add:8x16+16". */
const char *kvb_codebook_text(const kvb_codebook *c, char text[KVB_SHAPE_TEXT]);
/* "pre", "post" or "block:16". */
const char *kvb_frame_text(const kvb_layer *layer, char text[32]);
/* "anchors 1 % by exact-k, window 32, sinks 0", and ", as fine codes" where they are. */
const char *kvb_policy_text(const kvb_policy *policy, char text[96]);
/* The object "policy"; with the anchor protocol, unless that is NULL. */
void kvb_put_policy(kvb_json_writer *w, const kvb_policy *policy, const char *protocol);
/* Its members, into an object that is open. */
void kvb_put_policy_members(kvb_json_writer *w, const kvb_policy *policy, const char *protocol);

#endif
