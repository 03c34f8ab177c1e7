/* What the command says while it works: on stderr, never on stdout.
 *
 * On a terminal one line is redrawn with rate and remaining time; elsewhere each finished step leaves one line. Both
 * end a step with how long it took. */
#ifndef KVB_TOOLS_PROGRESS_H
#define KVB_TOOLS_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "kvbook/status.h"

typedef struct kvb_progress {
    bool mute;     /* not a word: another process speaks for this one */
    bool quiet;    /* errors only */
    bool verbose;
    bool live;     /* redraw a line: stderr is a terminal and nobody said --no-progress */
    bool silent;   /* no progress at all, finished steps neither */
    char step[64]; /* the one under way; "" between steps */
    char finished[64]; /* the one before it */
    uint64_t total, done;
    double started, drawn; /* seconds of the monotonic clock */
} kvb_progress;

/* Looks at stderr and the environment. */
void kvb_progress_init(kvb_progress *p, bool quiet, bool verbose, bool no_progress);
/* A kvb_progress_fn with the kvb_progress as user. Non-zero (cancel) after kvb_interrupt_install()'s signal came. */
int kvb_progress_report(void *progress, const char *step, uint64_t done, uint64_t total);
/* Ends the step under way, if any: leaves its line. */
void kvb_progress_finish(kvb_progress *p);
/* Drops the step under way without a word: before an error. */
void kvb_progress_drop(kvb_progress *p);

/* One line of talk, unless quiet. */
void kvb_say(kvb_progress *p, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* One line only with -v. */
void kvb_say_more(kvb_progress *p, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* One line that begins with "warning:", also when quiet. */
void kvb_warn(kvb_progress *p, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* "kvbook: error: where: message", one line whatever the text holds. */
void kvb_print_error(const kvb_error *err);
/* Text out of a file, or a name: control characters as '?', so that they break neither a line nor a terminal. */
void kvb_put_printable(FILE *to, const char *text);

/* SIGINT, SIGTERM and SIGHUP set a flag that progress callbacks pass on; a second one ends the process at
 * once. */
void kvb_interrupt_install(void);
bool kvb_interrupted(void);

/* Seconds of the monotonic clock. */
double kvb_seconds(void);
/* "1.2 GiB", "830 B" and "2:03", "0.42 s". */
const char *kvb_size_text(uint64_t bytes, char text[32]);
const char *kvb_time_text(double seconds, char text[32]);

#endif
