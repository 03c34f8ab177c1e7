/* The GPU cache (kvbook/cuda.h) as the attention of a forward pass: sequences of one length that go through it side by side, token
 * by token, as an engine that generates them would. So what is scored is what runs. */
#ifndef KVB_CUDA_LOCKSTEP_H
#define KVB_CUDA_LOCKSTEP_H

#include "cuda/calib/cuda_forward.h"
#include "kvbook/cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct kvb_cuda_lockstep kvb_cuda_lockstep;

/* positions: the most tokens of a sequence. `book` must outlive the result. KVB_E_USAGE for a book that the GPU cache refuses. */
kvb_status kvb_cuda_lockstep_create(int device, const kvb_book *book, const kvb_policy *policy, uint64_t seed, uint32_t sequences,
                                    uint32_t positions, kvb_cuda_lockstep **out, kvb_error *err);
void kvb_cuda_lockstep_destroy(kvb_cuda_lockstep *l); /* NULL is allowed */
/* A kvb_cuda_attend_fn; user: the lockstep. A layer's sequences begin anew where position is 0, and go on elsewhere. */
kvb_status kvb_cuda_lockstep_attend(void *user, uint32_t layer, const kvb_cuda_handed *handed, struct CUstream_st *stream, kvb_error *err);
/* Waits for the stream and tells what went wrong since the last check: KVB_E_CHECK for keys or values that are not finite. */
kvb_status kvb_cuda_lockstep_check(kvb_cuda_lockstep *l, struct CUstream_st *stream, kvb_error *err);

#ifdef __cplusplus
}
#endif
#endif
