/* Layers side by side: each lane is a host thread with a trainer of its own that shares everything but the options. */
#include "calib/lanes.h"
#include "calib/train_impl.h"

enum { LANES_A_GPU = 2 };

typedef struct lane_round {
    const kvb_trainer *t;
    const uint32_t *layer; /* [lanes] */
    uint32_t lanes, gpus, gpu[KVB_MOST_GPUS];
} lane_round;

kvb_status kvb_train_choose_lanes(kvb_trainer *t, uint32_t *lanes, kvb_error *err)
{
    const kvb_train_options *o = t->options;
    uint32_t gpu[KVB_MOST_GPUS], gpus = 0;
    kvb_status status = kvb_device_gpus(o->device, gpu, &gpus, err);
    *lanes = 1;
    if (status == KVB_OK && gpus > 0)
        t->gpu = gpu[kvb_team_rank(o->team) % gpus];
    if (status != KVB_OK || kvb_team_size(o->team) > 1 || t->capture->load != NULL)
        return status;
    *lanes = o->lanes != 0 ? o->lanes : gpus > 0 ? LANES_A_GPU * gpus : 1;
    *lanes = *lanes < KVB_MOST_LANES ? *lanes : KVB_MOST_LANES;
    return KVB_OK;
}

static kvb_status train_one(void *user, uint32_t lane, kvb_error *err)
{
    const lane_round *r = user;
    kvb_train_options options = *r->t->options;
    kvb_trainer own = *r->t;
    own.options = &options;
    if (r->lanes > 1 && options.threads > 0)
        options.threads = options.threads > r->lanes ? options.threads / r->lanes : 1;
    if (lane > 0)
        options.progress = NULL; /* the first lane speaks for all */
    if (r->gpus > 0) {
        own.gpu = r->gpu[lane % r->gpus];
        own.gpu_lanes = (r->lanes + r->gpus - 1) / r->gpus;
    }
    return kvb_train_layer(&own, r->layer[lane], err);
}

kvb_status kvb_train_lanes(kvb_trainer *t, const uint32_t *layer, uint32_t count, kvb_error *err)
{
    lane_round r = {.t = t, .layer = layer, .lanes = count};
    if (count == 1)
        return kvb_train_layer(t, layer[0], err);
    kvb_status status = kvb_device_gpus(t->options->device, r.gpu, &r.gpus, err);
    return status == KVB_OK ? kvb_lanes_run(count, train_one, &r, err) : status;
}
