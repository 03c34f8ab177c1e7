/* Ticks and points of the plot. The command's own objects are in no library: both files are included. */
#include "tools/output.c"
#include "tools/plot.c"

#include <stdlib.h>
#include <string.h>

#include "format/base/rng.h"
#include "tests/support/cm.h"

static void check_ticks(double least, double most)
{
    double tick[MOST_TICKS];
    const size_t count = kvb_plot_ticks(least, most, tick, MOST_TICKS);
    assert_true(count >= 2 && count < MOST_TICKS);
    for (size_t i = 0; i < count; i++) {
        assert_true(tick[i] >= least * (1 - 1e-12) && tick[i] <= most * (1 + 1e-12));
        assert_true(i == 0 || tick[i] > tick[i - 1]);
    }
}

static void test_ticks(void **state)
{
    (void)state;
    for (uint64_t i = 0; i < 2000; i++) {
        const double least = exp(20 * kvb_rng_unit(1, i) - 8), decades = 12 * kvb_rng_unit(2, i) * kvb_rng_unit(2, i);
        check_ticks(least, least * exp(0.02 + decades));
    }
    double tick[MOST_TICKS];
    assert_int_equal(kvb_plot_ticks(0.3, 9, tick, MOST_TICKS), 4);
    assert_true(fabs(tick[0] - 0.5) < 1e-12 && fabs(tick[3] - 5) < 1e-12);
    assert_int_equal(kvb_plot_ticks(20, 26, tick, MOST_TICKS), 7);
    assert_int_equal(kvb_plot_ticks(20, 26, tick, 3), 3);
}

static char *draw(const kvb_plot *plot)
{
    char *text;
    size_t size;
    FILE *out = open_memstream(&text, &size);
    assert_non_null(out);
    kvb_plot_write(plot, out);
    assert_int_equal(fclose(out), 0);
    return text;
}

static size_t count_of(const char *text, const char *word)
{
    size_t count = 0;
    for (const char *at = text; (at = strstr(at, word)) != NULL; at++)
        count++;
    return count;
}

static void test_points(void **state)
{
    (void)state;
    const kvb_plot_point a[] = {{4, 20.5, 4}, {1, 30, 1}, {2, NAN, 2}, {0.5, 40, 0.5}, {2, INFINITY, 3}};
    const kvb_plot_point b[] = {{NAN, 1, 1}};
    const kvb_plot_line line[] = {{"a<b>&\"", a, 5}, {"none", b, 1}};
    const kvb_plot plot = {"t", "x", "y", "exact", 20, line, 2};
    char *text = draw(&plot);
    assert_int_equal(count_of(text, "<title>"), 3); /* what can be drawn */
    assert_int_equal(count_of(text, "a&lt;b&gt;&amp;&quot;"), 4);
    assert_null(strstr(text, "nan"));
    assert_null(strstr(text, "inf"));
    assert_non_null(strstr(text, "exact 20.000"));
    /* Joined from left to right: 0.5, 1, 4. */
    double x[3];
    char *points = strstr(text, "points=\"");
    assert_int_equal(sscanf(points, "points=\"%lf,%*f %lf,%*f %lf,%*f \"", &x[0], &x[1], &x[2]), 3);
    assert_true(0 < x[0] && x[0] < x[1] && x[1] < x[2] && x[2] < WIDTH);
    assert_true(fabs((x[2] - x[1]) - 2 * (x[1] - x[0])) < 0.2); /* two octaves and one */
    free(text);
}

static void test_nothing(void **state)
{
    (void)state;
    const kvb_plot plot = {"t", "x", "y", "exact", NAN, NULL, 0};
    char *text = draw(&plot);
    assert_null(strstr(text, "nan"));
    assert_non_null(strstr(text, "</svg>"));
    free(text);
}

static void test_many_lines(void **state)
{
    (void)state;
    const kvb_plot_point p = {1, 30, 1};
    kvb_plot_line line[30];
    for (size_t i = 0; i < 30; i++)
        line[i] = (kvb_plot_line){"l", &p, 1};
    const kvb_plot plot = {"t", "x", "y", "exact", 20, line, 30};
    char *text = draw(&plot);
    assert_non_null(strstr(text, "viewBox=\"0 0 770 640\"")); /* the names have room: 44 + 30 * 18 + 56 */
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ticks),
        cmocka_unit_test(test_points),
        cmocka_unit_test(test_nothing),
        cmocka_unit_test(test_many_lines),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
