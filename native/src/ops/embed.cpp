// Rows of the embedding table.
#include <algorithm>
#include <stdexcept>

#include "core/check.hpp"
#include "core/machine.hpp"
#include "core/numbers.hpp"

namespace ossia {

namespace {

template <class Row, class Element>
void read_row(const Row* row, const Element* residual, Element* y, long count) {
    if (residual) {
        for (long i = 0; i < count; ++i) narrow(widen(row[i]) + widen(residual[i]), y + i);
    } else {
        for (long i = 0; i < count; ++i) narrow(widen(row[i]), y + i);
    }
}

}  // namespace

void Machine::embed(const Array& ids, const Array& table, const Array& y, const Array& residual) {
    require(table.has_floats() && table.dims == 2 && table.size() > 0 && (table.strides[1] == 1 || table.last() == 1),
            "table: expected bfloat16 or float32 (count, hidden) with contiguous rows");
    require(ids.type == Type::int64 && ids.is_contiguous(), "ids: expected contiguous int64");
    const long count = ids.size(), hidden = table.last(), stride = table.strides[0];
    require(expect_rows("y", y, hidden) == count, "y: expected a row for each id");
    if (residual) expect_like("residual", residual, y.type, y);
    expect_apart("y", y, ids);
    const std::int64_t* const rows = ids.as<const std::int64_t>();
    for (long i = 0; i < count; ++i)
        if (rows[i] < 0 || rows[i] >= table.shape[0]) throw std::out_of_range("an id is outside the embedding table");
    with_type(y.type, [&](auto element) {
        using Element = decltype(element);
        const Element* const added = residual.as<const Element>();
        run_if_large(count * hidden, [&](int thread, int threads) {
            const Share mine = share(count, 1, thread, threads);
            for (long i = mine.begin; i < mine.end; ++i) {
                Element* const to = y.as<Element>() + i * hidden;
                const Element* const own = added ? added + i * hidden : nullptr;
                with_type(table.type, [&](auto number) {
                    read_row(table.as<const decltype(number)>() + rows[i] * stride, own, to, hidden);
                });
            }
        });
    });
}

}  // namespace ossia
