// Gradients of the operations between matrix products, and the norms and the loss of training, in loops that the
// compiler vectorizes. Included by each form inside an unnamed namespace, after rowwise.inl.

template <class In, class Out>
void norm(const In* x, const float* weight, const float* bias, Out* y, long size, float eps, bool round_before_weight) {
    const float mean = bias ? sum_of(size, [&](long i) { return widen(x[i]); }) / static_cast<float>(size) : 0.0f;
    const float squares = sum_of(size, [&](long i) { return (widen(x[i]) - mean) * (widen(x[i]) - mean); });
    const float scale = inverse_root(squares, size, eps);
    if (bias) {
        for (long i = 0; i < size; ++i) store((widen(x[i]) - mean) * scale * weight[i] + bias[i], y + i);
    } else if (round_before_weight) {
        for (long i = 0; i < size; ++i) store(rounded(widen(x[i]) * scale, x) * weight[i], y + i);
    } else {
        for (long i = 0; i < size; ++i) store(widen(x[i]) * scale * weight[i], y + i);
    }
}

// With n the normalised x and s its scale, dx is s * (g - mean(g) - n * mean(g * n)) of g = gradient * weight; an RMS
// norm, without d_bias, has no mean(g).
template <class In, class Out>
void norm_gradient(const In* x, const float* weight, const Out* gradient, In* y, float* d_weight, float* d_bias,
                   long size, float eps) {
    const auto whole = static_cast<float>(size);
    const float mean = d_bias ? sum_of(size, [&](long i) { return widen(x[i]); }) / whole : 0.0f;
    const float squares = sum_of(size, [&](long i) { return (widen(x[i]) - mean) * (widen(x[i]) - mean); });
    const float scale = inverse_root(squares, size, eps);
    const auto slope = [&](long i) { return widen(gradient[i]) * weight[i]; };
    const auto normal = [&](long i) { return (widen(x[i]) - mean) * scale; };
    const float along = sum_of(size, [&](long i) { return slope(i) * normal(i); }) / whole;
    const float level = d_bias ? sum_of(size, slope) / whole : 0.0f;
    for (long i = 0; i < size; ++i) d_weight[i] += widen(gradient[i]) * normal(i);
    if (d_bias)
        for (long i = 0; i < size; ++i) d_bias[i] += widen(gradient[i]);
    for (long i = 0; i < size; ++i) store(scale * (slope(i) - level - normal(i) * along), y + i);
}

// With s the logistic function of 2u, as in gelu, the derivative of x * s is s + x * s * (1 - s) * 2u'.
template <class Element>
void gelu_gradient(const Element* x, const Element* gradient, Element* y, long count) {
    with_exponentials(
        count,
        [&](long i) {
            const float value = widen(x[i]);
            return -1.59576912f * (value + 0.044715f * value * value * value);
        },
        [&](long i, float exponential) {
            const float value = widen(x[i]), s = 1 / (1 + exponential);
            const float slope = 1.59576912f + 0.214070773f * value * value;
            store(widen(gradient[i]) * (s + value * s * (1 - s) * slope), y + i);
        });
}

// Of gate * s(alpha * gate) * up, or of gpt-oss's if `clamped`; what is cut off gets no gradient.
template <class Element>
void gated_gradient(const Element* gate, const Element* up, const Element* gradient, Element* d_gate, Element* d_up,
                    long count, bool clamped, float limit, float alpha) {
    const float above = clamped ? limit : std::numeric_limits<float>::infinity();
    const float steep = clamped ? alpha : 1.0f, offset = clamped ? 1.0f : 0.0f;
    const auto held = [&](long i) { return widen(gate[i]) > above ? above : widen(gate[i]); };
    with_exponentials(
        count, [&](long i) { return -steep * held(i); },
        [&](long i, float exponential) {
            const float value = held(i), s = 1 / (1 + exponential), slope = widen(gradient[i]);
            float linear = widen(up[i]);
            const bool in_bounds = !(linear > above) && !(linear < -above);
            linear = linear > above ? above : linear;
            linear = linear < -above ? -above : linear;
            const float turned = slope * (linear + offset) * (s + steep * value * s * (1 - s));
            store(widen(gate[i]) > above ? 0.0f : turned, d_gate + i);
            store(in_bounds ? slope * value * s : 0.0f, d_up + i);
        });
}

// losses: the cross-entropy of the target, and the squared log-sum-exp. With `slopes` the logits become `scale` times
// the gradient of the first plus z_loss times the second. `scratch` has `count` floats.
template <class Element>
void softmax_loss(Element* logits, long count, long target, float scale, float z_loss, bool slopes, float* scratch,
                  float* losses) {
    constexpr int kLanes = 32;
    float lanes[kLanes];
    for (float& lane : lanes) lane = -std::numeric_limits<float>::infinity();
    long i = 0;
    for (; i + kLanes <= count; i += kLanes)
        for (int j = 0; j < kLanes; ++j) lanes[j] = widen(logits[i + j]) > lanes[j] ? widen(logits[i + j]) : lanes[j];
    for (; i < count; ++i) lanes[0] = widen(logits[i]) > lanes[0] ? widen(logits[i]) : lanes[0];
    float largest = lanes[0];
    for (float lane : lanes) largest = lane > largest ? lane : largest;
    with_exponentials(
        count, [&](long k) { return widen(logits[k]) - largest; },
        [&](long k, float exponential) { scratch[k] = exponential; });
    const float sum = sum_of(count, [&](long k) { return scratch[k]; });
    const float log_sum = largest + std::log(sum);
    losses[0] = log_sum - widen(logits[target]);
    losses[1] = log_sum * log_sum;
    if (!slopes) return;
    const float factor = scale * (1 + 2 * z_loss * log_sum) / sum, chosen = scratch[target] * factor - scale;
    for (long k = 0; k < count; ++k) store(scratch[k] * factor, logits + k);
    store(chosen, logits + target);
}

template <class Element>
constexpr Gradients<Element> kGradients{gelu_gradient<Element>, gated_gradient<Element>, softmax_loss<Element>};
template <class In, class Out>
constexpr Normal<In, Out> kNormal{norm<In, Out>, norm_gradient<In, Out>};

constexpr Training kTraining{kGradients<bf16>, kGradients<float>, kNormal<bf16, bf16>, kNormal<float, bf16>,
                             kNormal<float, float>};
