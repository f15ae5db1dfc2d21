#include "streams.hpp"

#include <algorithm>
#include <map>
#include <set>

#include "captures.hpp"
#include "devices.hpp"
#include "errors.hpp"
#include "memory.hpp"
#include "state.hpp"

namespace software_cuda {

namespace {

constexpr int ASKS_BEFORE_RUNNING = 2;
constexpr std::size_t FEWEST_BEFORE_FORGETTING = 64;

struct Streams {
    std::set<std::unique_ptr<Stream>, std::less<>> created;  // and those of threads
    // They are kept so that no new stream gets the handle of an old one. CuPy's memory pool knows streams by their handles, and
    // would give memory of an old stream, which still has work to do, to the new one.
    std::vector<std::unique_ptr<Stream>> destroyed;
    std::map<int, Stream> legacy;
    // The last operations of streams that were destroyed: a wait for the device is also for them.
    struct Orphan {
        int device;
        bool blocking;
        OperationPointer last;
    };
    std::vector<Orphan> orphans;
    std::vector<std::weak_ptr<Operation>> unfinished;  // and some that are done
    std::size_t forget_at = FEWEST_BEFORE_FORGETTING;  // how many there are when the finished ones are forgotten
    std::uint64_t pending = 0;
    bool lazy = true;
};

Streams& all() {
    static auto* streams = new Streams;
    return *streams;
}

thread_local std::map<int, Stream*> own_streams;  // the default stream of this thread for each device

bool is_done(const OperationPointer& operation) { return !operation || operation->state == Operation::State::done; }

Stream* find_created(const void* handle) {
    for (const auto& each : all().created) {
        if (each.get() == handle) return each.get();
    }
    return nullptr;
}

Stream* add_stream(Stream stream) { return all().created.insert(std::make_unique<Stream>(std::move(stream))).first->get(); }

Stream* own_stream(int device) {
    Stream*& found = own_streams[device];
    if (!found) found = add_stream({Stream::Sort::per_thread, device, true, cudaStreamDefault, 0, nullptr, nullptr, {}});
    return found;
}

void forget_finished_orphans() {
    std::erase_if(all().orphans, [](const Streams::Orphan& orphan) { return is_done(orphan.last); });
}

// Returns the operations that the next one of a stream has to wait for.
std::vector<OperationPointer> predecessors(Stream& stream) {
    std::vector<OperationPointer> found{stream.last};
    if (stream.sort == Stream::Sort::legacy) {
        for (Stream* other : streams_of(stream.device)) {
            if (other->blocking) found.push_back(other->last);
        }
        for (const auto& orphan : all().orphans) {
            if (orphan.device == stream.device && orphan.blocking) found.push_back(orphan.last);
        }
    } else if (stream.blocking) {
        found.push_back(legacy_stream(stream.device).last);
    }
    std::erase_if(found, is_done);
    return found;
}

void run(Operation& operation) {
    operation.state = Operation::State::running;
    operation.runner = std::this_thread::get_id();
    if (operation.work.run) {
        cudaError_t error = cudaSuccess;
        if (sticky_error() == cudaSuccess) {
            if (operation.work.calls_host) {
                Unlocked unlocked;
                error = operation.work.run();
            } else {
                set_running_epoch(operation.epoch);
                error = operation.work.run();
            }
        }
        if (error != cudaSuccess && sticky_error() == cudaSuccess) set_sticky_error(error);
        --all().pending;
    }
    operation.work = {};
    operation.after.clear();
    operation.finished = std::chrono::steady_clock::now();
    operation.state = Operation::State::done;
    state_changed().notify_all();
}

// Notes an operation as unfinished. Those that have finished are forgotten whenever the number has doubled, which costs little.
void note_unfinished(const OperationPointer& operation) {
    auto& unfinished = all().unfinished;
    if (unfinished.size() >= all().forget_at) {
        std::erase_if(unfinished, [](const std::weak_ptr<Operation>& each) { return is_done(each.lock()); });
        all().forget_at = std::max(FEWEST_BEFORE_FORGETTING, 2 * unfinished.size());
    }
    unfinished.push_back(operation);
}

}  // namespace

Stream& legacy_stream(int device) {
    auto& legacy = all().legacy;
    auto found = legacy.find(device);
    if (found == legacy.end()) {
        Stream made{Stream::Sort::legacy, device, true, cudaStreamDefault, 0, nullptr, nullptr, {}};
        found = legacy.emplace(device, std::move(made)).first;
    }
    return found->second;
}

Stream* find_stream(cudaStream_t handle) {
    if (handle == nullptr || handle == cudaStreamLegacy) return &legacy_stream(current_device());
    if (handle == cudaStreamPerThread) return own_stream(current_device());
    return find_created(handle);
}

std::vector<Stream*> streams_of(int device) {
    std::vector<Stream*> found;
    for (const auto& each : all().created) {
        if (each->device == device) found.push_back(each.get());
    }
    return found;
}

cudaError_t create_stream(unsigned flags, int priority, cudaStream_t& handle) {
    if (flags & ~unsigned(cudaStreamNonBlocking)) return cudaErrorInvalidValue;
    const bool blocking = !(flags & cudaStreamNonBlocking);
    Stream* made = add_stream({Stream::Sort::created, current_device(), blocking, flags, priority, nullptr, nullptr, {}});
    handle = reinterpret_cast<cudaStream_t>(made);
    return cudaSuccess;
}

cudaError_t destroy_stream(cudaStream_t handle) {
    Stream* stream = find_created(handle);
    if (!stream || stream->sort != Stream::Sort::created) return cudaErrorInvalidResourceHandle;
    if (stream->capture) abandon_capture(*stream);
    forget_finished_orphans();
    if (!is_done(stream->last)) all().orphans.push_back({stream->device, stream->blocking, stream->last});
    auto& created = all().created;
    const auto found = std::find_if(created.begin(), created.end(), [stream](const auto& each) { return each.get() == stream; });
    stream->last = nullptr;
    all().destroyed.push_back(std::move(created.extract(found).value()));
    return cudaSuccess;
}

bool touches_only_living_memory(const Work& work) {
    for (const auto& [address, bytes] : work.touches) {
        if (!is_given_back(address, bytes)) continue;
        report(work.name + " was launched with an address in memory that was given back: " + in_hexadecimal(address) + " is " +
               describe(address) + ".");
        return false;
    }
    return true;
}

OperationPointer make_operation(Work work, std::vector<OperationPointer> dependencies) {
    auto made = std::make_shared<Operation>();
    std::erase_if(dependencies, is_done);
    if (work.run) ++all().pending;
    made->work = std::move(work);
    made->after = std::move(dependencies);
    made->epoch = current_epoch();
    note_unfinished(made);
    return made;
}

OperationPointer append(Stream& stream, Work work, std::vector<OperationPointer> dependencies) {
    for (auto& each : predecessors(stream)) dependencies.push_back(std::move(each));
    stream.last = make_operation(std::move(work), std::move(dependencies));
    return stream.last;
}

cudaError_t enqueue(Stream& stream, Work work, std::vector<OperationPointer> dependencies, OperationPointer* enqueued) {
    if (!touches_only_living_memory(work)) return cudaErrorInvalidValue;
    if (stream.capture) return add_node(stream, std::move(work));
    if (auto error = refuse_legacy_work_while_capturing(stream)) return error;
    auto operation = append(stream, std::move(work), std::move(dependencies));
    if (enqueued) *enqueued = operation;
    return all().lazy ? cudaSuccess : finish(operation);
}

cudaError_t finish(const OperationPointer& wanted, Wait wait) {
    // The path from the wanted operation to one that can run. A recursion would be as deep as the longest queue.
    std::vector<OperationPointer> path;
    if (wanted) path.push_back(wanted);
    while (!path.empty()) {
        Operation& operation = *path.back();
        if (operation.state == Operation::State::done) {
            path.pop_back();
        } else if (operation.state == Operation::State::running) {
            // A host function must not wait for work that comes after it.
            if (operation.runner == std::this_thread::get_id()) return cudaErrorNotPermitted;
            if (wait == Wait::forbidden) return cudaErrorNotReady;
            state_changed().wait(state_lock());
        } else {
            while (!operation.after.empty() && is_done(operation.after.back())) operation.after.pop_back();
            if (operation.after.empty()) {
                run(operation);
            } else {
                const OperationPointer next = operation.after.back();
                path.push_back(next);
            }
        }
    }
    return sticky_error();
}

cudaError_t finish_stream(Stream& stream) {
    // A host function may destroy streams meanwhile, so the operations are looked up before any of them runs.
    std::vector<OperationPointer> wanted = stream.sort == Stream::Sort::legacy ? predecessors(stream) : std::vector{stream.last};
    for (const auto& each : wanted) {
        if (auto error = finish(each)) return error;
    }
    return sticky_error();
}

cudaError_t finish_device(int device) {
    std::vector<OperationPointer> wanted{legacy_stream(device).last};
    for (Stream* stream : streams_of(device)) wanted.push_back(stream->last);
    for (const auto& orphan : all().orphans) {
        if (orphan.device == device) wanted.push_back(orphan.last);
    }
    for (const auto& each : wanted) {
        if (auto error = finish(each)) return error;
    }
    forget_finished_orphans();
    return sticky_error();
}

void finish_everything() {
    const auto unfinished = all().unfinished;
    for (const auto& each : unfinished) finish(each.lock());
}

void finish_what_touches(std::uint64_t address, std::size_t bytes) {
    std::vector<OperationPointer> found;
    for (const auto& each : all().unfinished) {
        auto operation = each.lock();
        if (is_done(operation)) continue;
        for (const auto& extent : operation->work.touches) {
            if (extent.address < address + bytes && address < extent.address + extent.bytes) found.push_back(operation);
        }
    }
    for (const auto& each : found) finish(each);
}

cudaError_t query(const OperationPointer& operation) {
    if (is_done(operation)) return sticky_error();
    if (operation->asked++ < ASKS_BEFORE_RUNNING) return cudaErrorNotReady;
    return finish(operation, Wait::forbidden);  // CuPy holds Python's lock while it queries
}

cudaError_t query_stream(Stream& stream) {
    const auto wanted = stream.sort == Stream::Sort::legacy ? predecessors(stream) : std::vector{stream.last};
    for (const auto& each : wanted) {
        if (auto error = query(each)) return error;
    }
    return sticky_error();
}

void set_lazy(bool lazy) { all().lazy = lazy; }
bool is_lazy() { return all().lazy; }
std::uint64_t pending_operations() { return all().pending; }

}  // namespace software_cuda
