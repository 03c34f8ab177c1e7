#include "calib/shape.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_CHANNELS = 64, MOST_BITS = 16, MOST_STAGES = 8 };
static const char additive[] = "add:";

/* A number from 1 on, without sign, space or leading zero; 0 where there is none. What is too large saturates. */
static unsigned long read_number(const char **at)
{
    char *end;
    if (**at < '1' || **at > '9')
        return 0;
    unsigned long number = strtoul(*at, &end, 10);
    *at = end;
    return number;
}

static bool is_centroids(unsigned long k)
{
    return k >= 2 && k <= 1ul << MOST_BITS && (k & (k - 1)) == 0;
}

/* "256" or "16+16" up to the end of the text. */
static const char *parse_stages(const char *at, kvb_shape *shape)
{
    unsigned long first = read_number(&at), stages = first > 0, other;
    while (first > 0 && *at == '+') {
        at++;
        other = read_number(&at);
        if (other == 0)
            return "expected a number of centroids after each +, such as add:8x16+16";
        if (other != first)
            return "all stages must have the same number of centroids, such as add:8x16+16";
        stages++;
    }
    if (first == 0 || *at != '\0')
        return "expected d x K, such as 8x256, or d x the centroids of each stage, such as add:8x16+16";
    if (!is_centroids(first))
        return "K (centroids) must be a power of two from 2 to 65536";
    if (stages > MOST_STAGES)
        return "at most 8 stages can be added up";
    if (kvb_shape_bits((uint32_t)first, (uint32_t)stages) > MOST_BITS)
        return "the stages multiplied make over 65536 codes";
    shape->centroids = (uint32_t)first;
    shape->stages = (uint32_t)stages;
    return NULL;
}

const char *kvb_shape_parse(const char *text, kvb_shape *shape)
{
    const bool adds = strncmp(text, additive, sizeof additive - 1) == 0;
    const char *at = adds ? text + sizeof additive - 1 : text, *problem;
    kvb_shape found = {0};
    unsigned long d = read_number(&at);
    if (d == 0 || *at != 'x')
        return "expected d x K, such as 8x256, or d x the centroids of each stage, such as add:8x16+16";
    problem = parse_stages(at + 1, &found);
    if (problem != NULL)
        return problem;
    if (d > MOST_CHANNELS)
        return "d (channels of a group) must be 1 to 64";
    if (adds && found.stages == 1)
        return "an additive shape has 2 to 8 stages, such as add:8x16+16; one stage is a plain shape, such as 8x16";
    if (!adds && found.stages > 1)
        return "a sum of stages begins with add:, such as add:8x16+16";
    found.channels = (uint32_t)d;
    *shape = found;
    return NULL;
}

const char *kvb_shape_text(uint32_t channels, uint32_t centroids, uint32_t stages, char text[KVB_SHAPE_TEXT])
{
    int used = snprintf(text, KVB_SHAPE_TEXT, "%s%ux%u", stages > 1 ? additive : "", channels, centroids);
    for (uint32_t m = 1; m < stages && used < KVB_SHAPE_TEXT; m++)
        used += snprintf(text + used, (size_t)(KVB_SHAPE_TEXT - used), "+%u", centroids);
    return text;
}

uint32_t kvb_shape_bits(uint32_t centroids, uint32_t stages)
{
    return centroids > 0 ? stages * (uint32_t)__builtin_ctz(centroids) : 0;
}

double kvb_shape_rate(const kvb_shape *shape)
{
    return shape->channels > 0 ? (double)kvb_shape_bits(shape->centroids, shape->stages) / shape->channels : 0.0;
}
