/* Made-up attention calls and captures, the same on every run. */
#ifndef KVB_TESTS_SYNTH_H
#define KVB_TESTS_SYNTH_H

#include "calib/capture.h"
#include "model/model.h"

/* n standard normals times `spread`; free with free(). */
float *synth_normals(size_t n, uint64_t key, double spread);

/* One layer's attention over T tokens, computed densely in double. */
typedef struct synth_call {
    kvb_layer layer;
    kvb_attention_call call;
    float *q, *k_pre, *k, *v, *out, *lse;
} synth_call;

/* Fills q, k and v at random and computes out and lse. window 0: full attention. The struct must not move after it. */
void synth_call_create(synth_call *s, uint32_t heads, uint32_t kv_heads, uint32_t dim, uint32_t tokens, uint32_t window,
                       uint64_t key);
void synth_call_free(synth_call *s);
/* The row of A of query i of head h over keys 0..T-1, masked ones 0; returns the log-sum-exp of the scaled scores. */
double synth_probabilities(const synth_call *s, uint32_t head, uint32_t i, double *row);
/* out of query i of head h, in double. */
void synth_output(const synth_call *s, uint32_t head, uint32_t i, double *out);

/* A capture of `layers` equal layers: keys and values from a mixture of clusters, positive skewed weights. */
typedef struct synth_capture {
    uint32_t layers, heads, kv_heads, dim, rows;
    uint64_t key;
} synth_capture;

/* To memory where path is NULL, else to the file (and *store is NULL). 0 if all is well. */
int synth_capture_make(const synth_capture *s, const char *path, kvb_capture_store **store);

#endif
