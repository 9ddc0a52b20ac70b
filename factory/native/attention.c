/* Causal attention, softmax(scale Q K') V, and its slopes, by blocks of queries (Dao 2023, arXiv 2307.08691, section
   3.1). For AVX-512, bfloat16's with its instructions for that, and for AVX2 in float32; else nothing is in here.

   Scores have a row for each key and a column for each query: a query's sum is a lane, so no vector is added up within
   itself. Sums are in float32; weights and their slopes are rounded before they are multiplied. No kernel keeps or
   frees memory: `room` is for what comes and goes. */

#include "numbers.h"

#if defined(NUMBER_BF16) ? defined(__AVX512BF16__) : defined(__AVX512F__) || (defined(__AVX2__) && defined(__FMA__))

#include <immintrin.h>
#include <omp.h>

#define BLOCK 64 /* queries */
#define ROWS 4   /* keys, or numbers of a head, that are multiplied with a block at once */

/* STRIP: columns whose sums, of ROWS rows, stay in registers. Of AVX2's 16 they stay there in a function of their own
   alone. */
#ifdef __AVX512F__
#define STRIP BLOCK
#define STRIP_IS INLINE
#define VECTOR(name) _mm512_##name
#define BITS(name) _mm512_##name##_si512
typedef __m512i bits;
typedef __m512 floats;
#else
#define STRIP 16
#define STRIP_IS static __attribute__((noinline))
#define VECTOR(name) _mm256_##name
#define BITS(name) _mm256_##name##_si256
typedef __m256i bits;
typedef __m256 floats;
#endif
#define VECTORS (STRIP / LANES)

/* A unit is what a lane multiplies at once, and adds up: EACH numbers. */
#ifdef NUMBER_BF16
#define EACH 2
typedef uint32_t unit;
typedef __m512bh units;

INLINE units load(const unit *from) { return (units)BITS(load)((const bits *)from); }
INLINE lanes add_product(lanes sum, units a, units b) { return (lanes)_mm512_dpbf16_ps((floats)sum, a, b); }
INLINE unit join(float first, float second) { return rounded(first) >> 16 | (rounded(second) & 0xffff0000); }
INLINE units spread(const number *from) {
    int32_t both;
    memcpy(&both, from, sizeof both);
    return (units)VECTOR(set1_epi32)(both);
}
#else
#define EACH 1
typedef float unit;
typedef floats units;

INLINE units load(const unit *from) { return VECTOR(load_ps)(from); }
INLINE lanes add_product(lanes sum, units a, units b) { return (lanes)VECTOR(fmadd_ps)(a, b, (floats)sum); }
INLINE unit join(float first, float second) { return first; }
INLINE units spread(const number *from) { return VECTOR(set1_ps)(*from); }
#endif

/* Heads of one batch: (batch, heads, length, width), by the numbers from one batch, head and token to the next. */
typedef struct {
    const number *at;
    size batch, head, token;
} states;

/* spans: (batch, 3, length), or null for plainly causal. A token sees those before it and itself, as far as they are
   not before spans[0], or stand from spans[1] to before spans[2]; itself always. */
typedef struct {
    size batch, key_heads, sharing, length, dim, value_dim, threads;
    float scale;
    const int32_t *spans;
    states query, key, value;
} problem;

/* What a block's queries see. */
typedef struct {
    size start, rows;          /* the first query, and how many there are */
    size from, to;             /* the keys that one of them sees, the first a multiple of ROWS */
    size whole_from, whole_to; /* those that all of them see */
    int32_t place[BLOCK], own[BLOCK], first[BLOCK], end[BLOCK];
} sight;

static size up(size count, size step) { return (count + step - 1) / step * step; }
static size panels(size width) { return (width + BLOCK - 1) / BLOCK; }

static const number *head_of(const states *of, size batch, size head) {
    return of->at + batch * of->batch + head * of->head;
}

static sight look(const problem *of, size batch, size start) {
    const int32_t *spans = of->spans ? of->spans + batch * 3 * of->length : 0;
    size rows = of->length - start < BLOCK ? of->length - start : BLOCK;
    sight seen = {.start = start, .rows = rows, .from = start, .to = start + rows, .whole_to = start + 1};
    for (size q = 0; q < BLOCK; q++) {
        size place = q < rows ? start + q : start + rows - 1;
        size own = spans ? spans[place] : 0, first = spans ? spans[of->length + place] : 0;
        size end = spans ? spans[2 * of->length + place] : 0;
        seen.place[q] = (int32_t)place, seen.own[q] = (int32_t)own;
        seen.first[q] = (int32_t)first, seen.end[q] = (int32_t)end;
        seen.whole_from = own > seen.whole_from ? own : seen.whole_from;
        size least = first < end && first < own ? first : own;
        seen.from = least < seen.from ? least : seen.from;
    }
    seen.from = seen.from / ROWS * ROWS;
    return seen;
}

/* Of STRIP columns: sum (+)= a b, as `multiply`. */
STRIP_IS void multiply_strip(size count, const number *const *a, const unit *b, float *sum, size across, int onto) {
    lanes s[ROWS][VECTORS];
#pragma GCC unroll 4
    for (int row = 0; row < ROWS; row++)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++)
            s[row][v] = onto ? *(lanes *)(sum + row * across + LANES * v) : (lanes){0};
    for (size p = 0; p < count; p++, b += BLOCK) {
        units from[VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) {
            from[v] = load(b + LANES * v);
            HOLD(from[v]);
        }
#pragma GCC unroll 4
        for (int row = 0; row < ROWS; row++) {
            units each = spread(a[row] + EACH * p);
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; v++)
                s[row][v] = add_product(s[row][v], each, from[v]);
        }
    }
#pragma GCC unroll 4
    for (int row = 0; row < ROWS; row++)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++)
            *(lanes *)(sum + row * across + LANES * v) = s[row][v];
}

/* sum (+)= a b. a: ROWS rows of `count` units; b: (count, BLOCK) units; sum: ROWS rows, `across` numbers apart. */
INLINE void multiply(size count, const number *const *a, const unit *b, float *sum, size across, int onto) {
    for (size column = 0; column < BLOCK; column += STRIP)
        multiply_strip(count, a, b + column, sum + column, across, onto);
}

/* --- the order that `multiply` reads in */

/* Four rows: in each of their 128 bits (4, 4) units, the other way round. */
INLINE void turn_within(const bits *rows, bits *turned) {
    bits low = VECTOR(unpacklo_epi32)(rows[0], rows[1]), high = VECTOR(unpackhi_epi32)(rows[0], rows[1]);
    bits low_after = VECTOR(unpacklo_epi32)(rows[2], rows[3]), high_after = VECTOR(unpackhi_epi32)(rows[2], rows[3]);
    turned[0] = VECTOR(unpacklo_epi64)(low, low_after);
    turned[1] = VECTOR(unpackhi_epi64)(low, low_after);
    turned[2] = VECTOR(unpacklo_epi64)(high, high_after);
    turned[3] = VECTOR(unpackhi_epi64)(high, high_after);
}

/* (LANES, LANES) units, the other way round. */
INLINE void turn_square(bits *rows) {
    bits fours[LANES];
#pragma GCC unroll 4
    for (int i = 0; i < LANES; i += 4)
        turn_within(rows + i, fours + i);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
#ifdef __AVX512F__
        bits even = _mm512_shuffle_i32x4(fours[i], fours[i + 4], 0x88);
        bits odd = _mm512_shuffle_i32x4(fours[i], fours[i + 4], 0xdd);
        bits even_after = _mm512_shuffle_i32x4(fours[i + 8], fours[i + 12], 0x88);
        bits odd_after = _mm512_shuffle_i32x4(fours[i + 8], fours[i + 12], 0xdd);
        rows[i] = _mm512_shuffle_i32x4(even, even_after, 0x88);
        rows[i + 4] = _mm512_shuffle_i32x4(odd, odd_after, 0x88);
        rows[i + 8] = _mm512_shuffle_i32x4(even, even_after, 0xdd);
        rows[i + 12] = _mm512_shuffle_i32x4(odd, odd_after, 0xdd);
#else
        rows[i] = _mm256_permute2x128_si256(fours[i], fours[i + 4], 0x20);
        rows[i + 4] = _mm256_permute2x128_si256(fours[i], fours[i + 4], 0x31);
#endif
    }
}

/* The first `count` units of a row, and 0 for the others. */
INLINE bits load_some(size count, const number *from) {
#ifdef __AVX512F__
    return _mm512_maskz_loadu_epi32((1u << count) - 1, from);
#else
    bits there = _mm256_cmpgt_epi32(_mm256_set1_epi32((int)count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    return _mm256_maskload_epi32((const int *)from, there);
#endif
}

/* A block's rows as (width / EACH, BLOCK) units of a row's numbers; 0 after the last row. */
static void by_row(size rows, size width, const number *from, size token, unit *into) {
    for (size first = 0; first < width / EACH; first += LANES) {
        size count = width / EACH - first < LANES ? width / EACH - first : LANES;
        for (size q = 0; q < BLOCK; q += LANES) {
            bits square[LANES];
#pragma GCC unroll 16
            for (int i = 0; i < LANES; i++)
                square[i] = load_some(q + i < rows ? count : 0, from + (q + i) * token + first * EACH);
            turn_square(square);
#pragma GCC unroll 16
            for (int i = 0; i < LANES; i++)
                if (i < count)
                    BITS(store)((bits *)(into + (first + i) * BLOCK + q), square[i]);
        }
    }
}

/* A block's rows as (panels, BLOCK / EACH, BLOCK) units of EACH rows; 0 after the last row, and in the last panel. */
static void by_column(size rows, size width, const number *from, size token, unit *into) {
    for (size panel = 0; panel < width; panel += BLOCK)
        for (size q = 0; q < BLOCK; q += EACH, into += BLOCK) {
            size columns = q < rows ? (width - panel < BLOCK ? width - panel : BLOCK) : 0;
            const number *row = from + q * token + panel, *next = q + 1 < rows ? row + token : 0;
            memset(into + columns, 0, (BLOCK - columns) * sizeof(unit));
            if (next)
                for (size w = 0; w < columns; w++)
                    into[w] = join(wide(row[w]), wide(next[w]));
            else
                for (size w = 0; w < columns; w++)
                    into[w] = join(wide(row[w]), 0);
        }
}

/* A head's states, (length, width), as (width, padded) with 0 after the last token. By all threads. */
static void turn(const problem *of, size width, const number *from, size token, number *into) {
    size padded = up(of->length, ROWS);
#pragma omp for schedule(static)
    for (size t = 0; t < padded; t += ROWS)
        for (size w = 0; w < width; w++)
            for (size i = t; i < t + ROWS; i++)
                into[w * padded + i] = i < of->length ? from[i * token + w] : 0;
}

/* ROWS rows of a block's columns, as units of EACH of them. */
INLINE void join_rows(const float *rows, unit *into) {
    for (size i = 0; i < ROWS; i += EACH)
#pragma omp simd
        for (size q = 0; q < BLOCK; q++)
            into[i / EACH * BLOCK + q] = join(rows[i * BLOCK + q], rows[(i + EACH - 1) * BLOCK + q]);
}

/* ROWS tokens of a head. Those after the last are the last: nobody sees them. */
INLINE void rows_of(const problem *of, const number *from, size token, size key, const number **rows) {
    for (size i = 0; i < ROWS; i++)
        rows[i] = from + (key + i < of->length ? key + i : of->length - 1) * token;
}

/* --- what both directions make */

/* scale K q of ROWS keys: (ROWS, BLOCK), -inf where they are not seen. */
INLINE void score(const problem *of, const sight *seen, const number *keys, size key, const unit *query,
                  float (*scores)[BLOCK]) {
    const number *rows[ROWS];
    rows_of(of, keys, of->key.token, key, rows);
    multiply(of->dim / EACH, rows, query, scores[0], BLOCK, 0);
    int all = key >= seen->whole_from && key + ROWS <= seen->whole_to;
    for (size i = 0; i < ROWS; i++) {
        int32_t k = (int32_t)(key + i);
        if (all)
#pragma omp simd
            for (size q = 0; q < BLOCK; q++)
                scores[i][q] *= of->scale;
        else
#pragma omp simd
            for (size q = 0; q < BLOCK; q++) {
                int32_t there = (k >= seen->own[q]) | ((k >= seen->first[q]) & (k < seen->end[q]));
                there = (there & (k < seen->place[q])) | (k == seen->place[q]);
                float score = scores[i][q] * of->scale;
                scores[i][q] = there ? score : -INFINITY;
            }
    }
}

/* turned times units, (keys / EACH, BLOCK), each query's times its factor, as its row of `width` numbers. */
static void make_rows(const problem *of, const sight *seen, size width, const number *turned, const unit *units,
                      const float *factors, number *into, size token) {
    size padded = up(of->length, ROWS), count = up(seen->to - seen->from, ROWS) / EACH;
    for (size w = 0; w < width; w += ROWS) {
        float sums[ROWS][BLOCK] __attribute__((aligned(64)));
        number narrowed[ROWS][BLOCK];
        const number *from[ROWS];
        for (size i = 0; i < ROWS; i++)
            from[i] = turned + (w + i) * padded + seen->from;
        multiply(count, from, units, sums[0], BLOCK, 0);
        for (size i = 0; i < ROWS; i++)
#pragma omp simd
            for (size q = 0; q < BLOCK; q++)
                narrowed[i][q] = narrow(sums[i][q] * factors[q]);
        for (size q = 0; q < seen->rows; q++) {
            number four[ROWS] = {narrowed[0][q], narrowed[1][q], narrowed[2][q], narrowed[3][q]};
            memcpy(into + q * token + w, four, sizeof four);
        }
    }
}

/* --- forwards */

typedef struct {
    float (*scores)[BLOCK]; /* (padded, BLOCK) */
    unit *weights;          /* (padded / EACH, BLOCK) */
    unit *query;            /* (dim / EACH, BLOCK) */
} forward_room;

static size forward_bytes(const problem *of) {
    return (up(of->length, ROWS) * (sizeof(float) + sizeof(number)) + of->dim * sizeof(number)) * BLOCK;
}

size attend_room(const problem *of) {
    return of->value_dim * up(of->length, ROWS) * sizeof(number) + of->threads * forward_bytes(of);
}

/* Of a block: its sums of exp(score), as logarithms, and what it makes, rows `token` numbers apart. */
static void attend_block(const problem *of, const sight *seen, const number *query, const number *keys,
                         const number *turned, forward_room room, float *sums, number *made, size token) {
    float largest[BLOCK], total[BLOCK] = {0};
    by_row(seen->rows, of->dim, query + seen->start * of->query.token, of->query.token, room.query);
    for (size q = 0; q < BLOCK; q++)
        largest[q] = -INFINITY;
    for (size k = seen->from; k < seen->to; k += ROWS) {
        float(*scores)[BLOCK] = room.scores + (k - seen->from);
        score(of, seen, keys, k, room.query, scores);
        for (size i = 0; i < ROWS; i++)
#pragma omp simd
            for (size q = 0; q < BLOCK; q++)
                largest[q] = scores[i][q] > largest[q] ? scores[i][q] : largest[q];
    }
    for (size k = seen->from; k < seen->to; k += ROWS) {
        float(*scores)[BLOCK] = room.scores + (k - seen->from);
        for (size i = 0; i < ROWS; i++)
#pragma omp simd
            for (size q = 0; q < BLOCK; q++) {
                scores[i][q] = exponential(scores[i][q] - largest[q]);
                total[q] += scores[i][q];
            }
        join_rows(scores[0], room.weights + (k - seen->from) / EACH * BLOCK);
    }
    for (size q = 0; q < BLOCK; q++) {
        if (q < seen->rows)
            sums[seen->start + q] = largest[q] + logf(total[q]);
        total[q] = 1.0f / total[q];
    }
    make_rows(of, seen, of->value_dim, turned, room.weights, total, made, token);
}

/* made: (batch, length, heads, value_dim); sums: (batch, heads, length), the logarithms of sums of exp(score). */
void attend(const problem *of, number *made, float *sums, char *room) {
    size padded = up(of->length, ROWS), blocks = panels(of->length), heads = of->key_heads * of->sharing;
    size token = heads * of->value_dim;
    number *turned = (number *)room;
#pragma omp parallel num_threads(of->threads)
    {
        char *own = room + of->value_dim * padded * sizeof(number) + omp_get_thread_num() * forward_bytes(of);
        forward_room mine = {.scores = (float(*)[BLOCK])own};
        mine.weights = (unit *)(own + padded * BLOCK * sizeof(float));
        mine.query = mine.weights + padded / EACH * BLOCK;
        for (size each = 0; each < of->batch * of->key_heads; each++) {
            size batch = each / of->key_heads, key_head = each % of->key_heads;
            turn(of, of->value_dim, head_of(&of->value, batch, key_head), of->value.token, turned);
#pragma omp for schedule(dynamic)
            for (size item = 0; item < of->sharing * blocks; item++) { /* the longest first */
                size head = key_head * of->sharing + item % of->sharing;
                sight seen = look(of, batch, (blocks - 1 - item / of->sharing) * BLOCK);
                attend_block(of, &seen, head_of(&of->query, batch, head), head_of(&of->key, batch, key_head), turned,
                             mine, sums + (batch * heads + head) * of->length,
                             made + (batch * of->length + seen.start) * token + head * of->value_dim, token);
            }
        }
    }
}

/* --- backwards: dV = P'dO, dS = P (dO V' - sum dO O), dQ = scale dS K, dK = scale dS'Q */

typedef struct {
    float *by_key, *by_value;              /* (padded, panels BLOCK), what this thread's blocks add */
    unit *by_score;                        /* (padded / EACH, BLOCK) */
    unit *query, *slope;                   /* by row */
    unit *query_columns, *slope_columns;   /* by column */
} backward_room;

static size backward_bytes(const problem *of) {
    size widths = (panels(of->dim) + panels(of->value_dim)) * BLOCK, padded = up(of->length, ROWS);
    return padded * widths * sizeof(float) + (padded + of->dim + of->value_dim + widths) * BLOCK * sizeof(number);
}

size attend_back_room(const problem *of) {
    return of->dim * up(of->length, ROWS) * sizeof(number) + of->threads * backward_bytes(of);
}

static backward_room backward_room_at(const problem *of, char *at) {
    size padded = up(of->length, ROWS), dim = panels(of->dim) * BLOCK, value_dim = panels(of->value_dim) * BLOCK;
    backward_room room = {.by_key = (float *)at};
    room.by_value = room.by_key + padded * dim;
    room.by_score = (unit *)(room.by_value + padded * value_dim);
    room.query = room.by_score + padded / EACH * BLOCK;
    room.slope = room.query + of->dim / EACH * BLOCK;
    room.query_columns = room.slope + of->value_dim / EACH * BLOCK;
    room.slope_columns = room.query_columns + dim / EACH * BLOCK;
    return room;
}

/* += rows' columns: rows: ROWS of a block's numbers, columns: as `by_column` has them, onto: (…, width). */
INLINE void add_columns(size width, const number *const *rows, const unit *columns, float *onto) {
    for (size panel = 0; panel < panels(width); panel++)
        multiply(BLOCK / EACH, rows, columns + panel * BLOCK / EACH * BLOCK, onto + panel * BLOCK,
                 panels(width) * BLOCK, 1);
}

/* Of a block: the slopes in its queries, and what it adds to those in keys and values. Rows of `slope` and of what was
   `made` are `token` numbers apart, `sums` as of `attend`. */
static void attend_back_block(const problem *of, const sight *seen, const number *query, const number *keys,
                              const number *values, const number *turned, backward_room room, const number *made,
                              const float *sums, const number *slope, size token, number *by_query, size query_token) {
    float logarithms[BLOCK] = {0}, means[BLOCK] = {0}, factors[BLOCK];
    by_row(seen->rows, of->dim, query + seen->start * of->query.token, of->query.token, room.query);
    by_row(seen->rows, of->value_dim, slope, token, room.slope);
    by_column(seen->rows, of->dim, query + seen->start * of->query.token, of->query.token, room.query_columns);
    by_column(seen->rows, of->value_dim, slope, token, room.slope_columns);
    for (size q = 0; q < seen->rows; q++) {
        float mean = 0;
#pragma omp simd reduction(+ : mean)
        for (size w = 0; w < of->value_dim; w++)
            mean += wide(slope[q * token + w]) * wide(made[q * token + w]);
        means[q] = mean, logarithms[q] = sums[seen->start + q];
    }
    for (size q = 0; q < BLOCK; q++)
        factors[q] = of->scale;
    for (size k = seen->from; k < seen->to; k += ROWS) {
        float weights[ROWS][BLOCK] __attribute__((aligned(64))), by_score[ROWS][BLOCK] __attribute__((aligned(64)));
        number narrow_weights[ROWS][BLOCK], narrow_by_score[ROWS][BLOCK];
        const number *rows[ROWS], *weight_rows[ROWS], *by_score_rows[ROWS];
        score(of, seen, keys, k, room.query, weights);
        rows_of(of, values, of->value.token, k, rows);
        multiply(of->value_dim / EACH, rows, room.slope, by_score[0], BLOCK, 0);
        for (size i = 0; i < ROWS; i++) {
            weight_rows[i] = narrow_weights[i], by_score_rows[i] = narrow_by_score[i];
#pragma omp simd
            for (size q = 0; q < BLOCK; q++) {
                float weight = exponential(weights[i][q] - logarithms[q]);
                by_score[i][q] = weight * (by_score[i][q] - means[q]);
                narrow_weights[i][q] = narrow(weight);
                narrow_by_score[i][q] = narrow(by_score[i][q]);
            }
        }
        join_rows(by_score[0], room.by_score + (k - seen->from) / EACH * BLOCK);
        add_columns(of->value_dim, weight_rows, room.slope_columns, room.by_value + k * panels(of->value_dim) * BLOCK);
        add_columns(of->dim, by_score_rows, room.query_columns, room.by_key + k * panels(of->dim) * BLOCK);
    }
    make_rows(of, seen, of->dim, turned, room.by_score, factors, by_query, query_token);
}

/* A head's slopes, (length, width) with rows `token` numbers apart: what `threads` threads added, `apart` bytes from
   each other. By all of them. */
static void gather(const problem *of, size threads, size apart, size width, float *from, float factor, number *into,
                   size token) {
    size across = panels(width) * BLOCK;
#pragma omp for schedule(static)
    for (size t = 0; t < of->length; t++) {
        float *restrict sum = from + t * across;
        for (size thread = 1; thread < threads; thread++) {
            const float *restrict more = (const float *)((const char *)sum + thread * apart);
#pragma omp simd
            for (size w = 0; w < width; w++)
                sum[w] += more[w];
        }
        number *restrict row = into + t * token;
#pragma omp simd
        for (size w = 0; w < width; w++)
            row[w] = narrow(sum[w] * factor);
    }
}

/* made, sums: as `attend` gave them; slope: (batch, length, heads, value_dim), in what was made; by_query, by_key,
   by_value: (batch, length, heads or key heads, width). */
void attend_back(const problem *of, const number *made, const float *sums, const number *slope, number *by_query,
                 number *by_key, number *by_value, char *room) {
    size padded = up(of->length, ROWS), blocks = panels(of->length), heads = of->key_heads * of->sharing;
    size token = heads * of->value_dim, query_token = heads * of->dim, apart = backward_bytes(of);
    number *turned = (number *)room;
    char *rooms = room + of->dim * padded * sizeof(number);
#pragma omp parallel num_threads(of->threads)
    {
        size threads = omp_get_num_threads(), me = omp_get_thread_num();
        backward_room first = backward_room_at(of, rooms), mine = backward_room_at(of, rooms + me * apart);
        for (size each = 0; each < of->batch * of->key_heads; each++) {
            size batch = each / of->key_heads, key_head = each % of->key_heads;
            const number *keys = head_of(&of->key, batch, key_head);
            turn(of, of->dim, keys, of->key.token, turned);
            memset(mine.by_key, 0, (char *)mine.by_score - (char *)mine.by_key);
            for (size item = 0; item < of->sharing * blocks; item++) {
                /* the longest first, to and fro: always the same, so that sums are */
                size dealt = item % (2 * threads);
                if ((dealt < threads ? dealt : 2 * threads - 1 - dealt) != me)
                    continue;
                size head = key_head * of->sharing + item % of->sharing;
                sight seen = look(of, batch, (blocks - 1 - item / of->sharing) * BLOCK);
                size at = (batch * of->length + seen.start) * token + head * of->value_dim;
                attend_back_block(of, &seen, head_of(&of->query, batch, head), keys,
                                  head_of(&of->value, batch, key_head), turned, mine, made + at,
                                  sums + (batch * heads + head) * of->length, slope + at, token,
                                  by_query + (batch * of->length + seen.start) * query_token + head * of->dim,
                                  query_token);
            }
#pragma omp barrier
            size row = batch * of->length * of->key_heads + key_head;
            gather(of, threads, apart, of->dim, first.by_key, of->scale, by_key + row * of->dim,
                   of->key_heads * of->dim);
            gather(of, threads, apart, of->value_dim, first.by_value, 1.0f, by_value + row * of->value_dim,
                   of->key_heads * of->value_dim);
        }
    }
}

#endif
