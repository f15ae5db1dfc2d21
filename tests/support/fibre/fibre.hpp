// Fibres: functions that each have a stack of their own and hand the processor to one another. On x86-64 the switch is written
// out, because swapcontext makes a system call every time and a launch switches millions of times. The address sanitizer is told
// of every switch.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if !defined(__x86_64__) && !defined(FIBRE_UCONTEXT)
#define FIBRE_UCONTEXT
#endif

#ifdef FIBRE_UCONTEXT
#include <ucontext.h>
#else
extern "C" void fibre_switch_stacks(void** save_here, void* go_on_there);
asm(R"(
    .text
    .type fibre_switch_stacks, @function
fibre_switch_stacks:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    ret
    .size fibre_switch_stacks, . - fibre_switch_stacks
)");
#endif

namespace fibres {

class Fibre {
public:
    // Makes the fibre start with `body` when it is next switched to. The body never returns: it switches away for good.
    void prepare(char* stack, std::size_t bytes, void (*body)()) {
        bottom = stack;
        size = bytes;
#ifdef FIBRE_UCONTEXT
        getcontext(&context);
        context.uc_stack.ss_sp = stack;
        context.uc_stack.ss_size = bytes;
        context.uc_link = nullptr;
        makecontext(&context, body, 0);
#else
        // The switch pops six registers and returns into the body, which finds a stack as after a call: a return address on top
        // (of nobody: unwinding ends there), and 16-byte alignment below it.
        void** top = reinterpret_cast<void**>(reinterpret_cast<std::uintptr_t>(stack + bytes) & ~std::uintptr_t{15});
        *--top = nullptr;
        *--top = reinterpret_cast<void*>(body);
        for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
        stack_pointer = top;
#endif
    }

    // From this fibre, which runs, to another. Comes back when somebody switches to this one.
    void switch_to(Fibre& other) {
        leave_for(other);
#ifdef FIBRE_UCONTEXT
        swapcontext(&context, &other.context);
#else
        fibre_switch_stacks(&stack_pointer, other.stack_pointer);
#endif
        arrive();
    }

    // The first thing a body calls, with the fibre that it was started from.
    static void started_by([[maybe_unused]] Fibre& starter) {
#if defined(__SANITIZE_ADDRESS__)
        __sanitizer_finish_switch_fiber(nullptr, &starter.bottom, &starter.size);
#endif
    }

private:
    void leave_for([[maybe_unused]] Fibre& other) {
#if defined(__SANITIZE_ADDRESS__)
        __sanitizer_start_switch_fiber(&fake_stack, other.bottom, other.size);
#endif
    }

    void arrive() {
#if defined(__SANITIZE_ADDRESS__)
        __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
    }

#ifdef FIBRE_UCONTEXT
    ucontext_t context;
#else
    void* stack_pointer = nullptr;
#endif
    const void* bottom = nullptr;
    std::size_t size = 0;
    [[maybe_unused]] void* fake_stack = nullptr;
};

}  // namespace fibres
