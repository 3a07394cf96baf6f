// What the emulator's two halves know of each other: emulator.cpp runs a launch, checker.cpp watches it in checked mode.
#pragma once
#include <vector>

#include "device.h"

// --- shared with Python: run.py and faults.py have the same structures ---------------------------------------------------

enum FaultKind : int32_t {
  RACE, OUT_OF_BOUNDS, INDEX, NEVER_WRITTEN, BARRIER_MISSED, BARRIERS_DIFFER, INACTIVE_LANE, NO_STACK, MISALIGNED
};

enum { FIXED = -1, DYNAMIC = -2 };  // shared memory

struct Fault {
  int32_t kind;
  int32_t detail;            // RACE: bit 0 the access writes, bit 1 the other wrote; OUT_OF_BOUNDS: 1 for a write
  uint3 block, thread;       // who
  uint3 other_block, other_thread;
  uint64_t at, other_at;     // places in the code, counted from the library's start
  int32_t array, size;       // whose memory: an argument's, or FIXED or DYNAMIC; how many bytes
  int64_t offset;            // in that memory, bytes
  const char* file;          // INDEX: where, in the source
  int32_t line, times;
};

struct Array { uint64_t start, bytes; };   // the memory of an array that a kernel may touch

struct Site {                // one load or store of the code, and what a launch asked of it
  uint64_t at;
  int32_t shared, writes, size, unused;
  int64_t requests, lanes, transactions, least;  // by warps; global: 32-byte sectors, shared: passes over the banks
};

struct Launch {
  uint32_t blocks[3], threads[3];
  uint64_t shared;           // bytes of dynamic shared memory
  int32_t workers;           // threads of the system
  int32_t order;             // -1: threads in order; else the seed of a random one
  const Array* arrays;
  int32_t array_count;
  int32_t fault_room, fault_count;
  int32_t site_room, site_count;
  int32_t unused;
  Fault* faults;
  Site* sites;
  int64_t barriers, block_count;  // how often a block passed a barrier; blocks that ran
};

// --- between the two halves ------------------------------------------------------------------------------------------

enum class State : uint8_t { ready, barrier, warp, done, failed };
enum class Together : uint8_t { sync, shuffle, ballot };

struct Copy { void* to; const void* from; int bytes; uint64_t at; };

struct Thread {
  Place place;
  void* stack_pointer;       // while another one runs
  void* stack;
  State state;
  Together together;         // what it waits for with its warp: in state `warp`
  int number;                // in its block
  unsigned mask;
  uint64_t value, result;
  int source;
  uint64_t at;               // where it waits
  std::vector<std::vector<Copy>> copies;  // asynchronous ones: a group each, the last one still open
};

struct Memory { char* start; size_t bytes; };

struct Worker {
  Launch* launch;
  const Kernel* kernel;
  void** arguments;
  std::vector<Thread> threads;
  std::vector<unsigned> waiting;  // lanes of each warp that wait for their warp
  Thread* now;
  void* stack_pointer;       // of the scheduler
  uint64_t block;            // its number
  int at_barrier, done;
  bool failed;
  Memory fixed, dynamic;     // shared memory
};

extern thread_local Worker* worker;
constexpr size_t STACK = 64 << 10;

inline uint64_t here(void* address) { extern char __ehdr_start __attribute__((visibility("hidden"))); return (char*)address - &__ehdr_start; }
void report(Fault fault);    // of worker->now, if it doesn't say whose
[[noreturn]] void give_up(); // ends the launch from within a kernel

// What the checker is told. In plain mode there is none.
struct Checker {
  virtual void launch_begins() = 0;
  virtual void block_begins() = 0;
  virtual void barrier_passed() = 0;                        // by all threads of the block
  virtual void warp_synchronised(unsigned warp, unsigned mask) = 0;
  virtual void touched(const void* address, size_t bytes, bool write, uint64_t at, bool atomic, bool counted, bool fills) = 0;
  virtual void block_ends() = 0;
  virtual void launch_ends() = 0;
};
extern Checker* checker;
