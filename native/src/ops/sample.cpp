// Sampling by selection: no row is sorted or copied. A histogram of the weights over powers of two finds the bin in
// which top-k or top-p cuts the ranking; only the members of this bin are ranked. Weights are whole numbers, so sums do
// not depend on their order, and every number of threads finds the same ids.
#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/check.hpp"
#include "core/machine.hpp"

namespace ossia {
namespace {

constexpr long kMostIds = 1L << 22;  // whose weights, 2^kWeightBits each at most, a 64-bit sum holds
constexpr long kPiece = 8192;        // logits of a row that one thread takes at a time
constexpr float kInfinity = std::numeric_limits<float>::infinity();
// Scales by which no product of a logit with a power of two is rounded otherwise than the logit itself.
constexpr float kLeastScale = 0x1p-110f, kMostScale = 0x1p110f;

// The values of a table, of which bins and ranks are computed.
void check_values(const SamplingTable& table) {
    for (long row = 0; row < table.rows; ++row) {
        const float scale = table.scale.as<const float>()[row], floor = table.log2_min_p.as<const float>()[row];
        const double top_p = table.top_p.as<const double>()[row], uniform = table.uniforms.as<const double>()[row];
        require(scale == 0 || (scale >= kLeastScale && scale <= kMostScale),
                "scale: expected 0, or between 2^-110 and 2^110");
        require(table.top_k.as<const std::int64_t>()[row] > 0, "top_k: expected at least 1");
        require(top_p > 0 && top_p <= 1, "top_p: expected more than 0 and at most 1");
        require(floor <= 0, "log2_min_p: expected at most 0");
        require(uniform >= 0 && uniform <= 1, "uniforms: expected between 0 and 1");
    }
}

// The logits that edits change. The destructor puts the old ones back.
class Edited {
  public:
    Edited(const Array& logits, const Edits& edits) : logits_(logits), edits_(edits) {
        const long rows = logits.shape[0], vocab = logits.shape[1];
        for (long e = 0; e < edits.edited; ++e) {
            const std::int64_t row = edits.rows.as<const std::int64_t>()[e];
            if (row < 0 || row >= rows) throw std::out_of_range("edits: there is no row " + std::to_string(row));
            if (length(e) < 0 || length(e) > edits.slots)
                throw std::out_of_range("edits: a row has " + std::to_string(edits.slots) + " slots, not " +
                                        std::to_string(length(e)));
            for (long slot = 0; slot < length(e); ++slot)
                if (const std::int64_t id = of(edits.ids, e, slot); id < 0 || id >= vocab)
                    throw std::out_of_range("edits: id " + std::to_string(id) + " is outside the vocabulary");
        }
        for (long e = 0; e < edits.edited; ++e) {
            for (long slot = 0; slot < length(e); ++slot) before_.push_back(logit(e, slot));
        }
        for (long e = 0; e < edits.edited; ++e) {
            for (long slot = 0; slot < length(e); ++slot) edit(logit(e, slot), e, slot);
        }
    }
    ~Edited() {
        auto before = before_.begin();
        for (long e = 0; e < edits_.edited; ++e)
            for (long slot = 0; slot < length(e); ++slot) logit(e, slot) = *before++;
    }
    Edited(const Edited&) = delete;
    Edited& operator=(const Edited&) = delete;

  private:
    std::int64_t length(long e) const { return edits_.lengths.as<const std::int64_t>()[e]; }
    std::int64_t of(const Array& slots, long e, long slot) const {
        return slots.as<const std::int64_t>()[e * edits_.slots + slot];
    }
    float& logit(long e, long slot) const {
        return logits_
            .as<float>()[edits_.rows.as<const std::int64_t>()[e] * logits_.shape[1] + of(edits_.ids, e, slot)];
    }
    void edit(float& logit, long e, long slot) const {
        const std::int64_t count = of(edits_.counts, e, slot);
        const float repetition = edits_.repetition.as<const float>()[e];
        logit += edits_.biases.as<const float>()[e * edits_.slots + slot];
        if (count >= 0) logit = logit > 0 ? logit / repetition : logit * repetition;
        logit -= edits_.frequency.as<const float>()[e] * static_cast<float>(count > 0 ? count : 0);
        if (count > 0) logit -= edits_.presence.as<const float>()[e];
    }

    const Array& logits_;
    const Edits& edits_;
    std::vector<float> before_;
};

// A logit in the ranking: by value, equals by id.
struct Member {
    float logit;
    std::int32_t id;
    std::int64_t weight;

    bool operator<(const Member& other) const { return logit > other.logit || (logit == other.logit && id < other.id); }
};
using Members = std::vector<Member>;

// The last member of the shortest prefix of the ranking whose weights reach `needed`. What ranks after it may be in any
// order.
Members::iterator reach(Members& members, std::int64_t needed) {
    auto begin = members.begin(), end = members.end();
    while (end - begin > 1) {
        const auto middle = begin + (end - begin) / 2;
        std::nth_element(begin, middle, end);
        std::int64_t weight = 0;
        for (auto member = begin; member != middle; ++member) weight += member->weight;
        if (weight >= needed) {
            end = middle;
        } else {
            needed -= weight;
            begin = middle;
        }
    }
    return begin;
}

// The row's logits in pieces, with -infinity for ids whose bit is 0.
class Pieced {
  public:
    Pieced(const Array& logits, const Array& bits, long row)
        : logits_(logits.as<const float>() + row * logits.shape[1]),
          bits_(bits ? bits.as<const std::int32_t>() + row * bits.shape[1] : nullptr),
          vocab_(logits.shape[1]) {}

    static long count(long vocab) { return (vocab + kPiece - 1) / kPiece; }
    long size(long piece) const { return std::min(kPiece, vocab_ - piece * kPiece); }

    const float* logits(long piece, float (&masked)[kPiece]) const {
        const float* const logits = logits_ + piece * kPiece;
        if (!bits_) return logits;
        const std::int32_t* const words = bits_ + piece * (kPiece / 32);
        const long size = this->size(piece);
        for (long i = 0; i < size; ++i) masked[i] = words[i / 32] >> (i % 32) & 1 ? logits[i] : -kInfinity;
        return masked;
    }

  private:
    const float* logits_;
    const std::int32_t* bits_;
    long vocab_;
};

// What the passes find in each piece of a row, and the id that follows from it.
class Row {
  public:
    Row(const Array& logits, const SamplingTable& table, const Weighing& kernels, long row)
        : kernels_(kernels),
          pieced_(logits, table.bits, row),
          pieces_(Pieced::count(logits.shape[1])),
          vocab_(logits.shape[1]),
          scale_(table.scale.as<const float>()[row]),
          top_k_(table.top_k.as<const std::int64_t>()[row]),
          top_p_(table.top_p.as<const double>()[row]),
          floor_(table.log2_min_p.as<const float>()[row]),
          uniform_(table.uniforms.as<const double>()[row]),
          peaks_(pieces_) {
        if (greedy()) return;
        totals_.resize(pieces_);
        if (narrowed()) bins_.resize(pieces_ * (kBins + 1));
        if (top_k_ < vocab_) counts_.resize(pieces_ * (kBins + 1));
    }

    void find_peak(long piece) {
        float masked[kPiece];
        peaks_[piece] = kernels_.largest(pieced_.logits(piece, masked), pieced_.size(piece));
    }
    // Once all pieces have a peak.
    void find_largest() {
        largest_ = -kInfinity;
        for (float peak : peaks_) largest_ = std::isnan(peak) || peak > largest_ ? peak : largest_;
        for (float peak : peaks_) sound_ = sound_ && !std::isnan(peak);
        sound_ = sound_ && largest_ > -kInfinity;
    }
    void weigh(long piece) {
        if (!sound_ || greedy()) return;
        float masked[kPiece];
        const float* const logits = pieced_.logits(piece, masked);
        if (narrowed()) {
            kernels_.histogram(logits, pieced_.size(piece), largest_, scale_, bins_.data() + piece * (kBins + 1),
                               counts_.empty() ? nullptr : counts_.data() + piece * (kBins + 1));
        } else {
            totals_[piece] = kernels_.total(logits, pieced_.size(piece), largest_, scale_);
        }
    }
    std::int64_t choose() {
        if (!sound_) return -1;
        if (greedy()) return first_largest();
        if (narrowed()) narrow();
        std::int64_t total = 0;
        for (std::int64_t weight : totals_) total += weight;
        std::int64_t goal = static_cast<std::int64_t>(uniform_ * static_cast<double>(total));
        goal = std::min(goal, total - 1);
        long piece = 0;
        for (; goal >= totals_[piece]; ++piece) goal -= totals_[piece];
        return pick(piece, goal);
    }

  private:
    bool greedy() const { return scale_ == 0; }
    bool narrowed() const { return top_k_ < vocab_ || top_p_ < 1 || floor_ > -kInfinity; }
    float power(float logit) const { return (logit - largest_) * scale_; }
    static int bin_of(float power) {
        const float bin = power * -static_cast<float>(kBinsPerPower);
        return static_cast<int>(bin < kBins ? bin : kBins);
    }

    std::int64_t first_largest() const {
        const long piece = std::find(peaks_.begin(), peaks_.end(), largest_) - peaks_.begin();
        float masked[kPiece];
        const float* const logits = pieced_.logits(piece, masked);
        return piece * kPiece + (std::find(logits, logits + pieced_.size(piece), largest_) - logits);
    }

    // The members of a bin. Those of weight 0 may be missing unless top-k counts them.
    Members members(int bin) const {
        Members members;
        std::vector<std::int32_t> found(kPiece + 1);
        std::vector<float> logits_found(kPiece);
        std::vector<std::int64_t> weights(kPiece);
        for (long piece = 0; piece < pieces_; ++piece) {
            const long at = piece * (kBins + 1) + bin;
            if (counts_.empty() ? !bins_[at] : !counts_[at]) continue;
            float masked[kPiece];
            const float* const logits = pieced_.logits(piece, masked);
            const long size = kernels_.in_bin(logits, pieced_.size(piece), largest_, scale_, bin, found.data());
            for (long i = 0; i < size; ++i) logits_found[i] = logits[found[i]];
            kernels_.weigh(logits_found.data(), size, largest_, scale_, weights.data());
            for (long i = 0; i < size; ++i)
                members.push_back({logits_found[i], static_cast<std::int32_t>(piece * kPiece + found[i]), weights[i]});
        }
        return members;
    }

    // Where top-k and top-p cut the ranking, and what each piece keeps.
    void narrow() {
        std::vector<std::int64_t> bins(kBins + 1);
        for (long i = 0; i < static_cast<long>(bins_.size()); ++i) bins[i % (kBins + 1)] += bins_[i];
        std::int64_t total = 0;
        for (std::int64_t weight : bins) total += weight;

        int cut = kBins;  // the bin of the last that is kept; its members are in `edge`
        Members edge;
        if (top_k_ < vocab_) {
            std::int64_t left = top_k_, above = 0;
            int bin = 0;
            for (; bin < kBins; ++bin) {
                const std::int64_t count = count_of(bin);
                if (count >= left) break;
                left -= count;
                above += bins[bin];
            }
            if (bin < kBins) {
                cut = bin;
                edge = members(cut);
                std::nth_element(edge.begin(), edge.begin() + left - 1, edge.end());
                last_ = edge[left - 1];
                edge.resize(left);
                total = above;
                for (const Member& member : edge) total += member.weight;
            }
        }
        if (top_p_ < 1) {
            // At most the total: the largest top_p below 1 takes off more than the conversion may add.
            std::int64_t needed = static_cast<std::int64_t>(std::ceil(top_p_ * static_cast<double>(total)));
            int bin = 0;
            for (; bin < cut && bins[bin] < needed; ++bin) needed -= bins[bin];
            if (bin < cut) edge = members(bin);
            cut = bin;
            last_ = *reach(edge, needed);
        }
        const int floor = floor_ > -kInfinity ? bin_of(floor_) : kBins;
        if (floor < cut) {
            cut = floor;
            edge = members(cut);
        }
        for (long piece = 0; piece < pieces_; ++piece) {
            const std::int64_t* const bins = bins_.data() + piece * (kBins + 1);
            totals_[piece] = 0;
            for (int bin = 0; bin < cut; ++bin) totals_[piece] += bins[bin];
        }
        for (const Member& member : edge)
            if (kept(member.logit, member.id)) totals_[member.id / kPiece] += member.weight;
    }

    std::int64_t count_of(int bin) const {
        std::int64_t count = 0;
        for (long piece = 0; piece < pieces_; ++piece) count += counts_[piece * (kBins + 1) + bin];
        return count;
    }

    bool kept(float logit, std::int64_t id) const {
        return (logit > last_.logit || (logit == last_.logit && id <= last_.id)) && power(logit) >= floor_;
    }

    // The first id of the piece at which the weights that are kept exceed `goal`.
    std::int64_t pick(long piece, std::int64_t goal) const {
        constexpr long kStep = 512;
        std::int64_t weights[kStep];
        float masked[kPiece];
        const float* const logits = pieced_.logits(piece, masked);
        const long size = pieced_.size(piece);
        for (long begin = 0; begin < size; begin += kStep) {
            const long step = std::min(kStep, size - begin);
            kernels_.weigh(logits + begin, step, largest_, scale_, weights);
            for (long i = 0; i < step; ++i) {
                const std::int64_t id = piece * kPiece + begin + i;
                goal -= kept(logits[begin + i], id) ? weights[i] : 0;
                if (goal < 0) return id;
            }
        }
        return -1;  // not reached: the total of the piece is the sum of the same weights
    }

    const Weighing& kernels_;
    Pieced pieced_;
    long pieces_, vocab_;
    float scale_;
    std::int64_t top_k_;
    double top_p_;
    float floor_;
    double uniform_;
    float largest_ = 0;
    bool sound_ = true;
    Member last_{-kInfinity, std::numeric_limits<std::int32_t>::max(), 0};  // that is kept
    std::vector<float> peaks_;                                              // of each piece
    std::vector<std::int64_t> totals_;                                      // of each piece: the weights that are kept
    std::vector<std::int64_t> bins_;                                        // (pieces, kBins + 1)
    std::vector<std::int32_t> counts_;
};

}  // namespace

Edits::Edits(const Array& rows, const Array& lengths, const Array& ids, const Array& biases, const Array& counts,
             const Array& repetition, const Array& frequency, const Array& presence)
    : rows(rows),
      lengths(lengths),
      ids(ids),
      biases(biases),
      counts(counts),
      repetition(repetition),
      frequency(frequency),
      presence(presence) {
    if (!rows) return;
    expect("rows", rows, Type::int64, {kAny});
    edited = rows.shape[0];
    expect("lengths", lengths, Type::int64, {edited, 1});
    expect("ids", ids, Type::int64, {edited, kAny});
    slots = ids.shape[1];
    expect("biases", biases, Type::f32, {edited, slots});
    expect("counts", counts, Type::int64, {edited, slots});
    for (const Array* penalty : {&repetition, &frequency, &presence})
        expect("penalties", *penalty, Type::f32, {edited, 1});
}

SamplingTable::SamplingTable(const Array& scale, const Array& top_k, const Array& top_p, const Array& log2_min_p,
                             const Array& uniforms, const Array& bits, const Edits& edits)
    : scale(scale), top_k(top_k), top_p(top_p), log2_min_p(log2_min_p), uniforms(uniforms), bits(bits), edits(edits) {
    expect("scale", scale, Type::f32, {kAny, 1});
    rows = scale.shape[0];
    expect("top_k", top_k, Type::int64, {rows, 1});
    expect("top_p", top_p, Type::f64, {rows, 1});
    expect("log2_min_p", log2_min_p, Type::f32, {rows, 1});
    expect("uniforms", uniforms, Type::f64, {rows, 1});
    if (bits) expect("bits", bits, Type::int32, {rows, kAny});
}

void Machine::sample(const Array& logits, const SamplingTable& table, const Array& ids) {
    expect("logits", logits, Type::f32, {table.rows, kAny});
    expect("ids", ids, Type::int64, {table.rows});
    const long vocab = logits.shape[1], pieces = Pieced::count(vocab), elements = table.rows * vocab;
    require(vocab > 0 && vocab <= kMostIds, "logits: expected between 1 and 2^22 of a row");
    require(!table.bits || table.bits.shape[1] == (vocab + 31) / 32,
            "bits: expected one for each logit, in words of 32");
    check_values(table);
    for (const Array* read : {&table.edits.rows, &table.edits.lengths, &table.edits.ids, &table.top_k, &table.scale,
                              &table.top_p, &table.log2_min_p, &table.uniforms, &table.bits})
        expect_apart("logits", logits, *read);
    for (const Array* read : {&logits, &table.bits}) expect_apart("ids", ids, *read);
    const Edited edited(logits, table.edits);
    std::vector<Row> rows;
    rows.reserve(table.rows);
    for (long row = 0; row < table.rows; ++row) rows.emplace_back(logits, table, kernels_.weighing, row);
    const auto spread = [&](long count, const auto& task) {
        Pieces left(count, 1, 1, threads_for(elements));
        run_if_large(elements, [&](int thread, int) {
            left.take(thread, [&](long begin, long end) {
                for (long i = begin; i < end; ++i) task(i);
            });
        });
    };
    spread(table.rows * pieces, [&](long i) { rows[i / pieces].find_peak(i % pieces); });
    for (Row& row : rows) row.find_largest();
    spread(table.rows * pieces, [&](long i) { rows[i / pieces].weigh(i % pieces); });
    spread(table.rows, [&](long row) { ids.as<std::int64_t>()[row] = rows[row].choose(); });
}

}  // namespace ossia
