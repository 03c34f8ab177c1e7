#include "format/base/outliers.h"

#include <math.h>
#include <stdbool.h>

static bool is_picked(const uint32_t *place, uint32_t picked, uint32_t at)
{
    for (uint32_t i = 0; i < picked; i++)
        if (place[i] == at)
            return true;
    return false;
}

static void insert(uint32_t *place, uint32_t picked, uint32_t at)
{
    uint32_t i = picked;
    for (; i > 0 && place[i - 1] > at; i--)
        place[i] = place[i - 1];
    place[i] = at;
}

/* Mean of a group's numbers that are not picked; they are never all picked. */
static double mean_of(const float *y, uint32_t first, uint32_t run, const uint32_t *place, uint32_t picked)
{
    double sum = 0.0;
    uint32_t count = 0;
    for (uint32_t i = first; i < first + run; i++)
        if (!is_picked(place, picked, i)) {
            sum += (double)y[i];
            count++;
        }
    return sum / count;
}

void kvb_outliers_of_groups(const float *y, uint32_t dim, uint32_t run, uint32_t count, uint32_t *place)
{
    for (uint32_t picked = 0; picked < count; picked++) {
        uint32_t best = 0;
        double most = -1.0;
        for (uint32_t first = 0; first < dim; first += run) {
            const double mean = mean_of(y, first, run, place, picked);
            for (uint32_t i = first; i < first + run; i++)
                if (fabs((double)y[i] - mean) > most && !is_picked(place, picked, i)) {
                    most = fabs((double)y[i] - mean);
                    best = i;
                }
        }
        insert(place, picked, best);
    }
}

void kvb_outliers_of_channels(const float *y, const float *offset, const float *scale, uint32_t dim, uint32_t count, uint32_t *place)
{
    for (uint32_t picked = 0; picked < count; picked++) {
        uint32_t best = 0;
        float most = -1.0f;
        for (uint32_t i = 0; i < dim; i++) {
            const float distance = fabsf(y[i] - offset[i]) / scale[i];
            if (distance > most && !is_picked(place, picked, i)) {
                most = distance;
                best = i;
            }
        }
        insert(place, picked, best);
    }
}
