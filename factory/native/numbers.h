/* The type of numbers that a library is built for, -DNUMBER_BF16 or -DNUMBER_FLOAT, and vectors; all is computed in
   float32. */

#ifndef NUMBERS
#define NUMBERS

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef __clang__
#error "clang's threads are not those that torch has on Linux: set CC=gcc"
#endif

typedef int64_t size;

#define PARALLEL_OVER 32768 /* numbers, as of torch: fewer are done before another thread is awake */
#define INLINE static inline __attribute__((always_inline))

/* LANES: float32 numbers of a vector. */
#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif
typedef float lanes __attribute__((vector_size(4 * LANES)));
typedef float loose __attribute__((vector_size(4 * LANES), aligned(4))); /* anywhere in memory */

#ifdef __x86_64__
#define HOLD(vector) __asm__("" : "+v"(vector)) /* else it is read again for each sum */
#else
#define HOLD(vector)
#endif

#ifdef NUMBER_BF16
typedef uint16_t number; /* the upper half of a float32 */

static inline float wide(number x) {
    uint32_t bits = (uint32_t)x << 16;
    float found;
    memcpy(&found, &bits, 4);
    return found;
}

/* To the nearest, of two to the even one, as torch rounds: in the upper half. No NaN can become a number: of those that
   are computed, or are widened from 16 bits, the lower half adds no carry. */
#define ROUNDED(bits) ((bits) + 0x7fff + ((bits) >> 16 & 1))

static inline uint32_t rounded(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return ROUNDED(bits);
}

static inline number narrow(float x) { return (number)(rounded(x) >> 16); }
#else
typedef float number;

static inline float wide(number x) { return x; }
static inline number narrow(float x) { return x; }
#endif

/* exp(x) of x <= 0, to 2 units of float32's last digit: 2^n exp(r) with |r| <= log(2) / 2, where n log(2) is taken away
   in two parts and exp(r) is a polynomial (Cephes, expf.c). Below -87 it stays at exp(-87), which beside 1 is nothing. */
static inline float exponential(float x) {
    x = x < -87.0f ? -87.0f : x;
    float n = rintf(x * 1.44269504088896341f);
    float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    int32_t bits = ((int32_t)n + 127) * (1 << 23);
    float power;
    memcpy(&power, &bits, 4);
    return p * power;
}

#endif
