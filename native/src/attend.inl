// Attention of one query token, the same for every instruction set, over its `Vec`: a vector of kWidth floats. Included by each
// form inside an unnamed namespace, after its Vec.

template <class Element>
void attend(const Cache<Element>& cache, const float* q, const float* sinks, long group, long kv_head, long first, long last,
            float* scratch, float* out) {
    const long dim = cache.head_dim, whole = dim / Vec::kWidth * Vec::kWidth, stride = cache.kv_heads * dim;
    float* scores = scratch;                        // (group, page_size)
    float* maxima = scratch + group * cache.page_size;  // of the scores so far
    float* totals = maxima + group;                 // of exp(score - maximum)
    for (long g = 0; g < group; ++g) {
        // A sink is a score without a value.
        maxima[g] = sinks ? sinks[g] : -std::numeric_limits<float>::infinity();
        totals[g] = sinks ? 1.0f : 0.0f;
    }
    std::memset(out, 0, group * dim * sizeof(float));
    for (long page = first / cache.page_size; page * cache.page_size < last; ++page) {
        const long base = page * cache.page_size;
        const long from = first > base ? first - base : 0;
        const long until = last - base < cache.page_size ? last - base : cache.page_size;
        const long offset = (static_cast<long>(cache.pages[page]) * cache.page_size * cache.kv_heads + kv_head) * dim;
        const Element* keys = cache.keys + offset;
        const Element* values = cache.values + offset;
        for (long g = 0; g < group; ++g) {
            const float* query = q + g * dim;
            float* score = scores + g * cache.page_size;
            float maximum = maxima[g];
            for (long j = from; j < until; ++j) {
                const Element* key = keys + j * stride;
                Vec sums = Vec::zero();
                for (long d = 0; d < whole; d += Vec::kWidth) sums = Vec::fma(Vec::load(query + d), Vec::load(key + d), sums);
                float sum = sums.sum();
                for (long d = whole; d < dim; ++d) sum += query[d] * widen(key[d]);
                score[j] = sum;
                if (sum > maximum) maximum = sum;
            }
            float* of_head = out + g * dim;
            const float fade = std::exp(maxima[g] - maximum);
            maxima[g] = maximum;
            if (fade != 1.0f) {
                totals[g] *= fade;
                for (long d = 0; d < dim; ++d) of_head[d] *= fade;
            }
            for (long j = from; j < until; ++j) {
                const float weight = std::exp(score[j] - maximum);
                totals[g] += weight;
                const Element* value = values + j * stride;
                const Vec weights = Vec::fill(weight);
                for (long d = 0; d < whole; d += Vec::kWidth)
                    Vec::fma(weights, Vec::load(value + d), Vec::load(of_head + d)).store(of_head + d);
                for (long d = whole; d < dim; ++d) of_head[d] += weight * widen(value[d]);
            }
        }
    }
    for (long g = 0; g < group; ++g)
        for (long d = 0; d < dim; ++d) out[g * dim + d] /= totals[g];
}
