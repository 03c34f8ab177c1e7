#include "tools/progress.h"

#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static volatile sig_atomic_t interrupted;

static void on_signal(int number)
{
    (void)number;
    interrupted = 1;
}

void kvb_interrupt_install(void)
{
    /* SA_RESETHAND: where a step does not look at the flag for long, a second Ctrl-C must still work. */
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = (int)(SA_RESETHAND | SA_RESTART)};
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    struct sigaction hangup;
    if (sigaction(SIGHUP, NULL, &hangup) == 0 && hangup.sa_handler != SIG_IGN) /* nohup asked us to go on */
        sigaction(SIGHUP, &action, NULL);
    /* Over a file size limit a write must fail, so that the temporary file is removed. */
    signal(SIGXFSZ, SIG_IGN);
}

bool kvb_interrupted(void)
{
    return interrupted != 0;
}

double kvb_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

const char *kvb_size_text(uint64_t bytes, char text[32])
{
    static const char *const unit[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    double value = (double)bytes;
    int u = 0;
    for (; value >= 1024 && u < 6; u++)
        value /= 1024;
    snprintf(text, 32, u == 0 ? "%.0f %s" : "%.1f %s", value, unit[u]);
    return text;
}

const char *kvb_time_text(double seconds, char text[32])
{
    unsigned long whole = seconds < 0 ? 0 : (unsigned long)(seconds + 0.5);
    if (seconds < 60)
        snprintf(text, 32, seconds < 10 ? "%.2f s" : "%.1f s", seconds);
    else if (whole < 3600)
        snprintf(text, 32, "%lu:%02lu", whole / 60, whole % 60);
    else
        snprintf(text, 32, "%lu:%02lu:%02lu", whole / 3600, whole / 60 % 60, whole % 60);
    return text;
}

void kvb_progress_init(kvb_progress *p, bool quiet, bool verbose, bool no_progress)
{
    const char *term = getenv("TERM");
    *p = (kvb_progress){.quiet = quiet, .verbose = verbose};
    p->silent = quiet || no_progress;
    p->live = !p->silent && isatty(STDERR_FILENO) && (term == NULL || strcmp(term, "dumb") != 0);
}

static void erase_line(const kvb_progress *p)
{
    if (p->live && p->drawn > 0)
        fputs("\r\033[K", stderr);
}

static void draw(kvb_progress *p, double now)
{
    double elapsed = now - p->started, rate = elapsed > 0 ? (double)p->done / elapsed : 0;
    char left[32] = "?";
    if (rate > 0)
        kvb_time_text((double)(p->total - p->done) / rate, left);
    fprintf(stderr, "\r\033[K%s: %llu/%llu  %.0f %%  %.3g/s  ETA %s", p->step, (unsigned long long)p->done,
            (unsigned long long)p->total, p->total ? 100.0 * (double)p->done / (double)p->total : 100.0, rate, left);
    p->drawn = now;
}

void kvb_progress_finish(kvb_progress *p)
{
    if (p->step[0] == '\0')
        return;
    erase_line(p);
    char took[32];
    double elapsed = kvb_seconds() - p->started;
    if (!p->silent)
        fprintf(stderr, "%s: %llu in %s (%.3g/s)\n", p->step, (unsigned long long)p->done, kvb_time_text(elapsed, took),
                elapsed > 0 ? (double)p->done / elapsed : 0.0);
    memcpy(p->finished, p->step, sizeof p->finished);
    p->step[0] = '\0';
    p->drawn = 0;
}

void kvb_progress_drop(kvb_progress *p)
{
    erase_line(p);
    p->step[0] = '\0';
    p->drawn = 0;
}

int kvb_progress_report(void *progress, const char *step, uint64_t done, uint64_t total)
{
    kvb_progress *p = progress;
    double now = kvb_seconds();
    /* A library may say "all done" more than once; the step has had its line. */
    if (p->step[0] == '\0' && done >= total && strncmp(p->finished, step, sizeof p->finished - 1) == 0)
        return kvb_interrupted();
    if (strncmp(p->step, step, sizeof p->step - 1) != 0) {
        kvb_progress_finish(p);
        snprintf(p->step, sizeof p->step, "%s", step);
        p->started = now;
    }
    p->done = done;
    p->total = total > done ? total : done;
    if (p->live && (now - p->drawn > 0.2 || done == total))
        draw(p, now);
    if (done >= total && total > 0)
        kvb_progress_finish(p);
    return kvb_interrupted();
}

static void talk(kvb_progress *p, const char *lead, const char *format, va_list args)
{
    if (p->mute)
        return;
    erase_line(p);
    p->drawn = 0;
    fputs(lead, stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
}

void kvb_say(kvb_progress *p, const char *format, ...)
{
    if (p->quiet)
        return;
    va_list args;
    va_start(args, format);
    talk(p, "", format, args);
    va_end(args);
}

void kvb_say_more(kvb_progress *p, const char *format, ...)
{
    if (!p->verbose || p->quiet)
        return;
    va_list args;
    va_start(args, format);
    talk(p, "", format, args);
    va_end(args);
}

void kvb_warn(kvb_progress *p, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    talk(p, "kvbook: warning: ", format, args);
    va_end(args);
}

void kvb_put_printable(FILE *to, const char *text)
{
    for (const unsigned char *c = (const unsigned char *)text; *c != '\0'; c++) {
        /* U+0080 .. U+009F are controls too: two bytes in UTF-8. */
        const bool second = *c == 0xc2 && c[1] >= 0x80 && c[1] < 0xa0;
        fputc(*c < 0x20 || *c == 0x7f || second ? '?' : *c, to);
        c += second;
    }
}

/* What a file is good for that was given in place of a book. */
static const char *advice(const kvb_error *err)
{
    static const struct { const char *ending, *text; } known[] = {
        {".kvc", "; this looks like a capture: `kvbook train` makes a book of it, `kvbook verify` checks it"},
        {".gguf", "; this looks like a model: `kvbook calibrate` makes a book for it"},
        {".kvp", "; this looks like saved caches: `kvbook verify` checks them"},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known && strncmp(err->message, "not a .kvb file", 15) == 0; i++) {
        const char *at = strstr(err->where, known[i].ending);
        const char after = at != NULL ? at[strlen(known[i].ending)] : ' ';
        if (after == '\0' || after == ',') /* "x.kvc", "x.kvc, byte 0" */
            return known[i].text;
    }
    return "";
}

void kvb_print_error(const kvb_error *err)
{
    const char *no_color = getenv("NO_COLOR");
    bool color = isatty(STDERR_FILENO) && (no_color == NULL || no_color[0] == '\0');
    fprintf(stderr, "kvbook: %serror:%s ", color ? "\033[31m" : "", color ? "\033[0m" : "");
    kvb_put_printable(stderr, err->where);
    fputs(err->where[0] != '\0' ? ": " : "", stderr);
    kvb_put_printable(stderr, err->message);
    fputs(advice(err), stderr);
    fputc('\n', stderr);
}
