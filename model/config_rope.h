/* Rotary position embedding out of a Hugging Face configuration. */
#ifndef KVB_MODEL_CONFIG_ROPE_H
#define KVB_MODEL_CONFIG_ROPE_H

#include "format/base/json.h"
#include "kvbook/book.h"

typedef struct kvb_rope_source {
    const char *path;     /* for errors */
    const kvb_json *rope; /* the object rope_parameters or rope_scaling; NULL: no scaling */
    double base, part;    /* where the object says nothing: rope_theta, partial_rotary_factor */
} kvb_rope_source;

/* Fills style, dims, base and factors of a layer whose head_dim is there. *factors [rope_dims/2] is allocated where RoPE is
 * scaled, else NULL. KVB_E_FORMAT for types other than default, linear and llama3 and for keys that these do not have. */
kvb_status kvb_config_rope(const kvb_rope_source *source, kvb_layer *layer, float **factors, kvb_error *err);

#endif
