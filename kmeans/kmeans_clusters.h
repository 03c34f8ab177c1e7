/* A snapshot of which points each cluster has, after an assignment, and of their errors. */
#ifndef KVB_KMEANS_CLUSTERS_H
#define KVB_KMEANS_CLUSTERS_H

#include "kmeans/kmeans_internal.h"

/* Streams of random numbers, and what of a table is considered for a swap. */
enum { KVB_STREAM_REPAIR = 3, KVB_STREAM_SWAP = 5, KVB_SWAP_FRACTION = 16, KVB_FEWEST_TO_SWAP = 4 };

typedef struct kvb_swap_candidate {
    double value; /* first the cluster's error, then what its removal costs */
    uint32_t cluster;
} kvb_swap_candidate;

/* By value, then by cluster. */
void kvb_kmeans_swap_sort(kvb_swap_candidate *list, size_t count);
/* The share of a cluster's error that splitting it is hoped to save in a round of swaps. */
double kvb_kmeans_swap_saving(uint32_t channels, uint32_t round, uint32_t rounds);

typedef struct kvb_kmeans_clusters {
    double *error;  /* [K] sum of the errors of the points not yet taken */
    double *share;  /* [K] the same over the number of times the cluster was split, plus one */
    size_t *start;  /* [K + 1] where the points of a cluster begin in `member` */
    size_t *member; /* [n] */
    float *loss;    /* [n] weight times squared distance to the cluster's mean */
} kvb_kmeans_clusters;

kvb_status kvb_kmeans_clusters_open(kvb_kmeans_clusters *c, const kvb_kmeans_job *job, kvb_error *err);
void kvb_kmeans_clusters_close(kvb_kmeans_clusters *c);
/* The cluster with the largest share [K], the lowest index on ties. */
uint32_t kvb_kmeans_largest(const double *share, uint32_t centroids);
/* Moves centroid `to` to a point of cluster `from`, drawn by its error with the random number `unit`; false where the
 * cluster has no error left to split. */
bool kvb_kmeans_clusters_split(kvb_kmeans_clusters *c, kvb_kmeans_job *job, uint32_t from, uint32_t to, double unit);

#endif
