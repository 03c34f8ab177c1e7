/* Tuning of a book: centroids adjusted by gradient so that each layer's attention over codes comes closest to its exact
 * output behind the output projection, min ||(O' - O) W_O||^2. Codes are assigned anew at every step.
 *
 * The target is always the exact model's output. With KVB_TUNE_EXACT queries, keys and values are the exact model's too, so
 * one forward pass of a chunk serves all layers and none depends on another. With KVB_TUNE_CODED they come from a stream
 * whose earlier layers read codes, as in use: a layer also learns to make good what earlier ones did. That takes a second
 * forward pass and L*H*T*D floats for the targets, and errors are then measured with all layers as they were, and with all
 * of them tuned. Memory beyond the model's: five times the tables in float32, L*(H*D)^2 floats, and a byte for each chunk,
 * layer, KV head and token where tokens are kept. Every so many chunks one is held out: it never moves a centroid, and a
 * layer whose held-out error did not fall keeps the centroids it came with. */
#ifndef KVB_CALIB_TUNE_H
#define KVB_CALIB_TUNE_H

#include "calib/checkpoint.h"
#include "model/model.h"
#include "model/text.h"

/* Says which tokens a layer keeps exact for ever: kept [G][T] comes zeroed. Called once for each chunk and layer. */
typedef kvb_status (*kvb_tune_keep_fn)(void *user, const kvb_attention_call *call, uint8_t *kept, kvb_error *err);

typedef enum kvb_tune_stream { KVB_TUNE_CODED = 0, KVB_TUNE_EXACT = 1 } kvb_tune_stream;

typedef struct kvb_tune_options {
    uint32_t struct_size;
    uint32_t ctx;
    uint64_t skip, chunks;   /* of the text; all of them where chunks is 0 */
    int32_t bos;             /* token put first in each chunk, or -1 */
    uint64_t seed;           /* of the order of chunks */
    uint32_t epochs;         /* passes over the chunks that are not held out */
    uint32_t batch;          /* chunks of a step */
    double rate;             /* of the first step, in standard deviations of a stage's entries; falls as a cosine to 0 */
    kvb_tune_stream stream;
    uint32_t holdout_every;  /* one chunk in so many is held out; fewer chunks than that hold out their last */
    uint32_t window;         /* queries read so many latest tokens exactly, their own included */
    kvb_tune_keep_fn keep;   /* NULL: no token stays exact for ever */
    void *keep_user;
    kvb_exact_form exact;    /* KVB_EXACT_FINE: what is read exactly went through the book's fine codes */
    uint32_t sinks;          /* first tokens that are half floats all the same */
    kvb_checkpoint *checkpoint; /* where tuning leaves its state, and goes on from one that it left there; or NULL */
    uint64_t teacher_bytes;  /* end to end: at most so many bytes of the exact model's predictions are kept for later epochs */
    kvb_progress_fn progress; /* total in passes over a chunk */
    void *progress_user;
} kvb_tune_options;

/* The coded stream, 3 epochs, one chunk in 8 held out, steps of 2 chunks, rate 0.02, no window, nothing kept. */
void kvb_tune_options_init(kvb_tune_options *options);

/* ||(O' - O) W_O||^2 / ||O W_O||^2 of a layer over held-out chunks and over as many of the others. */
typedef struct kvb_tune_layer_report {
    bool coded;    /* false: the layer has no codes, and no numbers here */
    bool accepted; /* false: held out it got worse, so the book keeps the centroids it came with */
    double train_before, train_after, heldout_before, heldout_after; /* "after" of the tuned centroids, accepted or not */
} kvb_tune_layer_report;

/* KL(exact model || model with the coded cache) in nats a token, where tuning was end to end (calib/distill.h). */
typedef struct kvb_tune_kl {
    bool used, accepted;
    uint32_t best_epoch; /* the one whose centroids the book has, from 1; 0: none */
    double heldout_before, heldout_after; /* "after" of that epoch, or of the last where none was accepted */
    double teacher_seconds, student_seconds, loss_seconds, backward_seconds; /* of processor time, of one training pass */
    double train_first, train_last; /* means over the first and last epoch, each chunk as its step met it */
} kvb_tune_kl;

typedef struct kvb_tune_report {
    uint32_t layers;
    kvb_tune_layer_report *layer; /* [layers] */
    uint64_t chunks, heldout_chunks, measured_chunks, steps; /* measured: of those trained on */
    uint64_t resumed;            /* steps that the run went on from, which an earlier one did; 0: from the start */
    kvb_tune_kl kl;
    double seconds, pass_seconds; /* all of it; of one chunk's training pass */
} kvb_tune_report;
void kvb_tune_report_free(kvb_tune_report *report);

/* Returns the image of the tuned book (free with free()): the book's, with other centroids and with "tuning" in META.
 * KVB_E_USAGE for options that make no sense and for fewer than two chunks,
 * KVB_E_MISMATCH where the book's geometry is not the model's, KVB_E_CHECK where an error comes out as NaN or infinity,
 * KVB_E_CANCELLED. The same inputs and options give the same bytes for any number of threads. */
kvb_status kvb_tune_book(const kvb_model *model, const kvb_text *text, const kvb_book *book,
                         const kvb_tune_options *options, uint8_t **image, size_t *size, kvb_tune_report *report,
                         kvb_error *err);

#endif
