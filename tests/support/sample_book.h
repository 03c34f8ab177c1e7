/* Small specs whose every number is exact in binary, for golden files and tests. */
#ifndef KVB_TESTS_SAMPLE_BOOK_H
#define KVB_TESTS_SAMPLE_BOOK_H

#include "format/book_write.h"

#define SAMPLE_META "{\"tool\":\"kvbook\",\"model\":{\"name\":\"sample\"}}"

typedef struct sample_book {
    kvb_book_spec spec;
    kvb_layer layer[3];
    kvb_book_part part[3 * 2 * 2]; /* [layer][head][kind], part_heads = 2 */
    float factors[4];
    float mean[8], forward[64], inverse[64];
    float table[6][64]; /* a table for each codebook, in the order of layer, head, kind */
    kvb_quality quality[4];
    kvb_book_part fine[6]; /* of sample_fine(): as the tables */
    float fine_table[6][64];
} sample_book;

/* One layer of one head, D = 4, d = 2, K = 2. */
void sample_minimal(sample_book *b);
/* Three layers: full attention with everything a head can have, sliding with a partial interleaved RoPE and the block
 * frame, and an unsupported one. */
void sample_full(sample_book *b);
/* sample_full() with fine codebooks, which the policy uses. */
void sample_fine(sample_book *b);
/* One layer of one head, D = 4: keys of 2 bits with a range for 8 tokens of a channel, values of 1 bit in units of a token's root
 * mean square, with levels. */
void sample_scaled(sample_book *b);
/* The same with fixed scales of the channels and an outlier for keys, three outliers of each token for values. */
void sample_outliers(sample_book *b);
/* The same with e4m3 scales: keys of a token in two lists of channels with a clip each, values with a range for 8 tokens of a channel. */
void sample_groups(sample_book *b);
void sample_pool(sample_book *b);
/* One layer of one head, D = 8: keys of 2 stages of 4 in groups of 4, values of 3 stages of 2 in groups of 2. */
void sample_additive(sample_book *b);

#endif
