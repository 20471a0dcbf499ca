/* Scalar functions that a C compiler can vectorise: no branches, no calls.
   NaN stays NaN, intermediate overflows cause no NaN, and results beyond the range of float are infinite. */
#if defined(__AVX512F__) && !defined(__clang__)
#pragma GCC target("prefer-vector-width=512") /* faster here; the default of GCC is 256 */
#endif
#include <math.h>
#include <stdint.h>
#include <string.h>

#define BLOCK 8192 /* elements per block of a thread */
#define LARGEST 3.4028234663852886e38f

static inline float from_bits(uint32_t bits) { float value; memcpy(&value, &bits, 4); return value; }
static inline float at_least(float value, float limit) { return value < limit ? limit : value; }
static inline float at_most(float value, float limit) { return value > limit ? limit : value; }
static inline float saturated(float value) { return at_most(at_least(value, -LARGEST), LARGEST); }
static inline float sign_of(float x) { return (x > 0.0f ? 1.0f : 0.0f) - (x < 0.0f ? 1.0f : 0.0f); }

/* x = n ln 2 + r with |r| <= ln(2) / 2; 2^n; and exp(r) - 1. */
static inline float whole_of(float x) { return rintf(x * 1.44269504f); }
static inline float rest_of(float x, float n) { return fmaf(n, 2.12194440e-4f, fmaf(n, -0.693359375f, x)); }
static inline float power_of_two(float n) { return from_bits((uint32_t)((int32_t)n + 127) << 23); }
static inline float expm1_small(float r) {
    float p = fmaf(1.9875691500e-4f, r, 1.3981999507e-3f);
    p = fmaf(p, r, 8.3334519073e-3f);
    p = fmaf(p, r, 4.1665795894e-2f);
    p = fmaf(p, r, 1.6666665459e-1f);
    p = fmaf(p, r, 5.0000001201e-1f);
    return fmaf(p, r * r, r);
}

static inline float exp_down(float x) { /* for x <= 0; 0 below -87, where float32 has no normal numbers left */
    float cut = at_least(x, -87.0f), n = whole_of(cut);
    float value = (expm1_small(rest_of(cut, n)) + 1.0f) * power_of_two(n);
    return x < -87.0f ? 0.0f : value;
}

static inline float exp_of(float x) { /* exp(88) above 88 */
    float cut = at_most(x, 88.0f), n = whole_of(at_least(cut, -87.0f));
    float value = (expm1_small(rest_of(at_least(cut, -87.0f), n)) + 1.0f) * power_of_two(n);
    return x < -87.0f ? 0.0f : value;
}

static inline float expm1_of(float x) { /* 2^n (exp(r) - 1) + (2^n - 1): keeps its digits near 0 */
    float cut = at_most(at_least(x, -87.0f), 88.0f), n = whole_of(cut), scale = power_of_two(n);
    return fmaf(scale, expm1_small(rest_of(cut, n)), scale - 1.0f);
}

static inline float sigmoid_of(float x) { /* by exp(-|x|), so that it is exactly 0 far below 0 */
    float e = exp_down(-fabsf(x));
    return (x < 0.0f ? e : 1.0f) / (1.0f + e);
}

static inline float softplus_of(float x) { /* max(x, 0) + log(1 + e), log(1 + e) = 2 artanh(e / (2 + e)) */
    float e = exp_down(-fabsf(x));
    float s = e / (2.0f + e), q = s * s;
    float p = fmaf(1.0f / 15, q, 1.0f / 13);
    p = fmaf(p, q, 1.0f / 11);
    p = fmaf(p, q, 1.0f / 9);
    p = fmaf(p, q, 1.0f / 7);
    p = fmaf(p, q, 1.0f / 5);
    p = fmaf(p, q, 1.0f / 3);
    p = fmaf(p, q, 1.0f);
    return at_least(x, 0.0f) + 2.0f * s * p;
}

static inline float hypot_of(float a, float b) { /* scaled by the larger one, whose square could overflow */
    float x = fabsf(a), y = fabsf(b);
    float large = x > y ? x : y, small = x > y ? y : x;
    float ratio = small / (large > 0.0f ? large : 1.0f);
    return large * sqrtf(fmaf(ratio, ratio, 1.0f));
}
