/* Products of float32 by torch's own BLAS, whose sgemm is handed in. Threads share the columns of what is made, so that
   each reads a part of the weight: MKL shares the rows on AMD's processors, and each thread lays out all of the weight.

   BLAS has columns where rows are here, and a b is its b' a': neither of the two is turned by that. */

#include "numbers.h"

#define STRIP 16 /* columns */

typedef void blas(const char *, const char *, const int *, const int *, const int *, const float *, const float *,
                  const int *, const float *, const int *, const float *, float *, const int *);

/* into = a b, or into += a b where `onto`. into: (rows, columns), a: (rows, inner), b: (inner, columns); `turned` ones
   lie as their transposes. `_row`: numbers from one row to the next, as it lies. */
void multiply_shared(blas *sgemm, int threads, int onto, int rows, int columns, int inner, const float *a, int a_turned,
                     int a_row, const float *b, int b_turned, int b_row, float *into, int into_row) {
    float one = 1.0f, kept = onto ? 1.0f : 0.0f;
    int strips = (columns + STRIP - 1) / STRIP;
#pragma omp parallel for schedule(static, 1) num_threads(threads)
    for (int thread = 0; thread < threads; thread++) {
        int first = strips * thread / threads * STRIP, end = strips * (thread + 1) / threads * STRIP;
        int own = (end < columns ? end : columns) - first;
        if (own > 0)
            sgemm(b_turned ? "T" : "N", a_turned ? "T" : "N", &own, &rows, &inner, &one,
                  b + (b_turned ? (size)first * b_row : first), &b_row, a, &a_row, &kept, into + first, &into_row);
    }
}
