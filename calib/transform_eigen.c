#include "calib/transform_eigen.h"

#include <cblas.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#include "format/base/checked.h"
#include "format/base/fail.h"

/* OpenBLAS holds LAPACK, but Debian's package of it has no header for that part. Fortran passes the lengths of strings
 * behind the arguments. */
void dsyevd_(const char *jobz, const char *uplo, const int *n, double *a, const int *lda, double *w, double *work,
             const int *lwork, int *iwork, const int *liwork, int *info, size_t jobz_length, size_t uplo_length);

static void swap(double *a, double *b)
{
    double kept = *a;
    *a = *b;
    *b = kept;
}

/* LAPACK's order is ascending. */
static void reverse(double *vectors, size_t n, double *value)
{
    for (size_t i = 0; i < n / 2; i++) {
        swap(&value[i], &value[n - 1 - i]);
        for (size_t j = 0; j < n; j++)
            swap(&vectors[i * n + j], &vectors[(n - 1 - i) * n + j]);
    }
}

static void fix_sign(double *vector, size_t n)
{
    size_t largest = 0;
    for (size_t j = 1; j < n; j++)
        if (fabs(vector[j]) > fabs(vector[largest]))
            largest = j;
    for (size_t j = 0; vector[largest] < 0.0 && j < n; j++)
        if (j != largest)
            vector[j] = -vector[j];
    vector[largest] = fabs(vector[largest]);
}

kvb_status kvb_eigen_symmetric(double *matrix, size_t n, double *value, kvb_error *err)
{
    int order = (int)n, work_size = -1, iwork_size = -1, info = 0, iwork_wanted = 0;
    double work_wanted = 0.0;
    openblas_set_num_threads(1); /* as in model/: its own threads would change sums with their number */
    dsyevd_("V", "L", &order, matrix, &order, value, &work_wanted, &work_size, &iwork_wanted, &iwork_size, &info, 1, 1);
    work_size = (int)work_wanted;
    iwork_size = iwork_wanted;
    double *work = kvb_alloc_array((size_t)work_size, sizeof *work);
    int *iwork = kvb_alloc_array((size_t)iwork_size, sizeof *iwork);
    if (work != NULL && iwork != NULL)
        dsyevd_("V", "L", &order, matrix, &order, value, work, &work_size, iwork, &iwork_size, &info, 1, 1);
    kvb_status status = work == NULL || iwork == NULL ? kvb_fail_memory(err, "eigenvectors") : KVB_OK;
    free(work);
    free(iwork);
    if (status != KVB_OK)
        return status;
    if (info != 0)
        return kvb_fail(err, KVB_E_CHECK, "", "the eigenvectors of a %zu x %zu matrix do not converge (LAPACK's info is "
                                              "%d)", n, n, info);
    /* Columns of a Fortran matrix are rows of ours. */
    reverse(matrix, n, value);
    for (size_t i = 0; i < n; i++)
        fix_sign(matrix + i * n, n);
    return KVB_OK;
}
