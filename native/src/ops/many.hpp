// Shared by operations over many tokens: vectors in the layout of gemm.hpp's products, and work divided into panels of
// rows.
#pragma once

#include <algorithm>
#include <memory>
#include <new>
#include <type_traits>

#include "core/machine.hpp"
#include "core/numbers.hpp"
#include "gemm/gemm.hpp"

namespace ossia {

// The stage in which activations are laid out for products.
constexpr const char* kLayout = "layout of activations";

struct Scratch {
    alignas(64) char panel[std::max(kPanelBytes, kTileMemoryBytes)];
    float tile[kManyTokens * kPanelRows];
    const void* tokens[kManyTokens];
    float bias[kPanelRows];
};

// Calls task(item, scratch) for each item. A thread's items follow one another, so that what they share (the tokens of
// an expert) is read by few threads; who is done takes what others have left.
template <class Task>
void each(Pool& pool, long items, const Task& task) {
    Pieces shares(items, 1, 1, pool.size());
    pool.run([&](int thread, int) {
        std::unique_ptr<Scratch> scratch;
        shares.take(thread, [&](long item, long) {
            if (!scratch) scratch.reset(new Scratch);
            task(item, *scratch);
        });
    });
}

constexpr long pieces(long count, long size) { return (count + size - 1) / size; }

// The layouts that products read: tiles of bfloat16, words, words of float32 and of its rounding error, plain floats,
// or bytes for weights in int8 or in MXFP4, each with and without tiles.
enum class Format { tiles, words, two_words, floats, bytes, even_first_bytes, byte_tiles, even_first_byte_tiles };

inline bool has_bytes(Format format) { return format >= Format::bytes; }
inline bool has_tiles(Format format) { return format == Format::tiles || format >= Format::byte_tiles; }

// That of activations rounded to int8.
inline Format format_of_bytes(const Gemm& gemm, Order order) {
    const bool tiles = gemm.tiles && gemm.tiles->bytes;
    if (order == Order::plain) return tiles ? Format::byte_tiles : Format::bytes;
    return tiles ? Format::even_first_byte_tiles : Format::even_first_bytes;
}

class Vectors {
  public:
    Vectors(const Gemm& gemm, Format format, long count, long cols)
        : gemm_(gemm),
          format_(format),
          count_(count),
          cols_(cols),
          size_(has_bytes(format) && has_tiles(format) ? byte_groups(cols) * kByteTileBytes / kTileTokens
                : has_bytes(format)                    ? bytes_size(cols)
                : format == Format::floats             ? cols * static_cast<long>(sizeof(float))
                : format == Format::tiles ? word_blocks(cols) * kWordBlock * static_cast<long>(sizeof(bf16))
                                          : words_size(cols)),
          own_(new (kLine) char[parts() * pieces(count, kTileTokens) * kTileTokens * size_]),
          data_(own_.get()) {}

    // Contiguous floats, used in place.
    Vectors(const Gemm& gemm, const float* x, long count, long cols)
        : gemm_(gemm),
          format_(Format::floats),
          count_(count),
          cols_(cols),
          size_(cols * static_cast<long>(sizeof(float))),
          data_(reinterpret_cast<const char*>(x)) {}

    int parts() const { return format_ == Format::two_words ? 2 : 1; }
    bool are_tiles() const { return has_tiles(format_); }
    bool are_floats() const { return format_ == Format::floats; }
    bool are_bytes() const { return has_bytes(format_); }
    const void* at(int part, long i) const {
        return data_ + (part * count_ + i) * size_;
    }  // of tiles, the first of one

    // Elements [column, column + count) of vector i; `column` is a multiple of kWordBlock, of bytes kByteGroup, and so
    // is `count` except at the end.
    template <class Element>
    void set(long i, long column, const Element* x, long count) {
        const long block = column / kWordBlock;
        switch (format_) {  // of every format, or the compiler warns
            case Format::tiles:
                for (long c = 0; c < count; c += kWordBlock)
                    put(x + c, std::min(kWordBlock, count - c), in_tiles(i, column + c));
                break;
            case Format::words:
                quantize(x, count, block, to_part(0, i), nullptr);
                break;
            case Format::two_words: {
                std::unique_ptr<float[]> rest(new float[count]);
                quantize(x, count, block, to_part(0, i), rest.get());
                quantize(rest.get(), count, block, to_part(1, i), nullptr);
                break;
            }
            case Format::floats: {
                float* to = reinterpret_cast<float*>(to_part(0, i)) + column;
                for (long c = 0; c < count; ++c) to[c] = widen(x[c]);
                break;
            }
            case Format::bytes:
            case Format::even_first_bytes:
                quantize_bytes(x, count, cols_, column / kByteGroup, to_part(0, i));
                break;
            case Format::byte_tiles:
            case Format::even_first_byte_tiles:
                for (long c = 0; c < count; c += kByteGroup) {
                    alignas(float) char record[kByteRecord];
                    quantize_bytes(x + c, std::min(kByteGroup, count - c), kByteGroup, 0, record);
                    char* to = in_byte_tiles(i, column + c);
                    for (long at = 0; at < kByteGroup + 4; at += 4)  // the scale follows the codes here and there
                        std::memcpy(to + at * kTileTokens, record + at, 4);
                }
                break;
        }
    }

    // Vectors [i, i + kTileTokens) of tiles, `i` the first of one; null for one that nothing is read of.
    template <class Element>
    void set_tile(long i, const Element* const* rows) {
        if (format_ == Format::tiles) {
            if constexpr (std::is_same_v<Element, bf16>) gemm_.tiles->put_rows(rows, cols_, in_tiles(i, 0));
            return;
        }
        alignas(float) char records[kTileTokens * kByteRecord] = {};
        for (long c = 0; c < cols_; c += kByteGroup) {
            const long count = std::min(kByteGroup, cols_ - c);
            for (long k = 0; k < kTileTokens; ++k)
                if (rows[k]) quantize_bytes(rows[k] + c, count, kByteGroup, 0, records + k * kByteRecord);
            gemm_.tiles->bytes->put(records, in_byte_tiles(i, c));
        }
    }

  private:
    char* to_part(int part, long i) { return own_.get() + (part * count_ + i) * size_; }
    char* in_tiles(long i, long column) {
        return own_.get() + place_in_tiles(i, column / kWordBlock, word_blocks(cols_));
    }
    char* in_byte_tiles(long i, long column) {
        return own_.get() + place_in_byte_tiles(i, column / kByteGroup, byte_groups(cols_));
    }
    void put(const float* x, long count, void* to) { gemm_.tiles->put_f32(x, count, to); }
    void put(const bf16* x, long count, void* to) {
        float wide[kWordBlock];  // which rounds to what it was
        for (long c = 0; c < count; ++c) wide[c] = widen(x[c]);
        put(wide, count, to);
    }
    void quantize(const bf16* x, long count, long block, void* to, float* rest) {
        gemm_.quantize_bf16(x, count, cols_, block, to, rest);
    }
    void quantize(const float* x, long count, long block, void* to, float* rest) {
        gemm_.quantize_f32(x, count, cols_, block, to, rest);
    }
    Order order() const {
        return format_ == Format::bytes || format_ == Format::byte_tiles ? Order::plain : Order::even_first;
    }
    void quantize_bytes(const bf16* x, long count, long cols, long group, void* to) {
        gemm_.bytes.quantize_bf16(x, count, cols, group, order(), to);
    }
    void quantize_bytes(const float* x, long count, long cols, long group, void* to) {
        gemm_.bytes.quantize_f32(x, count, cols, group, order(), to);
    }

    struct Free {
        void operator()(char* data) const { ::operator delete[](data, kLine); }
    };
    static constexpr std::align_val_t kLine{64};

    const Gemm& gemm_;
    Format format_;
    long count_, cols_, size_;
    std::unique_ptr<char[], Free> own_;
    const char* data_;
};

// `count` vectors of `cols` elements of type `type`, bfloat16 for tiles: the i-th is row `source(i)` of x, which is
// skipped if negative.
template <class Source>
Vectors vectors_of(Pool& pool, const Gemm& gemm, Format format, const void* x, Type type, long count, long cols,
                   const Source& source) {
    Vectors vectors(gemm, format, count, cols);
    each(pool, pieces(count, kTileTokens), [&](long item, Scratch&) {
        const long first = item * kTileTokens, last = std::min(count, first + kTileTokens);
        if (has_tiles(format))
            return with_type(type, [&](auto element) {
                const decltype(element)* rows[kTileTokens] = {};
                for (long i = first; i < last; ++i)
                    if (const long row = source(i); row >= 0)
                        rows[i - first] = static_cast<const decltype(element)*>(x) + row * cols;
                vectors.set_tile(first, rows);
            });
        for (long i = first; i < last; ++i) {
            const long row = source(i);
            if (row < 0) continue;
            if (type == Type::bf16) {
                vectors.set(i, 0, static_cast<const bf16*>(x) + row * cols, cols);
            } else {
                vectors.set(i, 0, static_cast<const float*>(x) + row * cols, cols);
            }
        }
    });
    return vectors;
}

// The vectors x (tokens, cols) of type `type`.
inline Vectors vectors_of(Pool& pool, const Gemm& gemm, Format format, const void* x, Type type, long tokens,
                          long cols) {
    if (format == Format::floats && type == Type::f32) return {gemm, static_cast<const float*>(x), tokens, cols};
    return vectors_of(pool, gemm, format, x, type, tokens, cols, [](long i) { return i; });
}

inline auto product(const TileGemm& gemm, const Packed&) { return gemm.packed; }
inline auto product(const TileGemm& gemm, const Turned&) { return gemm.turned; }
inline auto product(const TileGemm& gemm, const Dense<bf16>&) { return gemm.dense; }
inline auto product(const TileGemm& gemm, const Int8&) { return gemm.int8; }
inline auto product(const Gemm& gemm, const Packed&) { return gemm.packed; }
inline auto product(const Gemm& gemm, const Turned&) { return gemm.turned; }
inline auto product(const Gemm& gemm, const Dense<bf16>&) { return gemm.bf16_words; }
inline auto product(const Gemm& gemm, const Int8&) { return gemm.int8_words; }
inline auto product(const Gemm& gemm, const Dense<float>&) { return gemm.f32_floats; }
inline auto product_of_floats(const Gemm& gemm, const Packed&) { return gemm.packed_floats; }
inline auto product_of_floats(const Gemm& gemm, const Turned&) { return gemm.turned_floats; }
inline auto product_of_floats(const Gemm& gemm, const Dense<bf16>&) { return gemm.bf16_floats; }
inline auto product_of_floats(const Gemm& gemm, const Int8&) { return gemm.int8_words; }  // never has floats
inline auto product_of_floats(const Gemm& gemm, const Dense<float>&) { return gemm.f32_floats; }

// scratch.tile gets rows [begin, end) of the matrix times vectors of(0) to of(count - 1).
template <class Of>
void multiply(const Gemm& gemm, const AnyMatrix& matrix, const Vectors& x, long count, const Of& of, long begin,
              long end, Scratch& scratch) {
    if (x.are_bytes()) {
        const auto times = [&](const auto& w, auto in_tiles, auto product) {
            if (x.are_tiles()) return in_tiles(w, x.at(0, of(0)), count, begin, end, scratch.panel, scratch.tile);
            for (long i = 0; i < count; ++i) scratch.tokens[i] = x.at(0, of(i));
            product(w, scratch.tokens, count, begin, end, scratch.panel, scratch.tile);
        };
        const ByteTileGemm tiles = x.are_tiles() ? *gemm.tiles->bytes : ByteTileGemm{};
        if (const auto* packed = std::get_if<Packed>(&matrix)) times(*packed, tiles.packed, gemm.bytes.packed);
        if (const auto* int8 = std::get_if<Int8>(&matrix)) times(*int8, tiles.int8, gemm.bytes.int8);
        return;
    }
    if (x.are_tiles()) {
        std::visit(
            [&](const auto& w) {
                if constexpr (!std::is_same_v<decltype(w), const Dense<float>&>)
                    product(*gemm.tiles, w)(w, x.at(0, of(0)), count, begin, end, scratch.panel, scratch.tile);
            },
            matrix);
        return;
    }
    for (int part = 0; part < x.parts(); ++part) {
        for (long i = 0; i < count; ++i) scratch.tokens[i] = x.at(part, of(i));
        std::visit(
            [&](const auto& w) {
                const auto times = x.are_floats() ? product_of_floats(gemm, w) : product(gemm, w);
                times(w, scratch.tokens, count, begin, end, part > 0, scratch.panel, scratch.tile);
            },
            matrix);
    }
}

// y[at + i] = x[i] + bias[i] + residual[at + i] for i below count, where they are.
inline void finish(const Kernels& kernels, const float* x, const void* bias, const void* residual, long count, void* y,
                   Type y_type, long at) {
    with_type(y_type, [&](auto element) {
        using Element = decltype(element);
        const auto *own = static_cast<const Element*>(bias), *added = static_cast<const Element*>(residual);
        Element* out = static_cast<Element*>(y) + at;
        kernels.rowwise(out).finish(x, own, added ? added + at : nullptr, out, count);
    });
}

}  // namespace ossia
