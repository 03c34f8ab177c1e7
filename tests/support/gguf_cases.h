/* One small GGUF file for every condition that the reader refuses, and a few that it must take. */
#ifndef KVB_TESTS_GGUF_CASES_H
#define KVB_TESTS_GGUF_CASES_H

#include <stddef.h>
#include <stdint.h>

typedef struct gguf_case {
    const char *name;
    const char *refused; /* part of the error's message; NULL where the file is good */
    uint8_t *(*make)(size_t *size);
} gguf_case;

extern const gguf_case gguf_cases[];
extern const size_t gguf_case_count;

#endif
