/* The table of a comparison as JSON, Markdown and SVG. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "format/base/fail.h"
#include "format/base/path.h"
#include "tools/compare.h"
#include "tools/plot.h"
#include "tools/summary.h"

static double bits_at(const kvb_compare_cell *cell, uint64_t tokens)
{
    return kvb_effective_bits(cell->book, &cell->policy, tokens);
}

static const char *source_of(const kvb_compare_cell *cell)
{
    return kvb_json_string(kvb_json_get(kvb_json_root(cell->recipe.doc), "source"), "");
}

static void put_run(kvb_json_writer *w, const kvb_input *in, const char *const *text, size_t texts)
{
    kvb_json_begin_array(w, "text");
    for (size_t t = 0; t < texts; t++)
        kvb_json_put_string(w, NULL, text[t]);
    kvb_json_end_array(w);
    kvb_json_put_u64(w, "ctx", in->ctx);
    kvb_json_put_u64(w, "skip", in->skip);
    kvb_json_put_u64(w, "chunks", in->chunks);
}

static void put_scores(kvb_json_writer *w, const kvb_compare_job *job, const kvb_compare_cell *cell)
{
    kvb_json_put_string(w, "book", kvb_base_name(cell->path));
    kvb_put_policy(w, &cell->policy, NULL);
    kvb_json_put_number(w, "ppl", cell->ppl);
    kvb_json_put_number(w, "kl", cell->kl);
    kvb_json_put_number(w, "top1", cell->top1);
    kvb_json_put_number(w, "nll_delta", cell->delta);
    kvb_json_put_number(w, "nll_delta_error", cell->delta_error);
    kvb_json_put_number(w, "bits_nominal", kvb_summarise_book(cell->book).bits_nominal);
    kvb_json_put_number(w, "bits_effective", bits_at(cell, job->input->ctx));
    kvb_json_put_u64(w, "bits_effective_ctx", job->input->ctx);
    kvb_put_effective_bits(w, cell->book, &cell->policy);
}

static void put_cell(kvb_json_writer *w, const kvb_compare_job *job, const kvb_compare_cell *cell)
{
    kvb_json_begin_object(w, NULL);
    kvb_json_put_string(w, "recipe", cell->recipe.name);
    kvb_json_put_string(w, "source", source_of(cell));
    kvb_json_put_number(w, "bits", cell->bits);
    kvb_json_put_string(w, "refused", cell->refused ? cell->why : NULL);
    if (!cell->refused)
        put_scores(w, job, cell);
    kvb_json_end_object(w);
}

kvb_status kvb_compare_json(const kvb_compare_job *job, const kvb_compare_grid *grid, char **text, kvb_error *err)
{
    const kvb_input *in = job->input;
    kvb_json_writer w = {0};
    kvb_json_begin_object(&w, NULL);
    kvb_json_put_u64(&w, "schema", 1);
    kvb_json_put_string(&w, "model", kvb_model_get_info(in->model)->path);
    put_run(&w, in, job->text, job->texts);
    kvb_json_put_u64(&w, "targets", in->chunks * (in->ctx - 1));
    kvb_json_put_bool(&w, "bos", in->bos >= 0);
    kvb_json_put_string(&w, "protocol", kvb_protocol_names[job->protocol]);
    if (job->calib_texts > 0) {
        kvb_json_begin_object(&w, "calibration");
        put_run(&w, job->calibration, job->calib_text, job->calib_texts);
        kvb_json_put_u64(&w, "seed", job->seed);
        kvb_json_end_object(&w);
    } else {
        kvb_json_put_string(&w, "calibration", NULL);
    }
    kvb_json_put_number(&w, "ppl_exact", grid->ppl_exact);
    kvb_json_begin_array(&w, "rows");
    for (size_t i = 0; i < grid->count; i++)
        put_cell(&w, job, &grid->cell[i]);
    kvb_json_end_array(&w);
    kvb_json_end_object(&w);
    const char *json = kvb_json_writer_text(&w);
    *text = NULL;
    if (json == NULL || asprintf(text, "%s\n", json) < 0)
        *text = NULL;
    kvb_json_writer_free(&w);
    return *text != NULL ? KVB_OK : kvb_fail_memory(err, "compare");
}

/* A cell of a Markdown table must hold neither its mark nor a line's end, and no name is markup. */
static void put_word(FILE *out, const char *word)
{
    for (; *word != '\0'; word++)
        switch (*word) {
        case '|': fputs("\\|", out); break;
        case '<': fputs("&lt;", out); break;
        case '&': fputs("&amp;", out); break;
        default: fputc((unsigned char)*word < 0x20 ? ' ' : *word, out);
        }
}

static void put_row(FILE *out, const kvb_compare_job *job, const kvb_compare_cell *cell)
{
    fputs("| ", out);
    put_word(out, cell->recipe.name);
    fprintf(out, " | %g | ", cell->bits);
    if (cell->refused) {
        fputs("- | - | - | - | - | - | - | - | ", out);
        put_word(out, cell->why);
        fputs(" |\n", out);
        return;
    }
    char text[96], error[32] = "-";
    if (isfinite(cell->delta_error))
        snprintf(error, sizeof error, "%.4f", cell->delta_error);
    fprintf(out, "%.3f | %.3f | %.3f | %.3f | %.4f | %s | %.4f | %.2f | %s%s |\n", bits_at(cell, KVB_CTX_2K), bits_at(cell, KVB_CTX_32K),
            bits_at(cell, KVB_CTX_128K), cell->ppl, cell->delta, error, cell->kl, 100 * cell->top1, kvb_policy_text(&cell->policy, text),
            job->protocol == KVB_PROTOCOL_CHUNK && cell->policy.anchor_fraction > 0 ? ", of the whole chunk" : "");
}

static void put_names(FILE *out, const char *const *text, size_t texts)
{
    for (size_t t = 0; t < texts; t++) {
        fputs(t > 0 ? ", " : "", out);
        put_word(out, kvb_base_name(text[t]));
    }
}

static void put_table(FILE *out, const kvb_compare_job *job, const kvb_compare_grid *grid)
{
    const kvb_input *in = job->input, *c = job->calibration;
    put_word(out, kvb_model_get_info(in->model)->name);
    fprintf(out, ", %llu chunks of %u tokens of ", (unsigned long long)in->chunks, in->ctx);
    put_names(out, job->text, job->texts);
    fprintf(out, " after %llu; exact cache: %.3f. ", (unsigned long long)in->skip, grid->ppl_exact);
    if (job->calib_texts > 0) {
        fprintf(out, "Books from %llu chunks of ", (unsigned long long)c->chunks);
        put_names(out, job->calib_text, job->calib_texts);
        fprintf(out, " after %llu, seed %llu.\n\n", (unsigned long long)c->skip, (unsigned long long)job->seed);
    } else {
        fprintf(out, "Books that learn nothing from text, seed %llu.\n\n", (unsigned long long)job->seed);
    }
    fputs("| recipe | bits | eff. 2K | eff. 32K | eff. 128K | perplexity | dNLL | +- | KL | top-1 % | exact |\n"
          "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|\n", out);
    for (size_t i = 0; i < grid->count; i++)
        put_row(out, job, &grid->cell[i]);
    fputs("\nbits: asked for, then effective at a context of so many tokens (all bytes held, codebooks included); dNLL: mean difference "
          "of the log-likelihood to the exact cache in nats, with its paired standard error over chunks; KL in nats.\n", out);
}

/* fclose() tells of everything that went wrong on the way. */
static kvb_status close_text(FILE *out, char **text, kvb_error *err)
{
    if (fclose(out) == 0)
        return KVB_OK;
    free(*text);
    *text = NULL;
    return kvb_fail_memory(err, "compare");
}

kvb_status kvb_compare_markdown(const kvb_compare_job *job, const kvb_compare_grid *grid, char **text, kvb_error *err)
{
    size_t size;
    *text = NULL;
    FILE *out = open_memstream(text, &size);
    if (out == NULL)
        return kvb_fail_memory(err, "compare");
    put_table(out, job, grid);
    return close_text(out, text, err);
}

/* A line for each recipe, over the cells that were scored. */
static size_t fill_lines(const kvb_compare_grid *grid, kvb_plot_point *point, kvb_plot_line *line)
{
    size_t lines = 0;
    for (size_t i = 0; i < grid->count; i++) {
        const kvb_compare_cell *cell = &grid->cell[i];
        point[i] = (kvb_plot_point){cell->refused ? NAN : bits_at(cell, KVB_CTX_128K), cell->ppl, cell->bits};
        if (i == 0 || strcmp(cell->recipe.name, grid->cell[i - 1].recipe.name) != 0)
            line[lines++] = (kvb_plot_line){.name = cell->recipe.name, .point = &point[i]};
        line[lines - 1].count++;
    }
    return lines;
}

kvb_status kvb_compare_picture(const kvb_compare_job *job, const kvb_compare_grid *grid, char **text, kvb_error *err)
{
    size_t size;
    char title[256];
    kvb_plot_point *point = calloc(grid->count, sizeof *point);
    kvb_plot_line *line = calloc(grid->count, sizeof *line);
    FILE *out = point != NULL && line != NULL ? open_memstream(text, &size) : NULL;
    kvb_status status = KVB_OK;
    if (out == NULL) {
        *text = NULL;
        status = kvb_fail_memory(err, "compare");
        goto out;
    }
    snprintf(title, sizeof title, "%s, %llu x %u tokens of %s", kvb_model_get_info(job->input->model)->name,
             (unsigned long long)job->input->chunks, job->input->ctx, kvb_base_name(job->text[0]));
    const kvb_plot plot = {.title = title, .x_label = "effective bits at 128K tokens", .y_label = "perplexity", .base_name = "exact",
                           .base = grid->ppl_exact, .line = line, .lines = fill_lines(grid, point, line)};
    kvb_plot_write(&plot, out);
    status = close_text(out, text, err);
out:
    free(point);
    free(line);
    return status;
}
