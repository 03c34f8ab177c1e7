#include "kmeans/kmeans_faiss.h"

#include <faiss/Clustering.h>
#include <faiss/IndexFlat.h>
#include <omp.h>

#include <cstdio>
#include <cstring>
#include <exception>
#include <limits>
#include <new>

namespace {

void train(const kvb_kmeans_faiss_call &call)
{
    const size_t floats = (size_t)call.centroids * call.channels;
    faiss::ClusteringParameters parameters;
    parameters.niter = (int)call.iterations;
    parameters.seed = call.seed;
    parameters.min_points_per_centroid = 1;
    /* 1.7.3 trains on a sample of 256 points a centroid unless told otherwise. */
    parameters.max_points_per_centroid = std::numeric_limits<int>::max();
    faiss::Clustering clustering((int)call.channels, (int)call.centroids, parameters);
    clustering.centroids.assign(call.table, call.table + floats);
    faiss::IndexFlatL2 index((faiss::Index::idx_t)call.channels);
    clustering.train((faiss::Index::idx_t)call.count, call.points, index, call.weights);
    std::memcpy(call.table, clustering.centroids.data(), floats * sizeof(float));
}

/* omp_set_num_threads() is the calling thread's own setting: it goes back whatever happens. */
struct thread_limit {
    int before;
    explicit thread_limit(int threads) : before(omp_get_max_threads()) { omp_set_num_threads(threads); }
    ~thread_limit() { omp_set_num_threads(before); }
    thread_limit(const thread_limit &) = delete;
    thread_limit &operator=(const thread_limit &) = delete;
};

} // namespace

int kvb_kmeans_faiss_train(const kvb_kmeans_faiss_call *call, char *message, size_t size)
{
    try {
        thread_limit limit(call->threads);
        train(*call);
        return 0;
    } catch (const std::bad_alloc &) {
        return 1;
    } catch (const std::exception &e) {
        std::snprintf(message, size, "%s", e.what());
    } catch (...) {
        std::snprintf(message, size, "an unknown exception");
    }
    return 2;
}
