/* Status codes and error reports shared by every kvbook library.
 *
 * Every call that can fail returns a kvb_status and, where the caller passes one, fills a kvb_error.
 * Libraries never print, exit or keep globals. The numbers are pinned: they are also the exit codes of the
 * command-line tool. */
#ifndef KVBOOK_STATUS_H
#define KVBOOK_STATUS_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define KVB_API __attribute__((visibility("default")))
#else
#define KVB_API
#endif

typedef enum kvb_status {
    KVB_OK = 0,
    KVB_E_CHECK = 1,       /* a check on otherwise readable data failed */
    KVB_E_USAGE = 2,       /* the caller passed something that makes no sense */
    KVB_E_FORMAT = 3,      /* an input file is malformed or not supported */
    KVB_E_IO = 4,          /* the operating system refused to read or write */
    KVB_E_MEMORY = 5,      /* out of memory, or over the given budget */
    KVB_E_MISMATCH = 6,    /* valid inputs that do not belong together */
    KVB_E_DEVICE = 7,      /* no usable device */
    KVB_E_CANCELLED = 130, /* a callback asked to stop */
} kvb_status;

/* Caller-owned report of one failure. `where` names the file and the place in it (or the argument), `message`
 * says what was found, what was expected and what to do. Both are NUL-terminated and truncated if too long. */
typedef struct kvb_error {
    kvb_status code;
    char where[256];
    char message[512];
} kvb_error;

/* The name of a status, such as "KVB_E_FORMAT"; never NULL. Thread-safe. */
KVB_API const char *kvb_status_name(kvb_status status);

/* The progress of a long call: `done` of `total` units of `step`. Return non-zero to cancel: the call then
 * frees everything and returns KVB_E_CANCELLED. Called from the calling thread only. */
typedef int (*kvb_progress_fn)(void *user, const char *step, uint64_t done, uint64_t total);

#ifdef __cplusplus
}
#endif
#endif
