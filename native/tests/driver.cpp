// Serves the calls of a Machine over pipes to tests/ops/cpu/remote.py, which describes the exchange: driver THREADS ISA
// EDGE
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <iostream>
#include <sstream>
#include <stdexcept>

#include "nanobind/nanobind.h"

namespace {

// Memory that ends, or begins, at a page without access.
class Fenced {
  public:
    Fenced(std::size_t size, bool at_end) {
        const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE)),
                          inner = (size + page - 1) / page * page;
        size_ = inner + 2 * page;
        void* mapped = mmap(nullptr, size_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (mapped == MAP_FAILED) throw std::bad_alloc();
        start_ = static_cast<char*>(mapped);
        if (inner) mprotect(start_ + page, inner, PROT_READ | PROT_WRITE);
        data_ = start_ + page + (at_end ? inner - size : 0);
    }
    ~Fenced() { munmap(start_, size_); }
    Fenced(const Fenced&) = delete;
    Fenced& operator=(const Fenced&) = delete;

    char* data() const { return data_; }

  private:
    char* start_;
    char* data_;
    std::size_t size_;
};

std::string answer(nanobind::Call& call, const std::string& name) {
    try {
        return "ok " + nanobind::functions.at("Machine" + name)(call);
    } catch (const std::out_of_range& error) {
        return std::string("IndexError ") + error.what();
    } catch (const std::invalid_argument& error) {
        return std::string("ValueError ") + error.what();
    } catch (const std::exception& error) {
        return std::string("RuntimeError ") + error.what();
    }
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 4) return 2;
    const bool at_end = std::strcmp(argv[3], "end") == 0;
    nanobind::module_ module;
    nanobind::bind(module);
    nanobind::Call call{nullptr, {argv[1], argv[2]}, {}, 0};
    const std::string made = answer(call, "");
    if (made != "ok None") {
        std::cerr << made << '\n';
        return 2;
    }
    std::string line;
    while (std::getline(std::cin, line)) {
        std::istringstream words(line);
        std::string name, word;
        std::size_t memories, size;
        words >> name >> memories;
        std::vector<std::size_t> sizes;
        std::vector<std::unique_ptr<Fenced>> fenced;
        call.memories.clear();
        call.words.clear();
        call.next = 0;
        for (std::size_t i = 0; i < memories; ++i) {
            words >> size;
            sizes.push_back(size);
            fenced.push_back(std::make_unique<Fenced>(size, at_end));
            std::cin.read(fenced.back()->data(), static_cast<std::streamsize>(size));
            call.memories.push_back(fenced.back()->data());
        }
        while (words >> word) call.words.push_back(word);
        std::cout << answer(call, "." + name) << '\n';
        for (std::size_t i = 0; i < memories; ++i)
            std::cout.write(fenced[i]->data(), static_cast<std::streamsize>(sizes[i]));
        std::cout.flush();
    }
    return 0;
}
