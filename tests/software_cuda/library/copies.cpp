#include "copies.hpp"

#include <cstring>
#include <memory>

#include "captures.hpp"
#include "devices.hpp"
#include "errors.hpp"
#include "memory.hpp"

namespace software_cuda {

namespace {

struct Copy {
    std::uint64_t to, from;
    std::size_t bytes;
    Place target, source;

    bool from_device_to_device() const { return source.kind == Kind::device && target.kind == Kind::device; }
};

bool stays_inside(const Place& place, std::uint64_t address, std::size_t bytes) {
    return place.kind == Kind::pageable || bytes <= place.bytes - (address - place.start);
}

// Memory of a device that no allocation covers any more, or that none ever covered.
bool is_nowhere(const Place& place, std::uint64_t address) { return place.kind == Kind::pageable && is_known(address); }

// The side of the host must not be memory of a device, and the side of the device must not be pageable.
bool fits(cudaMemcpyKind kind, const Copy& copy) {
    const auto host = [](const Place& place) { return place.kind != Kind::device; };
    const auto device = [](const Place& place) { return place.kind != Kind::pageable; };
    switch (kind) {
        case cudaMemcpyHostToHost: return host(copy.target) && host(copy.source);
        case cudaMemcpyHostToDevice: return device(copy.target) && host(copy.source);
        case cudaMemcpyDeviceToHost: return host(copy.target) && device(copy.source);
        case cudaMemcpyDeviceToDevice: return device(copy.target) && device(copy.source);
        case cudaMemcpyDefault: return true;
    }
    return false;
}

cudaError_t fail_at(const char* what, std::uint64_t address, std::size_t bytes) {
    report(std::string(what) + " of " + std::to_string(bytes) + " bytes at " + in_hexadecimal(address) + " reaches " +
           describe(address) + " while it runs.");
    return cudaErrorIllegalAddress;
}

cudaError_t run_copy(const Copy& copy) {
    const Access read = copy_access(copy.from, copy.bytes, Use::load);
    if (read == Access::outside) return fail_at("A copy", copy.from, copy.bytes);
    if (read == Access::unset && copy.target.kind != Kind::device) {
        report("A copy to the host of " + std::to_string(copy.bytes) + " bytes from " + in_hexadecimal(copy.from) +
               " reads bytes that nobody stored, in " + describe(copy.from) + ".");
    }
    if (copy_access(copy.to, copy.bytes, Use::store) == Access::outside) return fail_at("A copy", copy.to, copy.bytes);
    std::memmove(reinterpret_cast<void*>(copy.to), reinterpret_cast<const void*>(copy.from), copy.bytes);
    copy_shadow(copy.to, copy.from, copy.bytes);
    return cudaSuccess;
}

cudaError_t run_fill(std::uint64_t to, int value, std::size_t bytes) {
    if (copy_access(to, bytes, Use::store) == Access::outside) return fail_at("A fill", to, bytes);
    std::memset(reinterpret_cast<void*>(to), value, bytes);
    return cudaSuccess;
}

std::vector<Extent> known_extents(const Copy& copy) {
    std::vector<Extent> found;
    for (std::uint64_t address : {copy.to, copy.from}) {
        if (is_known(address)) found.push_back({address, copy.bytes});
    }
    return found;
}

cudaError_t describe_copy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind, Copy& copy) {
    copy.to = reinterpret_cast<std::uint64_t>(to);
    copy.from = reinterpret_cast<std::uint64_t>(from);
    copy.bytes = bytes;
    copy.target = place_of(copy.to);
    copy.source = place_of(copy.from);
    if (kind < cudaMemcpyHostToHost || kind > cudaMemcpyDefault) return cudaErrorInvalidMemcpyDirection;
    if (!stays_inside(copy.target, copy.to, bytes) || !stays_inside(copy.source, copy.from, bytes)) return cudaErrorInvalidValue;
    if (!touches_only_living_memory({"A copy", nullptr, known_extents(copy)})) return cudaErrorInvalidValue;
    if (is_nowhere(copy.target, copy.to) || is_nowhere(copy.source, copy.from)) return cudaErrorInvalidValue;
    return fits(kind, copy) ? cudaSuccess : cudaErrorInvalidValue;
}

Work work_of(const Copy& copy) {
    return {"A copy", [copy] { return run_copy(copy); }, known_extents(copy)};
}

Work staged_work_of(const Copy& copy) {
    const auto* bytes = reinterpret_cast<const std::uint8_t*>(copy.from);
    auto staged = std::make_shared<std::vector<std::uint8_t>>(bytes, bytes + copy.bytes);
    Work work = work_of(copy);
    work.run = [copy, staged] {
        Copy from_staging = copy;
        from_staging.from = reinterpret_cast<std::uint64_t>(staged->data());
        return run_copy(from_staging);
    };
    return work;
}

}  // namespace

cudaError_t copy_async(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind, Stream& stream) {
    if (!bytes) return cudaSuccess;
    Copy copy;
    if (auto error = describe_copy(to, from, bytes, kind, copy)) return error;
    // A graph keeps the addresses of the host and reads and writes there at each launch.
    if (stream.capture) return enqueue(stream, work_of(copy));
    const bool to_pageable = copy.target.kind == Kind::pageable, from_pageable = copy.source.kind == Kind::pageable;
    if (from_pageable && !to_pageable) return enqueue(stream, staged_work_of(copy));
    OperationPointer operation;
    const auto error = enqueue(stream, work_of(copy), {}, &operation);
    if (error || !to_pageable) return error;
    return finish(operation);
}

cudaError_t copy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
    if (!bytes) return cudaSuccess;
    Stream& stream = legacy_stream(current_device());
    if (auto error = refuse_legacy_work_while_capturing(stream)) return error;
    if (auto error = refuse_unsafe_call()) return error;
    Copy copy;
    if (auto error = describe_copy(to, from, bytes, kind, copy)) return error;
    OperationPointer operation;
    const auto error = enqueue(stream, work_of(copy), {}, &operation);
    if (error || copy.from_device_to_device()) return error;
    return finish(operation);
}

cudaError_t fill_async(void* to, int value, std::size_t bytes, Stream& stream) {
    if (!bytes) return cudaSuccess;
    const auto address = reinterpret_cast<std::uint64_t>(to);
    const Place place = place_of(address);
    Work work{"A fill", [=] { return run_fill(address, value, bytes); }, {{address, bytes}}};
    if (!stays_inside(place, address, bytes)) return cudaErrorInvalidValue;
    if (!touches_only_living_memory(work) || place.kind == Kind::pageable) return cudaErrorInvalidValue;
    return enqueue(stream, std::move(work));
}

}  // namespace software_cuda
