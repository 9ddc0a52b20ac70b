/* Products of a matrix with one of few rows, as LoRA's are (Hu et al. 2021, arXiv 2106.09685, equation 3). The few rows
   and what is small, `low`, are of float32; widths are multiples of STRIP. No kernel keeps or frees memory. */

#include "numbers.h"

#ifdef __AVX2__
#include <immintrin.h>
#endif

#define STRIP 16  /* columns */
#define ROWS 4    /* of x, whose sums stay in registers with those of some of the few */
#define BLOCK 256 /* rows of x that stay near while all their columns are read */
#define VECTORS (STRIP / LANES)

/* Sums that are added up at once: as many as a processor that has such vectors has registers for. */
#if LANES == 16
#define RANKS 4
#define SHARES 8
#else
#define RANKS 2
#define SHARES 4
#endif

#ifdef NUMBER_BF16
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
typedef number halves __attribute__((vector_size(2 * LANES), aligned(2)));

#if __GNUC__ >= 9
#define CONVERTED(vector, type) __builtin_convertvector(vector, type)
#else
#define CONVERTED(vector, type)                                                                                        \
    ({                                                                                                                 \
        type made;                                                                                                     \
        for (int lane = 0; lane < LANES; lane++)                                                                       \
            made[lane] = (vector)[lane];                                                                               \
        made;                                                                                                          \
    })
#endif

#if defined(__AVX512F__) /* of what is generic gcc makes two vectors and joins them */
#define WIDE_WORDS(from) (words)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(from)))
#elif defined(__AVX2__)
#define WIDE_WORDS(from) (words)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(from)))
#else
#define WIDE_WORDS(from) CONVERTED(*(const halves *)(from), words)
#endif

INLINE lanes take(const number *from) { return (lanes)(WIDE_WORDS(from) << 16); }

/* A NaN of float32's matrices may have any bits: it stays one. */
INLINE void put(number *into, lanes x) {
    words none = (words)(x != x), bits = ROUNDED((words)x);
    *(halves *)into = CONVERTED(((bits & ~none) | (none & 0x7fc00000)) >> 16, halves);
}
#else
INLINE lanes take(const number *from) { return *(const loose *)from; }
INLINE void put(number *into, lanes x) { *(loose *)into = x; }
#endif

INLINE size least(size a, size b) { return a < b ? a : b; }

/* low = scale x w' of ROWS rows of x from `row`; past the last one it is made again. */
INLINE void down_rows(size rows, size row, size width, size rank, float scale, const number *x, const float *w,
                      float *low, size across) {
    const number *from[ROWS];
    for (int i = 0; i < ROWS; i++)
        from[i] = x + least(row + i, rows - 1) * width;
    for (size first = 0; first < rank; first += RANKS) {
        const float *of[RANKS];
        lanes sums[ROWS][RANKS];
#pragma GCC unroll 4
        for (int r = 0; r < RANKS; r++)
            of[r] = w + least(first + r, rank - 1) * width;
#pragma GCC unroll 4
        for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 4
            for (int r = 0; r < RANKS; r++)
                sums[i][r] = (lanes){0};
        for (size column = 0; column < width; column += LANES) {
            lanes each[RANKS];
#pragma GCC unroll 4
            for (int r = 0; r < RANKS; r++) {
                each[r] = *(const loose *)(of[r] + column);
                HOLD(each[r]);
            }
#pragma GCC unroll 4
            for (int i = 0; i < ROWS; i++) {
                lanes numbers = take(from[i] + column);
                HOLD(numbers);
#pragma GCC unroll 4
                for (int r = 0; r < RANKS; r++)
                    sums[i][r] += numbers * each[r];
            }
        }
#pragma GCC unroll 4
        for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 4
            for (int r = 0; r < RANKS; r++) {
                float sum = 0;
                for (int lane = 0; lane < LANES; lane++)
                    sum += sums[i][r][lane];
                low[least(row + i, rows - 1) * across + least(first + r, rank - 1)] = scale * sum;
            }
    }
}

/* y = low w of a strip of columns. w: (rank, STRIP) */
INLINE void up_strip(size rows, size width, size rank, const float *low, size across, const float *w, number *y) {
    for (size row = 0; row < rows; row += SHARES) {
        lanes sums[SHARES][VECTORS];
        const float *of[SHARES];
#pragma GCC unroll 8
        for (int i = 0; i < SHARES; i++) {
            of[i] = low + least(row + i, rows - 1) * across;
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; v++)
                sums[i][v] = (lanes){0};
        }
        for (size r = 0; r < rank; r++) {
            lanes each[VECTORS];
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; v++) {
                each[v] = *(const lanes *)(w + r * STRIP + v * LANES);
                HOLD(each[v]);
            }
#pragma GCC unroll 8
            for (int i = 0; i < SHARES; i++) {
                lanes share = of[i][r] - (lanes){0};
                HOLD(share);
#pragma GCC unroll 4
                for (int v = 0; v < VECTORS; v++)
                    sums[i][v] += share * each[v];
            }
        }
#pragma GCC unroll 8
        for (int i = 0; i < SHARES; i++)
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; v++)
                put(y + least(row + i, rows - 1) * width + v * LANES, sums[i][v]);
    }
}

/* sums = low' x of a strip of columns. sums: (rank, STRIP) */
INLINE void outer_strip(size rows, size width, size rank, const float *low, size across, const number *x, float *sums) {
    for (size first = 0; first < rank; first += SHARES) {
        lanes of[SHARES][VECTORS];
        size last[SHARES];
#pragma GCC unroll 8
        for (int r = 0; r < SHARES; r++) {
            last[r] = least(first + r, rank - 1);
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; v++)
                of[r][v] = (lanes){0};
        }
        for (size row = 0; row < rows; row++) {
            lanes each[VECTORS];
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; v++) {
                each[v] = take(x + row * width + v * LANES);
                HOLD(each[v]);
            }
#pragma GCC unroll 8
            for (int r = 0; r < SHARES; r++) {
                lanes share = low[row * across + last[r]] - (lanes){0};
                HOLD(share);
#pragma GCC unroll 4
                for (int v = 0; v < VECTORS; v++)
                    of[r][v] += share * each[v];
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < SHARES; r++)
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; v++)
                *(lanes *)(sums + last[r] * STRIP + v * LANES) = of[r][v];
    }
}

/* low = scale x w'. x: (rows, width), w: (rank, width), where `turned` is not null handed over as (width, rank), and
   turned into that; low: (rows, rank), of rows that have `across`. */
void few_down(size rows, size width, size rank, float scale, const number *x, const float *w, float *turned, float *low,
              size across) {
    const float *of = turned ? turned : w;
#pragma omp parallel if (rows * width > PARALLEL_OVER)
    {
        if (turned) {
#pragma omp for schedule(static)
            for (size column = 0; column < width; column += STRIP)
                for (size r = 0; r < rank; r++)
                    for (size c = column; c < column + STRIP; c++)
                        turned[r * width + c] = w[c * rank + r];
        }
#pragma omp for schedule(static)
        for (size row = 0; row < rows; row += ROWS)
            down_rows(rows, row, width, rank, scale, x, of, low, across);
    }
}

/* y = scale low w. w: (rank, width), where `turned` handed over as (width, rank); y: (rows, width) */
void few_up(size rows, size width, size rank, float scale, const float *low, size across, const float *w, int turned,
            number *y) {
#pragma omp parallel for schedule(static) if (rows * width > PARALLEL_OVER)
    for (size column = 0; column < width; column += STRIP) {
        float strip[MOST_RANKS * STRIP] __attribute__((aligned(64)));
        for (size r = 0; r < rank; r++)
            for (size c = 0; c < STRIP; c++)
                strip[r * STRIP + c] = scale * (turned ? w[(column + c) * rank + r] : w[r * width + column + c]);
        up_strip(rows, width, rank, low, across, strip, y + column);
    }
}

/* made = scale low' x, (rank, width), or where `turned` (width, rank). low: (rows, rank), x: (rows, width) */
void few_outer(size rows, size width, size rank, float scale, const float *low, size across, const number *x,
               int turned, float *made) {
#pragma omp parallel if (rows * width > PARALLEL_OVER)
    for (size row = 0; row == 0 || row < rows; row += BLOCK) {
        /* a thread has the same columns in each block */
#pragma omp for schedule(static) nowait
        for (size column = 0; column < width; column += STRIP) {
            float sums[MOST_RANKS * STRIP] __attribute__((aligned(64)));
            outer_strip(least(rows - row, BLOCK), width, rank, low + row * across, across, x + row * width + column,
                        sums);
            for (size r = 0; r < rank; r++)
                for (size c = 0; c < STRIP; c++) {
                    float *into = made + (turned ? (column + c) * rank + r : r * width + column + c);
                    *into = (row ? *into : 0.0f) + scale * sums[r * STRIP + c];
                }
        }
    }
}
