// A memory of a few ranges in the place of the library's, for tests of translated kernels alone.
#include "../library/memory.hpp"

#include <algorithm>
#include <vector>

namespace software_cuda {

namespace {

struct Range {
    std::uint64_t begin, end;
    std::vector<bool> stored;
};

std::vector<Range> ranges;

}  // namespace

Access access(int, std::uint64_t address, std::size_t bytes, Use use) {
    for (Range& range : ranges) {
        if (address < range.begin || address + bytes > range.end) continue;
        const auto first = range.stored.begin() + (address - range.begin), last = first + bytes;
        if (use == Use::store) std::fill(first, last, true);
        return std::find(first, last, false) == last ? Access::allowed : Access::unset;
    }
    return Access::outside;
}

std::string describe(std::uint64_t) { return "memory that was never allocated"; }

}  // namespace software_cuda

using namespace software_cuda;

extern "C" __attribute__((visibility("default"))) void harness_forget_memory() { ranges.clear(); }

extern "C" __attribute__((visibility("default"))) void harness_add_memory(void* address, std::uint64_t bytes, int stored) {
    const auto begin = reinterpret_cast<std::uint64_t>(address);
    ranges.push_back({begin, begin + bytes, std::vector<bool>(bytes, stored != 0)});
}
