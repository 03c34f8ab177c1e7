/* Host threads side by side, and the names of devices. */
#include <omp.h>
#include <stdatomic.h>
#include <string.h>

#include "calib/device.h"
#include "calib/lanes.h"
#include "format/base/fail.h"
#include "tests/support/cm.h"

typedef struct seen {
    atomic_int runs[KVB_MOST_LANES], threads;
    uint32_t fails[2]; /* lanes that fail */
} seen;

static kvb_status work(void *user, uint32_t lane, kvb_error *err)
{
    seen *s = user;
    int team = 0;
    atomic_fetch_add(&s->runs[lane], 1);
#pragma omp parallel
#pragma omp single
    team = omp_get_num_threads();
    atomic_fetch_add(&s->threads, team);
    if (lane == s->fails[0] || lane == s->fails[1])
        return kvb_fail(err, lane == s->fails[0] ? KVB_E_CHECK : KVB_E_IO, "lane", "%u failed", lane);
    return KVB_OK;
}

static void test_all_run_once(void **state)
{
    (void)state;
    const int before = omp_get_max_threads();
    omp_set_num_threads(6);
    for (uint32_t lanes = 1; lanes <= 9; lanes += 2) {
        seen s = {.fails = {99, 99}};
        assert_int_equal(kvb_lanes_run(lanes, work, &s, NULL), KVB_OK);
        for (uint32_t i = 0; i < KVB_MOST_LANES; i++)
            assert_int_equal(atomic_load(&s.runs[i]), i < lanes);
        assert_in_range(atomic_load(&s.threads), lanes, lanes > 6 ? lanes : 6);
        assert_int_equal(omp_get_max_threads(), 6);
    }
    omp_set_num_threads(before);
}

static void test_lowest_failure(void **state)
{
    (void)state;
    kvb_error err = {0};
    seen s = {.fails = {3, 1}};
    assert_int_equal(kvb_lanes_run(5, work, &s, &err), KVB_E_IO);
    assert_string_equal(err.message, "1 failed");
    assert_int_equal(atomic_load(&s.runs[4]), 1); /* the others run to their end */
    assert_int_equal(kvb_lanes_run(0, work, &s, &err), KVB_E_USAGE);
    assert_int_equal(kvb_lanes_run(KVB_MOST_LANES + 1, work, &s, &err), KVB_E_USAGE);
}

static void test_device_names(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        kvb_device device;
    } good[] = {{"cpu", 0}, {"cuda", 1}, {"cuda:0", 1}, {"cuda:1", 2}, {"cuda:0,1", 3}, {"cuda:5,2", 36}, {"cuda:62", (kvb_device)1 << 62},
                {"cuda:all", KVB_DEVICE_ALL}};
    static const char *const bad[] = {"", "gpu", "CUDA", "cuda:", "cuda:,1", "cuda:1,", "cuda:1,1", "cuda:63", "cuda:0001", "cuda:-1", "cuda:a",
                                      "cuda:1 ", "cuda: 1", "cuda:all,1", "cpu:0", "cuda:99999999999999999999"};
    kvb_device device;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        assert_true(kvb_device_parse(good[i].name, &device));
        assert_true(device == good[i].device);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (kvb_device_parse(bad[i], &device))
            fail_msg("\"%s\" was taken for a device", bad[i]);
}

static void test_cpu_has_no_gpus(void **state)
{
    (void)state;
    uint32_t gpu[KVB_MOST_GPUS], count = 7;
    assert_int_equal(kvb_device_gpus(KVB_DEVICE_CPU, gpu, &count, NULL), KVB_OK);
    assert_int_equal(count, 0);
#ifndef KVB_CUDA
    kvb_error err = {0};
    assert_int_equal(kvb_device_gpus(KVB_DEVICE_ALL, gpu, &count, &err), KVB_E_DEVICE);
    assert_int_equal(count, 0);
    assert_non_null(strstr(err.message, "no CUDA"));
#endif
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_all_run_once),
        cmocka_unit_test(test_lowest_failure),
        cmocka_unit_test(test_device_names),
        cmocka_unit_test(test_cpu_has_no_gpus),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
