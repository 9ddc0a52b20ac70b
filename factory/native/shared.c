/* Products of float32 by torch's own BLAS, whose sgemm is handed in. Threads share the columns of what is made, so that
   each reads a part of the weight: MKL shares the rows on AMD's processors, and each thread lays out all of the weight.

   BLAS has columns where rows are here: what is handed over as it lies is transposed there. */

#include "numbers.h"

#define STRIP 16 /* columns */

typedef void blas(const char *, const char *, const int *, const int *, const int *, const float *, const float *,
                  const int *, const float *, const int *, const float *, float *, const int *);

/* onto += x w', or where `back` x w. onto: (rows, columns), x: (rows, inner), w: (columns, inner) or (inner, columns);
   of each, the numbers from one row to the next. */
void add_shared(blas *sgemm, int threads, int back, int rows, int columns, int inner, const float *x, int x_row,
                const float *w, int w_row, float *onto, int onto_row) {
    float one = 1.0f;
    int strips = (columns + STRIP - 1) / STRIP;
#pragma omp parallel for schedule(static, 1) num_threads(threads)
    for (int thread = 0; thread < threads; thread++) {
        int first = strips * thread / threads * STRIP, end = strips * (thread + 1) / threads * STRIP;
        int own = (end < columns ? end : columns) - first;
        if (own > 0)
            sgemm(back ? "N" : "T", "N", &own, &rows, &inner, &one, w + (back ? first : (size)first * w_row), &w_row, x,
                  &x_row, &one, onto + first, &onto_row);
    }
}
