/* Look-ups of a function of one bfloat16 number and of its slope in tables of 65,536 results. Entries are 32-bit words,
   so that compilers use gather instructions; a word of `results` has the value in its lower and the slope in its upper
   half. */
#include <stdint.h>
#include <string.h>

#define BLOCK 8192 /* elements per block of a thread */
#define ENTRIES 65536

typedef uint16_t bfloat16; /* the upper half of a float */

static inline float load(bfloat16 half) {
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static inline bfloat16 store(float value) { /* rounded to nearest even */
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return (bfloat16)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

void forward(const bfloat16 *restrict input, const uint32_t *restrict results, bfloat16 *restrict output, int64_t count) {
    #pragma omp parallel for schedule(static) if (count > BLOCK)
    for (int64_t begin = 0; begin < count; begin += BLOCK) {
        const int64_t end = smaller(begin + BLOCK, count);
        for (int64_t i = begin; i < end; ++i) output[i] = (bfloat16)results[input[i]];
    }
}

void forward_and_slope(const bfloat16 *restrict input, const uint32_t *restrict results, bfloat16 *restrict output,
                       bfloat16 *restrict slope, int64_t count) {
    #pragma omp parallel for schedule(static) if (count > BLOCK)
    for (int64_t begin = 0; begin < count; begin += BLOCK) {
        const int64_t end = smaller(begin + BLOCK, count);
        for (int64_t i = begin; i < end; ++i) {
            const uint32_t result = results[input[i]];
            output[i] = (bfloat16)result;
            slope[i] = (bfloat16)(result >> 16);
        }
    }
}

void backward(const bfloat16 *restrict gradient, const bfloat16 *restrict input, const float *restrict slopes,
              bfloat16 *restrict output, int64_t count) {
    #pragma omp parallel for schedule(static) if (count > BLOCK)
    for (int64_t begin = 0; begin < count; begin += BLOCK) {
        const int64_t end = smaller(begin + BLOCK, count);
        for (int64_t i = begin; i < end; ++i) output[i] = store(load(gradient[i]) * slopes[input[i]]);
    }
}

/* sums[block * parameters + k] becomes the sum of gradient * slope by parameter k over a block. */
void parameter_sums(const bfloat16 *restrict gradient, const bfloat16 *restrict input, const float *restrict slopes,
                    float *restrict sums, int64_t parameters, int64_t count) {
    #pragma omp parallel for schedule(static) if (count > BLOCK)
    for (int64_t begin = 0; begin < count; begin += BLOCK) {
        const int64_t end = smaller(begin + BLOCK, count);
        for (int64_t k = 0; k < parameters; ++k) {
            const float *table = slopes + k * ENTRIES;
            float sum = 0.0f;
            #pragma omp simd reduction(+ : sum)
            for (int64_t i = begin; i < end; ++i) sum += load(gradient[i]) * table[input[i]];
            sums[begin / BLOCK * parameters + k] = sum;
        }
    }
}
