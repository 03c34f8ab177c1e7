/* The capture of a whole text, a part of which each process of a team has. */
#ifndef KVB_CALIB_TEAM_CAPTURE_H
#define KVB_CALIB_TEAM_CAPTURE_H

#include "calib/capture.h"
#include "calib/team.h"

typedef struct kvb_team_capture kvb_team_capture;

/* `mine` is the part of this process, made by kvb_capture_part() of its rank, and must outlive the whole. All processes call this and
 * kvb_capture_load() on the view together: each layer's rows come from all of them to the one that asks for it, which holds them
 * until the next call. For a team of one it is that process's capture. */
kvb_status kvb_team_capture_create(const kvb_team *team, const kvb_capture *mine, kvb_team_capture **whole, kvb_error *err);
void kvb_team_capture_free(kvb_team_capture *whole); /* NULL is allowed */
const kvb_capture *kvb_team_capture_view(const kvb_team_capture *whole);

#endif
