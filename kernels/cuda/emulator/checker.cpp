// The checker: sees every load and store of a kernel, and says which of them are wrong and what all of them cost.
//
// In checked mode g++ compiles the kernel with -fsanitize=thread,bounds, which calls __tsan_read4(address) and the like
// before each access. Those functions are below; they are ours, no sanitiser is linked. Of each word of four bytes that
// a kernel may touch we keep who wrote it last and who has read it since. Two accesses of one word by two threads, one
// of them a write, are a race unless something orders them: within a block a barrier between them, or within a warp a
// __syncwarp; between blocks nothing does. So a race is found in whatever order the threads ran.
//
// What is not seen: order between blocks made by atomics and fences, which counts as a race; and a pointer that walks from
// one shared array right into the next one (an index does not: -fsanitize=bounds knows the array's size).
#include "emulator.h"

#include <link.h>

#include <algorithm>
#include <array>
#include <map>
#include <unordered_map>

namespace {

struct Access { uint32_t block, epoch, clock, at; int16_t thread; bool valid, atomic; };

enum Readers : uint8_t { few, warps, blocks };  // `few`: lanes of one warp, in `lanes`

struct Word { Access write, read; uint32_t lanes; Readers readers; bool written; };

struct Region { char* start; size_t bytes; int array; std::vector<Word> words; };

// The accesses that a warp's lanes make at one place in the code, each for the same time since the last barrier: on a GPU
// one request.
struct Request { uint32_t lanes; char* address[warpSize]; };

struct Watcher : Checker {
  bool running = false;
  std::vector<Region> arrays;
  Region fixed, dynamic;
  uint32_t epoch;                                    // barriers that the block passed
  std::vector<std::array<uint32_t, warpSize>> clock; // of each thread: what it knows of its warp's lanes
  std::unordered_map<uint64_t, int> numbers;         // place in the code -> site
  std::vector<Site> sites;
  std::vector<std::vector<int>> times;               // [thread][site] since the last barrier
  std::vector<std::vector<std::vector<Request>>> requests;  // [warp][site][time]
  Memory code;                                       // the library: its constants

  Watcher() { checker = this; }

  // --- a launch and its blocks ---

  void launch_begins() override {
    Launch& launch = *worker->launch;
    arrays.clear(), sites.clear(), numbers.clear();
    for (int i = 0; i < launch.array_count; i++) {
      auto [start, bytes] = launch.arrays[i];
      arrays.push_back({(char*)start, bytes, i, std::vector<Word>(bytes / 4 + 2)});
    }
    dl_iterate_phdr([](dl_phdr_info* info, size_t, void* found) {
      char *first = nullptr, *last = nullptr;
      for (int i = 0; i < info->dlpi_phnum; i++)
        if (auto& header = info->dlpi_phdr[i]; header.p_type == PT_LOAD) {
          char* start = (char*)info->dlpi_addr + header.p_vaddr;
          if (!first) first = start;
          last = start + header.p_memsz;
        }
      if ((char*)&checker < first || (char*)&checker >= last) return 0;
      *(Memory*)found = {first, size_t(last - first)};
      return 1;
    }, &code);
  }

  void block_begins() override {
    Worker& w = *worker;
    // The dynamic array is one of the thread-local variables too, but only as much of it as the launch asked for counts.
    fixed = {w.fixed.start, w.fixed.bytes, FIXED, std::vector<Word>(w.fixed.bytes / 4 + 2)};
    dynamic = {w.dynamic.start, size_t(w.launch->shared), DYNAMIC, std::vector<Word>(w.launch->shared / 4 + 2)};
    epoch = 0;
    clock.assign(w.threads.size(), {});
    for (size_t i = 0; i < clock.size(); i++) clock[i][i % warpSize] = 1;
    times.assign(w.threads.size(), {});
    requests.assign(w.waiting.size(), {});
    running = true;
  }

  void barrier_passed() override {
    epoch++;
    count_requests();
  }

  void block_ends() override {
    running = false;
    count_requests();
  }

  void launch_ends() override {
    Launch& launch = *worker->launch;
    launch.site_count = std::min<int>(sites.size(), launch.site_room);
    std::copy_n(sites.begin(), launch.site_count, launch.sites);
  }

  // Each lane knows from now on what any of them did before: it takes the largest of all their clocks.
  void warp_synchronised(unsigned warp, unsigned mask) override {
    std::array<uint32_t, warpSize> all{};
    auto lanes = clock.begin() + warp * warpSize;
    for (unsigned rest = mask; rest; rest &= rest - 1)
      for (int i = 0; i < warpSize; i++) all[i] = std::max(all[i], lanes[__builtin_ctz(rest)][i]);
    for (unsigned rest = mask; rest; rest &= rest - 1) {
      int lane = __builtin_ctz(rest);
      lanes[lane] = all;
      lanes[lane][lane]++;
    }
  }

  // --- an access ---

  void touched(const void* place, size_t bytes, bool write, uint64_t at, bool atomic, bool counted, bool fills) override {
    if (!running) return;
    auto address = (char*)place;
    Region* region = find(address, bytes);
    if (!region) {
      if (!private_to_it(address, bytes)) out_of_bounds(address, bytes, write, at);
      return;
    }
    Thread& me = *worker->now;
    if (bytes <= 16 && (uintptr_t)address % bytes)
      report({.kind = MISALIGNED, .detail = write, .at = at, .array = region->array, .size = int(bytes), .offset = address - region->start});
    Access access{uint32_t(worker->block), epoch, clock[me.number][me.number % warpSize], uint32_t(at), int16_t(me.number), true, atomic};
    size_t first = (address - region->start + (uintptr_t(region->start) & 3)) / 4, last = (address + bytes - 1 - region->start + (uintptr_t(region->start) & 3)) / 4;
    for (size_t i = first; i <= last; i++) {
      Word& word = region->words[i];
      int64_t offset = address - region->start;
      if (region->array < 0 && !word.written && (!write || atomic))
        report({.kind = NEVER_WRITTEN, .at = at, .array = region->array, .size = int(bytes), .offset = offset});
      check_order(word, access, write, region->array, bytes, offset);
      if (write) {
        word.written |= fills;
        word.write = access, word.read.valid = false;
      } else remember_reader(word, access);
    }
    if (counted) count(*region, address, bytes, write, at);
  }

  Region* find(char* address, size_t bytes) {
    auto inside = [&](Region& r) { return address >= r.start && address + bytes <= r.start + r.bytes; };
    for (Region& array : arrays)
      if (inside(array)) return &array;
    if (inside(dynamic)) return &dynamic;
    return inside(fixed) && !in_dynamic(address, bytes) ? &fixed : nullptr;
  }

  // In what a launch could have asked for.
  bool in_dynamic(char* address, size_t bytes) {
    return address + bytes > worker->dynamic.start && address < worker->dynamic.start + worker->dynamic.bytes;
  }

  // The thread's own stack, where it is (Place), and constants.
  bool private_to_it(char* address, size_t bytes) {
    auto within = [&](void* start, size_t size) { return address >= (char*)start && address + bytes <= (char*)start + size; };
    return within(worker->now->stack, STACK) || within(&worker->now->place, sizeof(Place)) || within(code.start, code.bytes);
  }

  bool ordered(const Access& before, const Access& now) {
    if (before.block != now.block) return false;
    if (before.thread == now.thread || before.epoch != now.epoch) return true;
    return before.thread / warpSize == now.thread / warpSize && clock[now.thread][before.thread % warpSize] >= before.clock;
  }

  void check_order(Word& word, const Access& now, bool write, int array, size_t bytes, int64_t offset) {
    bool race = false;
    const Access* other = &word.write;
    if (word.write.valid && !ordered(word.write, now) && !(word.write.atomic && now.atomic)) race = true;
    else if (write && word.read.valid) {
      other = &word.read;
      if (word.readers == blocks || other->block != now.block) race = true;
      else if (other->epoch == now.epoch) {
        race = word.readers == warps;
        for (unsigned rest = word.lanes; rest && !race; rest &= rest - 1) {
          Access reader = *other;
          reader.thread = reader.thread / warpSize * warpSize + __builtin_ctz(rest);
          race = !ordered(reader, now);
        }
      }
    }
    if (!race) return;
    Launch& launch = *worker->launch;
    auto at = [](uint64_t n, const uint32_t* extents) {
      return uint3{unsigned(n % extents[0]), unsigned(n / extents[0] % extents[1]), unsigned(n / extents[0] / extents[1])};
    };
    report({.kind = RACE, .detail = int(write) | int(other == &word.write) << 1,
            .other_block = at(other->block, launch.blocks), .other_thread = at(other->thread, launch.threads),
            .at = now.at, .other_at = other->at, .array = array, .size = int(bytes), .offset = offset});
  }

  void remember_reader(Word& word, const Access& now) {
    Access& read = word.read;
    uint32_t lane = 1u << now.thread % warpSize;
    if (!read.valid) word.readers = few, word.lanes = lane;
    else if (read.block != now.block || word.readers == blocks) word.readers = blocks;
    else if (read.epoch != now.epoch) word.readers = few, word.lanes = lane;
    else if (read.thread / warpSize != now.thread / warpSize) word.readers = warps;
    else word.lanes |= lane;
    uint32_t clock = read.valid && read.epoch == now.epoch ? std::max(read.clock, now.clock) : now.clock;
    read = now, read.clock = clock;
  }

  void out_of_bounds(char* address, size_t bytes, bool write, uint64_t at) {
    // Which memory was meant: the nearest.
    Region* nearest = &fixed;
    auto distance = [&](Region& r) { return address < r.start ? size_t(r.start - address) : address >= r.start + r.bytes ? size_t(address - r.start - r.bytes) : 0; };
    for (Region& array : arrays)
      if (distance(array) < distance(*nearest)) nearest = &array;
    if (distance(dynamic) < distance(*nearest) || in_dynamic(address, bytes)) nearest = &dynamic;
    report({.kind = OUT_OF_BOUNDS, .detail = write, .at = at, .array = nearest->array, .size = int(bytes), .offset = address - nearest->start});
    give_up();  // before it happens: it could be anybody's memory
  }

  // --- what it costs ---

  void count(Region& region, char* address, size_t bytes, bool write, uint64_t at) {
    auto [found, fresh] = numbers.try_emplace(2 * at + (region.array < 0), sites.size());  // an asynchronous copy reads and writes at one place
    if (fresh) sites.push_back({.at = at, .shared = region.array < 0, .writes = write, .size = int(bytes)});
    size_t site = found->second;
    int thread = worker->now->number;
    auto& mine = times[thread];
    if (mine.size() <= site) mine.resize(site + 1);
    auto& warp = requests[thread / warpSize];
    if (warp.size() <= site) warp.resize(site + 1);
    size_t time = mine[site]++;
    if (warp[site].size() <= time) warp[site].resize(time + 1);
    Request& request = warp[site][time];
    request.lanes |= 1u << thread % warpSize;
    request.address[thread % warpSize] = address;
  }

  void count_requests() {
    for (auto& warp : requests)
      for (size_t s = 0; s < warp.size(); s++) {
        for (Request& request : warp[s]) sites[s].shared ? count_shared(sites[s], request) : count_global(sites[s], request);
        warp[s].clear();
      }
    for (auto& thread : times) std::fill(thread.begin(), thread.end(), 0);
  }

  static int different(std::vector<uint64_t>& numbers) {
    std::sort(numbers.begin(), numbers.end());
    return std::unique(numbers.begin(), numbers.end()) - numbers.begin();
  }

  // Global memory comes in sectors of 32 bytes. The least: as many as hold the bytes that were asked for.
  static void count_global(Site& site, Request& request) {
    std::vector<uint64_t> sectors, words;
    for (unsigned rest = request.lanes; rest; rest &= rest - 1) {
      auto address = (uint64_t)request.address[__builtin_ctz(rest)];
      for (uint64_t a = address / 32; a <= (address + site.size - 1) / 32; a++) sectors.push_back(a);
      for (uint64_t a = address / 4; a <= (address + site.size - 1) / 4; a++) words.push_back(a);
      site.lanes++;
    }
    site.requests++;
    site.transactions += different(sectors);
    site.least += (different(words) * 4 + 31) / 32;
  }

  // Shared memory has 32 banks of four bytes: a pass gives each lane a word, if no bank is asked for two different ones.
  // Lanes that move 8 or 16 bytes go by halves or quarters of a warp.
  static void count_shared(Site& site, Request& request) {
    int each = site.size > 4 ? warpSize * 4 / site.size : warpSize;
    site.requests++;
    for (int first = 0; first < warpSize; first += each) {
      std::map<int, std::vector<uint64_t>> banks;
      for (int lane = first; lane < first + each; lane++) {
        if (!(request.lanes >> lane & 1)) continue;
        site.lanes++;
        for (uint64_t a = (uint64_t)request.address[lane] / 4; a <= ((uint64_t)request.address[lane] + site.size - 1) / 4; a++) banks[a % 32].push_back(a);
      }
      int passes = 0;
      for (auto& [bank, words] : banks) passes = std::max(passes, different(words));
      site.transactions += passes;
      site.least += passes > 0;
    }
  }
};

Watcher watcher;

}  // namespace

// --- what g++ calls -----------------------------------------------------------------------------------------------------

#define ACCESS(bytes)                                                                                                                       \
  void __tsan_read##bytes(void* a) { watcher.touched(a, bytes, false, here(__builtin_return_address(0)), false, true, true); }              \
  void __tsan_write##bytes(void* a) { watcher.touched(a, bytes, true, here(__builtin_return_address(0)), false, true, true); }              \
  void __tsan_unaligned_read##bytes(void* a) { watcher.touched(a, bytes, false, here(__builtin_return_address(0)), false, true, true); }    \
  void __tsan_unaligned_write##bytes(void* a) { watcher.touched(a, bytes, true, here(__builtin_return_address(0)), false, true, true); }

struct SourcePlace { const char* file; uint32_t line, column; };

extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
ACCESS(1) ACCESS(2) ACCESS(4) ACCESS(8) ACCESS(16)
void __tsan_read_range(void* a, size_t bytes) { watcher.touched(a, bytes, false, here(__builtin_return_address(0)), false, true, true); }
void __tsan_write_range(void* a, size_t bytes) { watcher.touched(a, bytes, true, here(__builtin_return_address(0)), false, true, true); }

void __ubsan_handle_out_of_bounds(SourcePlace* place, intptr_t index) {
  if (!watcher.running) return;
  report({.kind = INDEX, .at = here(__builtin_return_address(0)), .offset = index, .file = place->file, .line = int(place->line)});
  give_up();
}
}
