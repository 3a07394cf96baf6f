// The emulator: runs a launch's blocks on threads of the system, and each block's threads as fibers on one of them.
//
// A fiber is a stack and a stack pointer. It runs until it has to wait, for the block at a barrier or for its warp at a
// shuffle or a vote, and then gives the processor back to the scheduler (`run_block`), which goes on with the next one.
// A block is done when all its fibers are. If all wait, something will never come: that is an error of the kernel.
//
// Next on the walk: checker.cpp, which watches every access in checked mode.
#include "emulator.h"

#include <link.h>
#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <mutex>

thread_local Worker* worker;
Checker* checker;

// --- fibers ------------------------------------------------------------------------------------------------------------

#if defined(__x86_64__) && !defined(EMULATOR_PORTABLE)
// Saves what a function may not change on the stack, exchanges the stacks, and takes it from there again. It jumps back
// instead of returning: processors foresee where a return goes by the call before it, which was on another stack.
extern "C" void emulator_switch(void** from, void* to) noexcept;
asm(R"(
.hidden emulator_switch
.globl emulator_switch
emulator_switch:
  push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp
  pop %rdx; jmp *%rdx
)");

static void* first_frame(char* stack, size_t bytes, void (*entry)()) {
  void** top = (void**)(stack + bytes);
  *--top = nullptr;           // where a caller's return address would be: the stack is aligned as after a call
  *--top = (void*)entry;
  return top - 6;
}
#else
#include <ucontext.h>
// Any other processor: the C library's way, which asks the system at every switch.
static void emulator_switch(void** from, void* to) noexcept {
  ucontext_t context;
  *from = &context;
  swapcontext(&context, (ucontext_t*)to);
}
static void* first_frame(char* stack, size_t bytes, void (*entry)()) {
  auto context = (ucontext_t*)(stack + bytes - sizeof(ucontext_t) - 64);
  getcontext(context);
  context->uc_stack.ss_sp = stack;
  context->uc_stack.ss_size = (char*)context - stack;
  context->uc_link = nullptr;
  makecontext(context, entry, 0);
  return context;
}
#endif

static void resume(Thread& thread) {
  worker->now = &thread;
  emulator_switch(&worker->stack_pointer, thread.stack_pointer);
}

static void wait(State state, uint64_t at) {
  Thread& me = *worker->now;
  me.state = state;
  me.at = at;
  emulator_switch(&me.stack_pointer, worker->stack_pointer);
}

void give_up() {
  worker->failed = true;
  wait(State::failed, 0);
  __builtin_unreachable();
}

static void fiber() {
  worker->kernel->call(worker->arguments);
  emulator_copy_async_commit();
  emulator_copy_async_wait(0);
  worker->done++;
  wait(State::done, 0);
}

// Stacks are kept: a launch costs no memory that is new to the system. The last page of each is nobody's: if a launch
// has written to it, there was not enough.
constexpr int RESERVE = 4096;
static bool untouched(char* stack) { return std::all_of(stack, stack + RESERVE, [](char c) { return c == 0; }); }
struct Stacks {
  std::mutex mutex;
  std::vector<char*> free;
  char* take() {
    std::lock_guard lock(mutex);
    if (free.empty()) {
      constexpr int count = 64;  // at once
      auto memory = (char*)mmap(nullptr, count * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (memory == MAP_FAILED) return nullptr;
      for (int i = 0; i < count; i++) free.push_back(memory + i * STACK);
    }
    char* taken = free.back();
    free.pop_back();
    return taken;
  }
  void give(char* stack) {
    std::lock_guard lock(mutex);
    free.push_back(stack);
  }
};
static Stacks stacks;

// --- what kernels call -------------------------------------------------------------------------------------------------

const Place& emulator_place() noexcept { return worker->now->place; }

void __syncthreads() noexcept {
  uint64_t at = here(__builtin_return_address(0));
  worker->at_barrier++;
  wait(State::barrier, at);
}

// Waits until all lanes of `mask` came here; the last one to come works out what each of them gets.
static uint64_t with_warp(Together together, unsigned mask, uint64_t value, int source, uint64_t at) {
  Thread& me = *worker->now;
  int lane = me.number % warpSize, warp = me.number / warpSize;
  Thread* first = &me - lane;
  if (!(mask >> lane & 1)) {
    report({.kind = INACTIVE_LANE, .detail = lane, .at = at});
    give_up();
  }
  me.together = together, me.mask = mask, me.value = value, me.source = source;
  unsigned& waiting = worker->waiting[warp];
  waiting |= 1u << lane;
  bool all = (waiting & mask) == mask;
  for (unsigned rest = mask; all && rest; rest &= rest - 1) {
    Thread& other = first[__builtin_ctz(rest)];
    all = other.mask == mask && other.together == together;
  }
  if (!all) {
    wait(State::warp, at);
    return me.result;
  }
  unsigned votes = 0;
  for (unsigned rest = mask; rest; rest &= rest - 1)
    if (first[__builtin_ctz(rest)].value) votes |= rest & -rest;
  for (unsigned rest = mask; rest; rest &= rest - 1) {
    Thread& other = first[__builtin_ctz(rest)];
    if (together == Together::shuffle && !(mask >> other.source & 1)) {
      report({.kind = INACTIVE_LANE, .detail = other.source, .block = other.place.block, .thread = other.place.thread, .at = at, .times = -1});
      give_up();
    }
    other.result = together == Together::shuffle ? first[other.source].value : votes;
    other.state = State::ready;
  }
  waiting &= ~mask;
  if (together == Together::sync && checker) checker->warp_synchronised(warp, mask);
  return me.result;
}

void __syncwarp(unsigned mask) noexcept { with_warp(Together::sync, mask, 0, 0, here(__builtin_return_address(0))); }

uint64_t emulator_shuffle(unsigned mask, uint64_t value, int source) noexcept {
  return with_warp(Together::shuffle, mask, value, source, here(__builtin_return_address(0)));
}

unsigned __ballot_sync(unsigned mask, int vote) noexcept {
  return with_warp(Together::ballot, mask, vote != 0, 0, here(__builtin_return_address(0)));
}

bool emulator_exchange(void* place, void* expected, const void* wanted, int bytes) noexcept {
  if (checker) checker->touched(place, bytes, true, here(__builtin_return_address(0)), true, true, true);
  if (bytes == 4)
    return __atomic_compare_exchange((uint32_t*)place, (uint32_t*)expected, (uint32_t*)wanted, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
  return __atomic_compare_exchange((uint64_t*)place, (uint64_t*)expected, (uint64_t*)wanted, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

// An asynchronous copy happens when it is waited for: who reads too early finds what was there before.
void emulator_copy_async(void* shared, const void* global, int bytes) noexcept {
  uint64_t at = here(__builtin_return_address(0));
  if (checker) {
    checker->touched(global, bytes, false, at, false, true, true);
    checker->touched(shared, bytes, true, at, false, true, false);
  }
  auto& copies = worker->now->copies;
  if (copies.empty()) copies.emplace_back();
  copies.back().push_back({shared, global, bytes, at});
}

void emulator_copy_async_commit() noexcept { worker->now->copies.emplace_back(); }

void emulator_copy_async_wait(int groups) noexcept {
  auto& copies = worker->now->copies;
  while ((int)copies.size() > groups + 1) {
    for (Copy& copy : copies.front()) {
      if (checker) checker->touched(copy.to, copy.bytes, true, copy.at, false, false, true);
      memcpy(copy.to, copy.from, copy.bytes);
    }
    copies.erase(copies.begin());
  }
}

// --- a block -----------------------------------------------------------------------------------------------------------

static std::mutex reporting;

void report(Fault fault) {
  std::lock_guard lock(reporting);
  Launch& launch = *worker->launch;
  if (!fault.times) fault.block = worker->now->place.block, fault.thread = worker->now->place.thread;
  fault.times = 1;
  for (int i = 0; i < launch.fault_count; i++) {
    Fault& known = launch.faults[i];
    if (known.kind == fault.kind && known.at == fault.at && known.other_at == fault.other_at && known.line == fault.line) {
      known.times++;
      return;
    }
  }
  if (launch.fault_count < launch.fault_room) launch.faults[launch.fault_count++] = fault;
}

static uint3 coordinates(uint64_t number, const uint32_t* extents) {
  return {unsigned(number % extents[0]), unsigned(number / extents[0] % extents[1]), unsigned(number / extents[0] / extents[1])};
}

static uint64_t random_state;  // launches in random order have one worker
static uint64_t random_below(uint64_t n) {
  random_state = random_state * 6364136223846793005u + 1442695040888963407u;
  return (random_state >> 33) % n;
}

template <class T> static void shuffle(std::vector<T>& items) {
  for (size_t i = items.size(); i > 1; i--) std::swap(items[i - 1], items[random_below(i)]);
}

// All threads that are left wait: says for what, and for whom.
static void report_stuck() {
  Thread *waits = nullptr, *absent = nullptr;
  for (Thread& thread : worker->threads)
    if (thread.state == State::warp) waits = &thread;
  if (waits) {
    Thread* first = waits - waits->number % warpSize;
    for (unsigned rest = waits->mask; rest; rest &= rest - 1) {
      int other = __builtin_ctz(rest);
      if (first + other >= worker->threads.data() + worker->threads.size()) break;
      if (first[other].state != State::warp || first[other].mask != waits->mask || first[other].together != waits->together) absent = first + other;
    }
    int missing = absent ? absent->number % warpSize : warpSize;
    Fault fault{.kind = INACTIVE_LANE, .detail = missing, .block = waits->place.block, .thread = waits->place.thread, .at = waits->at, .times = -1};
    if (absent) fault.other_block = absent->place.block, fault.other_thread = absent->place.thread, fault.other_at = absent->at;
    return report(fault);
  }
  for (Thread& thread : worker->threads) (thread.state == State::barrier ? waits : absent) = &thread;
  report({.kind = BARRIER_MISSED, .block = waits->place.block, .thread = waits->place.thread, .other_block = absent->place.block, .other_thread = absent->place.thread, .at = waits->at, .times = -1});
}

static void pass_barrier() {
  Thread& first = worker->threads[0];
  for (Thread& thread : worker->threads) {
    if (thread.at != first.at)
      report({.kind = BARRIERS_DIFFER, .block = first.place.block, .thread = first.place.thread, .other_block = thread.place.block, .other_thread = thread.place.thread, .at = first.at, .other_at = thread.at, .times = -1});
    thread.state = State::ready;
  }
  worker->at_barrier = 0;
  __atomic_fetch_add(&worker->launch->barriers, 1, __ATOMIC_RELAXED);
  if (checker) checker->barrier_passed();
}

static void start_block(uint64_t block) {
  Worker& w = *worker;
  Launch& launch = *w.launch;
  w.block = block, w.at_barrier = w.done = 0;
  uint3 place = coordinates(block, launch.blocks);
  for (Thread& thread : w.threads) {
    thread.place.block = place;
    thread.state = State::ready;
    thread.copies.clear();
    // Not all at the same distance from a multiple of 64 KiB: they would share a few places in the cache.
    thread.stack_pointer = first_frame((char*)thread.stack, STACK - thread.number % 29 * 128, fiber);
  }
  std::fill(w.waiting.begin(), w.waiting.end(), 0);
  // Shared memory holds anything when a block starts: here always NaN, so that it shows.
  memset(w.fixed.start, 0xff, w.fixed.bytes);
  if (checker) checker->block_begins();
}

static void run_block(uint64_t block, std::vector<int>& order) {
  Worker& w = *worker;
  start_block(block);
  int count = w.threads.size();
  while (w.done < count && !w.failed) {
    if (w.launch->order >= 0) shuffle(order);
    bool moved = false;
    // Warp by warp: one goes on until it waits for others, as long as what it uses is in the cache.
    for (int first = 0; first < count && !w.failed; first += warpSize)
      for (bool again = true; again && !w.failed;) {
        again = false;
        for (int i = first; i < std::min(first + warpSize, count) && !w.failed; i++)
          if (Thread& thread = w.threads[order[i]]; thread.state == State::ready) resume(thread), again = moved = true;
      }
    if (w.at_barrier == count) pass_barrier();
    else if (!moved) {
      report_stuck();
      w.failed = true;
    }
  }
  if (checker) checker->block_ends();
}

// --- a launch ----------------------------------------------------------------------------------------------------------

extern thread_local char emulator_dynamic[];  // generated beside the kernels: as much as a block may ask for
extern const size_t emulator_dynamic_bytes;

// Where this thread's shared memory lies: all thread-local variables of this library, less ours.
static Memory fixed_shared() {
  struct Search { size_t module; } found{};
  dl_iterate_phdr([](dl_phdr_info* info, size_t, void* found) {
    for (int i = 0; i < info->dlpi_phnum; i++) {
      auto& header = info->dlpi_phdr[i];
      uintptr_t start = info->dlpi_addr + header.p_vaddr, me = (uintptr_t)&fixed_shared;
      if (header.p_type == PT_LOAD && me >= start && me < start + header.p_memsz) {
        for (int j = 0; j < info->dlpi_phnum; j++)
          if (info->dlpi_phdr[j].p_type == PT_TLS) *(Search*)found = {info->dlpi_tls_modid};
        return 1;
      }
    }
    return 0;
  }, &found);
  size_t index[2] = {found.module, 0};
  extern void* get_address(size_t*) asm("__tls_get_addr");
  char* start = (char*)get_address(index);
  return {start, size_t((char*)&worker - start)};  // the kernels' come first, then `worker`: so they are linked
}

struct Shared {              // by all workers of a launch
  Launch* launch;
  const Kernel* kernel;
  void** arguments;
  std::vector<uint64_t> order;   // of blocks; empty: as they come
  std::atomic<uint64_t> next{0};
  std::atomic<bool> failed{false}, homeless{false};
};

static void* work(void* argument) {
  Shared& shared = *(Shared*)argument;
  Launch& launch = *shared.launch;
  Worker mine{};
  worker = &mine;
  mine.launch = &launch, mine.kernel = shared.kernel, mine.arguments = shared.arguments;
  uint64_t threads = uint64_t(launch.threads[0]) * launch.threads[1] * launch.threads[2];
  mine.threads.resize(threads);
  mine.waiting.resize((threads + warpSize - 1) / warpSize);
  mine.fixed = fixed_shared(), mine.dynamic = {emulator_dynamic, emulator_dynamic_bytes};
  std::vector<int> order(threads);
  for (uint64_t i = 0; i < threads; i++) {
    Thread& thread = mine.threads[i];
    order[i] = thread.number = i;
    thread.place.thread = coordinates(i, launch.threads);
    thread.place.threads = {launch.threads[0], launch.threads[1], launch.threads[2]};
    thread.place.blocks = {launch.blocks[0], launch.blocks[1], launch.blocks[2]};
    thread.stack = stacks.take();
    if (!thread.stack) shared.homeless = true;
  }
  uint64_t blocks = uint64_t(launch.blocks[0]) * launch.blocks[1] * launch.blocks[2];
  for (uint64_t i; !shared.homeless && !shared.failed && (i = shared.next++) < blocks;) {
    run_block(shared.order.empty() ? i : shared.order[i], order);
    __atomic_fetch_add(&launch.block_count, 1, __ATOMIC_RELAXED);
    if (mine.failed) shared.failed = true;
  }
  for (Thread& thread : mine.threads) {
    if (!thread.stack) continue;
    auto stack = (char*)thread.stack;
    if (!untouched(stack)) {
      mine.now = &thread;
      report({.kind = NO_STACK});
      memset(stack, 0, RESERVE);
    }
    stacks.give(stack);
  }
  worker = nullptr;
  return nullptr;
}

// 0, or what went wrong: 1 the kernel (launch.faults), 2 no memory for the stacks.
extern "C" __attribute__((visibility("default"))) int emulator_launch(const Kernel* kernel, Launch* launch, void** arguments) {
  Shared shared{launch, kernel, arguments};
  if (launch->order >= 0) {
    random_state = launch->order;
    shared.order.resize(uint64_t(launch->blocks[0]) * launch->blocks[1] * launch->blocks[2]);
    for (size_t i = 0; i < shared.order.size(); i++) shared.order[i] = i;
    shuffle(shared.order);
  }
  if (checker) {
    Worker none{.launch = launch};
    worker = &none;
    checker->launch_begins();
  }
  std::vector<pthread_t> others;
  for (int i = 1; i < launch->workers; i++) {
    pthread_t thread;
    if (pthread_create(&thread, nullptr, work, &shared)) break;  // fewer do it too
    others.push_back(thread);
  }
  work(&shared);
  for (pthread_t thread : others) pthread_join(thread, nullptr);
  if (checker) {
    Worker none{.launch = launch};
    worker = &none;
    checker->launch_ends();
    worker = nullptr;
  }
  return shared.homeless ? 2 : launch->fault_count ? 1 : 0;
}
