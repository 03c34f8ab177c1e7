/* Training two codebooks in one call: the groups of channels 0..7 and 8..15 of the same rows, read in place. */
#include <stdio.h>
#include <stdlib.h>

#include "kvbook/kmeans.h"

enum { ROWS = 20000, WIDTH = 16, CHANNELS = 8, CENTROIDS = 64, GROUPS = WIDTH / CHANNELS };

static float rows[ROWS * WIDTH];
static float tables[GROUPS][CENTROIDS * CHANNELS];

int main(void)
{
    for (int i = 0; i < ROWS * WIDTH; i++)
        rows[i] = (float)rand() / (float)RAND_MAX + (float)rand() / (float)RAND_MAX;

    kvb_kmeans_problem problems[GROUPS];
    kvb_kmeans_result results[GROUPS];
    for (int g = 0; g < GROUPS; g++)
        problems[g] = (kvb_kmeans_problem){
            .points = rows + g * CHANNELS,
            .type = KVB_POINTS_F32,
            .count = ROWS,
            .stride = WIDTH,
            .channels = CHANNELS,
            .centroids = CENTROIDS,
            .seed = (uint64_t)g,
            .table = tables[g],
        };

    kvb_kmeans_options options;
    kvb_error error;
    kvb_kmeans_options_init(&options);
    options.holdout_every = 16;
    if (kvb_kmeans_train(problems, GROUPS, &options, results, &error) != KVB_OK) {
        fprintf(stderr, "%s: %s: %s\n", kvb_status_name(error.code), error.where, error.message);
        return 1;
    }
    for (int g = 0; g < GROUPS; g++)
        printf("group %d: error %.5f, held out %.5f, of a variance of %.5f; %u of %d centroids used\n", g,
               results[g].train_error, results[g].heldout_error, results[g].variance, results[g].used, CENTROIDS);
    return 0;
}
