/* What factory.fused and factory.losses compute number by number, in one pass each. No kernel keeps or frees memory. */

#include "numbers.h"

static inline float sigmoid(float x) {
    float small = exponential(-fabsf(x));
    return (x < 0.0f ? small : 1.0f) / (1.0f + small);
}

/* made = silu(gate) up */
void gated_silu(size count, const number *restrict gate, const number *restrict up, number *restrict made) {
#pragma omp parallel for simd schedule(static) if (count > PARALLEL_OVER)
    for (size i = 0; i < count; i++) {
        float g = wide(gate[i]);
        made[i] = narrow(g * sigmoid(g) * wide(up[i]));
    }
}

/* The slopes in gate and up, of those in what was made. */
void gated_silu_back(size count, const number *restrict gate, const number *restrict up, const number *restrict slope,
                     number *restrict by_gate, number *restrict by_up) {
#pragma omp parallel for simd schedule(static) if (count > PARALLEL_OVER)
    for (size i = 0; i < count; i++) {
        float g = wide(gate[i]), s = wide(slope[i]);
        float open = sigmoid(g);
        by_up[i] = narrow(s * g * open);
        by_gate[i] = narrow(s * wide(up[i]) * open * (1.0f + g * (1.0f - open)));
    }
}

/* n = x / rms(x); made = n (1 + weight) where `whole`, else n rounded, times the weight. inverse: (rows) */
void rms_norm(size rows, size width, float eps, int whole, const number *restrict x, const number *restrict weight,
              number *restrict made, float *restrict inverse) {
#pragma omp parallel for schedule(static) if (rows * width > PARALLEL_OVER)
    for (size row = 0; row < rows; row++) {
        const number *restrict from = x + row * width;
        number *restrict into = made + row * width;
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (size i = 0; i < width; i++)
            sum += wide(from[i]) * wide(from[i]);
        float scale = 1.0f / sqrtf(sum / width + eps);
        inverse[row] = scale;
        if (whole) {
#pragma omp simd
            for (size i = 0; i < width; i++)
                into[i] = narrow(wide(from[i]) * scale * (1.0f + wide(weight[i])));
        } else {
#pragma omp simd
            for (size i = 0; i < width; i++)
                into[i] = narrow(wide(narrow(wide(from[i]) * scale)) * wide(weight[i]));
        }
    }
}

/* d x = (s - n mean(s n)) / rms(x), where s is the slope in n. */
void rms_norm_back(size rows, size width, int whole, const number *restrict x, const number *restrict weight,
                   const float *restrict inverse, const number *restrict slope, number *restrict by_x) {
    float plus = whole ? 1.0f : 0.0f;
#pragma omp parallel for schedule(static) if (rows * width > PARALLEL_OVER)
    for (size row = 0; row < rows; row++) {
        const number *restrict from = x + row * width, *restrict of = slope + row * width;
        number *restrict into = by_x + row * width;
        float scale = inverse[row], sum = 0;
#pragma omp simd reduction(+ : sum)
        for (size i = 0; i < width; i++)
            sum += wide(from[i]) * wide(of[i]) * (plus + wide(weight[i]));
        float mean = sum * scale * scale / width;
#pragma omp simd
        for (size i = 0; i < width; i++)
            into[i] = narrow(scale * (wide(of[i]) * (plus + wide(weight[i])) - wide(from[i]) * mean));
    }
}

/* What the rows add to the slope in the weight, n times the slope: a thread's rows into its own. by_weight: (threads,
   width), which is added to. */
void rms_norm_weight(size rows, size width, size threads, const number *restrict x, const float *restrict inverse,
                     const number *restrict slope, float *restrict by_weight) {
#pragma omp parallel for schedule(static) if (rows * width > PARALLEL_OVER)
    for (size thread = 0; thread < threads; thread++) {
        float *restrict into = by_weight + thread * width;
        for (size row = rows * thread / threads; row < rows * (thread + 1) / threads; row++) {
            const number *restrict from = x + row * width, *restrict of = slope + row * width;
            float scale = inverse[row];
#pragma omp simd
            for (size i = 0; i < width; i++)
                into[i] += wide(from[i]) * scale * wide(of[i]);
        }
    }
}

/* Losses log sum exp(z) - z[target] of rows of z = scale product, (rows, words); and where `slopes`, in the product's
   place their slopes in product, each times its row's factor (null: 1). */
void cross_entropy(size rows, size words, float scale, const int64_t *restrict target, const float *restrict factors,
                   int slopes, number *restrict product, float *restrict losses) {
#pragma omp parallel for schedule(static)
    for (size row = 0; row < rows; row++) {
        number *restrict z = product + row * words;
        float largest = -INFINITY, sum = 0, chosen = scale * wide(z[target[row]]);
#pragma omp simd reduction(max : largest)
        for (size i = 0; i < words; i++) {
            float x = scale * wide(z[i]);
            largest = x > largest ? x : largest;
        }
#pragma omp simd reduction(+ : sum)
        for (size i = 0; i < words; i++)
            sum += exponential(scale * wide(z[i]) - largest);
        float logarithm = largest + logf(sum);
        losses[row] = logarithm - chosen;
        if (!slopes)
            continue;
        float factor = scale * (factors ? factors[row] : 1.0f);
        float of_target = factor * (exponential(chosen - logarithm) - 1.0f);
#pragma omp simd
        for (size i = 0; i < words; i++)
            z[i] = narrow(factor * exponential(scale * wide(z[i]) - logarithm));
        z[target[row]] = narrow(of_target);
    }
}

/* Pairs of numbers half a head apart, turned (Su et al. 2021, arXiv 2104.09864, section 3.4.2): x, made: (rows, heads,
   width); cosine, sine: (angles, width), again from the first after the last. `back`: x is the slope in what was made. */
void rotate(size rows, size angles, size heads, size width, int back, const number *restrict x,
            const float *restrict cosine, const float *restrict sine, number *restrict made) {
    size half = width / 2, first = back ? half : 0, second = back ? 0 : half;
    float turn = back ? -1.0f : 1.0f;
#pragma omp parallel for schedule(static) if (rows * heads * width > PARALLEL_OVER)
    for (size row = 0; row < rows; row++) {
        const float *restrict c = cosine + row % angles * width, *restrict s = sine + row % angles * width;
        for (size head = 0; head < heads; head++) {
            const number *restrict from = x + (row * heads + head) * width;
            number *restrict into = made + (row * heads + head) * width;
#pragma omp simd
            for (size i = 0; i < half; i++) {
                float a = wide(from[i]), b = wide(from[i + half]);
                into[i] = narrow(a * c[i] - turn * b * s[i + first]);
                into[i + half] = narrow(b * c[i + half] + turn * a * s[i + second]);
            }
        }
    }
}
