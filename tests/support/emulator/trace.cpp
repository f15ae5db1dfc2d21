// How the accesses of a warp come together, which is what a device charges for: into sectors of 32 bytes of global memory, and
// into passes over the 32 banks of shared memory. The n-th access of every lane of a warp at one place of the kernel's code is
// counted as one request; where lanes go different ways round a loop that is not quite what a device does.
#include <algorithm>
#include <map>
#include <set>

#include "state.hpp"

namespace emulator {
namespace {

constexpr std::uintptr_t SECTOR = 32, BANKS = 32, BANK_BYTES = 4;

struct Piece {
    int lane;
    std::uintptr_t at;
    int bytes;
};

using Request = std::vector<Piece>;

struct Place {
    Traffic traffic;
    std::vector<int> visits;                         // of each thread in this block
    std::map<std::pair<int, int>, Request> requests;  // by warp and visit
};

std::map<std::pair<const void*, Kind>, Place> places;  // by the address that the access returns to
std::vector<Traffic> results;

// The units of so many bytes that a request touches.
std::set<std::uintptr_t> units(const Request& request, std::uintptr_t bytes) {
    std::set<std::uintptr_t> touched;
    for (const Piece& piece : request)
        for (std::uintptr_t unit = piece.at / bytes; unit <= (piece.at + static_cast<unsigned>(piece.bytes) - 1) / bytes; ++unit)
            touched.insert(unit);
    return touched;
}

std::uint64_t round_up(std::uint64_t count, std::uint64_t unit) { return (count + unit - 1) / unit; }

// A bank gives one word in a pass, to as many lanes as want it.
std::uint64_t passes(const Request& request) {
    std::uint64_t most = 0, of_bank[BANKS] = {};
    for (const std::uintptr_t word : units(request, BANK_BYTES)) most = std::max(most, ++of_bank[word % BANKS]);
    return most;
}

// Lanes that ask for 8 bytes are served in two halves of the warp, for 16 bytes in four quarters.
std::uint64_t passes_by_parts(const Request& request) {
    const int lanes_at_once = WARP * 4 / std::max(4, request.front().bytes);
    std::map<int, Request> parts;
    for (const Piece& piece : request) parts[piece.lane / lanes_at_once].push_back(piece);
    std::uint64_t sum = 0;
    for (const auto& [part, pieces] : parts) sum += passes(pieces);
    return sum;
}

void add(Traffic& traffic, const Request& request) {
    const bool shared = traffic.kind == Kind::shared_load || traffic.kind == Kind::shared_store;
    const std::uint64_t words = units(request, BANK_BYTES).size();
    traffic.requests += 1;
    traffic.accesses += request.size();
    for (const Piece& piece : request) traffic.bytes += static_cast<unsigned>(piece.bytes);
    traffic.transactions += shared ? passes_by_parts(request) : units(request, SECTOR).size();
    traffic.least += round_up(words * BANK_BYTES, shared ? BANKS * BANK_BYTES : SECTOR);
}

}  // namespace

void trace(Kind kind, const void* at, int bytes, const void* caller) {
    Place& place = places[{caller, kind}];
    place.traffic.caller = caller;
    place.traffic.kind = kind;
    place.visits.resize(machine.threads);
    Request& request = place.requests[{machine.current / WARP, place.visits[machine.current]++}];
    request.push_back({lane(), reinterpret_cast<std::uintptr_t>(at), bytes});
}

void trace_starts_launch() { places.clear(); }

void trace_ends_block() {
    for (auto& [where, place] : places) {
        for (const auto& [which, request] : place.requests) add(place.traffic, request);
        place.requests.clear();
        place.visits.clear();
    }
}

void trace_ends_launch() {
    results.clear();
    for (const auto& [where, place] : places) results.push_back(place.traffic);
    machine.launch->traffic = results.data();
    machine.launch->traffic_count = static_cast<int>(results.size());
}

}  // namespace emulator
