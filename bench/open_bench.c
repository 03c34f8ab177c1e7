/* What opening a book costs, beside the parts it is made of, one JSON line a size:
 *   open   kvb_book_open: mapped, structure checked        verify  kvb_book_verify: every checksum, every number looked at
 *   whole  kvb_book_open_with(KVB_OPEN_VERIFIED): read into memory and verified
 *   read   the file into memory alone        crc    the checksum of it        sum    every byte looked at once, the memory's rate
 * in milliseconds of processor time (system's included), the least of ROUNDS. Usage: open_bench FILE ROUNDS
 * FILE is written anew for each size (4 to 760 MiB) and removed. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "format/base/checked.h"
#include "format/base/crc.h"
#include "format/base/mapfile.h"
#include "format/base/outfile.h"
#include "format/book_write.h"

enum { DIM = 128, MOST_CENTROIDS = 65536, MOST_LAYERS = 126, MOST_HEADS = 16 };

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return 1e3 * (double)t.tv_sec + 1e-6 * (double)t.tv_nsec;
}

typedef struct shape {
    uint32_t layers, heads, channels, centroids;
    bool trained; /* with means, transforms and quality records, as recipes make them */
} shape;

typedef struct content {
    const float *table, *mean, *identity;
    const kvb_quality *quality;
} content;

/* All parts share their numbers: what a book says does not matter here, how much of it there is does. */
static kvb_status write_book(const char *path, const shape *s, const content *x, kvb_error *err)
{
    static kvb_layer layer[MOST_LAYERS];
    static kvb_book_part part[2 * MOST_LAYERS * MOST_HEADS];
    uint8_t *image = NULL;
    size_t size = 0;
    for (uint32_t l = 0; l < s->layers; l++)
        layer[l] = (kvb_layer){.heads = s->heads, .kv_heads = s->heads, .head_dim = DIM, .attention_scale = 0.088};
    for (uint32_t i = 0; i < 2 * s->layers * s->heads; i++) {
        part[i] = (kvb_book_part){.channels = s->channels, .centroids = s->centroids, .table = x->table};
        if (s->trained) {
            part[i].mean = x->mean;
            part[i].forward = part[i].inverse = x->identity;
            part[i].quality = x->quality;
        }
    }
    const kvb_book_spec spec = {.layers = s->layers, .layer = layer, .part = part, .part_heads = s->heads, .meta_json = "{}"};
    kvb_status status = kvb_book_build(&spec, &image, &size, err);
    if (status == KVB_OK)
        status = kvb_write_file(path, image, size, err);
    free(image);
    return status;
}

/* A book comes out of a file that another program wrote: pages just written are mapped in larger pieces than pages read. */
static void read_again(const char *path)
{
    static char block[1 << 20];
    const int fd = open(path, O_RDONLY);
    if (fd < 0)
        return;
    (void)posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    while (read(fd, block, sizeof block) > 0)
        continue;
    close(fd);
}

typedef struct times {
    double open, verify, whole, read, crc, sum;
    size_t size;
} times;

static void least(double *of, double since)
{
    const double took = now() - since;
    if (*of == 0 || took < *of)
        *of = took;
}

static volatile uint64_t sink;

static kvb_status measure(const char *path, times *t, kvb_error *err)
{
    kvb_book *book = NULL;
    char *bytes = NULL;
    double since = now();
    kvb_status status = kvb_book_open(path, &book, err);
    least(&t->open, since);
    if (status != KVB_OK)
        return status;
    since = now();
    status = kvb_book_verify(book, err);
    least(&t->verify, since);
    kvb_book_close(book);
    if (status != KVB_OK)
        return status;
    since = now();
    status = kvb_book_open_with(path, KVB_OPEN_VERIFIED, &book, err);
    least(&t->whole, since);
    kvb_book_close(book);
    if (status != KVB_OK)
        return status;
    since = now();
    status = kvb_read_file(path, UINT32_MAX, &bytes, &t->size, err);
    least(&t->read, since);
    if (status != KVB_OK)
        return status;
    since = now();
    sink = kvb_crc_of(bytes, t->size);
    least(&t->crc, since);
    since = now();
    const uint64_t *word = (const uint64_t *)(const void *)bytes; /* aligned to 64 */
    uint64_t sum = 0;
    for (size_t i = 0; i < t->size / 8; i++)
        sum += word[i];
    sink = sum;
    least(&t->sum, since);
    free(bytes);
    return KVB_OK;
}

int main(int argc, char **argv)
{
    static const shape shapes[] = {
        {16, 1, 4, 512, false}, {16, 1, 4, 8192, false}, {16, 1, 4, 65536, false}, {32, 8, 8, 256, true}, {80, 8, 8, 256, true}, {126, 16, 8, 256, true},
    };
    static float mean[DIM], identity[DIM * DIM];
    static kvb_quality quality[DIM];
    for (size_t i = 0; i < DIM; i++)
        identity[i * DIM + i] = 1;
    kvb_error err = {0};
    kvb_status status = KVB_OK;
    const long rounds = argc == 3 ? strtol(argv[2], NULL, 10) : 0;
    if (rounds < 1) {
        fprintf(stderr, "usage: open_bench FILE ROUNDS\n");
        return 2;
    }
    const size_t numbers = (size_t)DIM * MOST_CENTROIDS;
    float *table = kvb_alloc_array(numbers, sizeof *table);
    if (table == NULL) {
        fprintf(stderr, "open_bench: out of memory\n");
        return 5;
    }
    for (size_t i = 0; i < numbers; i++)
        table[i] = (float)((i * 2654435761u >> 7) % 4096) / 1024.0f - 2.0f;
    for (size_t s = 0; status == KVB_OK && s < sizeof shapes / sizeof *shapes; s++) {
        times t = {0};
        status = write_book(argv[1], &shapes[s], &(content){table, mean, identity, quality}, &err);
        read_again(argv[1]);
        for (long r = 0; status == KVB_OK && r < rounds; r++)
            status = measure(argv[1], &t, &err);
        if (status == KVB_OK)
            printf("{\"mib\": %.1f, \"codebooks\": %u, \"open_ms\": %.2f, \"verify_ms\": %.2f, \"whole_ms\": %.2f, \"read_ms\": %.2f, "
                   "\"crc_ms\": %.2f, \"sum_ms\": %.2f}\n",
                   (double)t.size / 1048576, 2 * shapes[s].layers * shapes[s].heads, t.open, t.verify, t.whole, t.read, t.crc, t.sum);
    }
    free(table);
    remove(argv[1]);
    if (status != KVB_OK)
        fprintf(stderr, "open_bench: %s: %s\n", err.where, err.message);
    return status == KVB_OK && !ferror(stdout) ? 0 : 1;
}
