/* A folder of a test's own, and whole files in one call. */
#ifndef KVB_TESTS_SCRATCH_H
#define KVB_TESTS_SCRATCH_H

#include <stddef.h>
#include <stdint.h>

/* Makes a folder and gives its path, or NULL. scratch_remove() deletes it with the files (not folders) inside. */
char *scratch_create(void);
void scratch_remove(char *folder);
/* folder/name in a buffer of the caller. */
const char *scratch_path(const char *folder, const char *name, char path[512]);
/* Entries of a folder but "." and "..". */
size_t scratch_count(const char *folder);

int scratch_write(const char *path, const void *bytes, size_t size); /* 0 if all is well */
/* NULL where the file cannot be read; free with free(). */
uint8_t *scratch_read(const char *path, size_t *size);

#endif
