/* The entry of every fuzz target. libFuzzer calls it; replay.c calls it on the files of a corpus. */
#ifndef KVB_TESTS_FUZZ_H
#define KVB_TESTS_FUZZ_H

#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#endif
