/* Lloyd's iterations by libfaiss: a C face of faiss::Clustering, built with `make FAISS=1` only. */
#ifndef KVB_KMEANS_FAISS_H
#define KVB_KMEANS_FAISS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct kvb_kmeans_faiss_call {
    const float *points;  /* [n][d] */
    const float *weights; /* [n] with a sum of 2n, see kmeans_backend.c; or NULL */
    size_t count;         /* n >= K */
    uint32_t channels, centroids, iterations;
    int threads, seed;
    float *table;         /* in: [K][d] to start from; out: where it ended */
} kvb_kmeans_faiss_call;

/* 0; 1 where memory ran out; 2 for anything else that FAISS throws, with its words in message[size]. */
int kvb_kmeans_faiss_train(const kvb_kmeans_faiss_call *call, char *message, size_t size);

#ifdef __cplusplus
}
#endif
#endif
