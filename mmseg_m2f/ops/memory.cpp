// PyTorch's allocator on a CPU, but that large tensors live in pages that others have left.
//
// A page from the system costs a fault, and is cleared before it is written. A heap that keeps what
// is freed saves that, but where sizes change, holes that nothing fits into stay with it. Pages need
// not lie side by side to be used so: Linux's mremap moves them without a copy. So what is freed
// waits in a pool, a tensor is put together from pieces of it, and the system is asked for what is
// missing alone: tensors and pool together hold what the tensors alone held at their peak.

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <map>
#include <mutex>
#include <set>
#include <unordered_map>
#include <utility>

namespace {

// Bytes of the smallest tensor that lives here, and of the unit that sizes are rounded up to:
// whole pages.
constexpr std::size_t kSmallest = 1 << 20, kUnit = 1 << 16;
// Mappings of which the pool is given up: Linux allows a process some 65,000, and tensors of many
// small pieces take long to put together.
constexpr std::size_t kMostSeams = 1 << 13;

class Pool {
 public:
  // Null if the system has no more.
  void* take(std::size_t bytes) {
    if (bytes > PTRDIFF_MAX - kUnit) return nullptr;
    const std::size_t size = (bytes + kUnit - 1) / kUnit * kUnit;
    const std::lock_guard<std::mutex> guard(mutex_);
    char* at = cut(size);
    if (!at) at = assemble(size);
    if (at) taken_.emplace(at, size);
    return at;
  }

  // Its bytes, and it is the caller's to `give`; 0 if it was not taken here.
  std::size_t release(void* memory) {
    const std::lock_guard<std::mutex> guard(mutex_);
    const auto found = taken_.find(memory);
    if (found == taken_.end()) return 0;
    const std::size_t size = found->second;
    taken_.erase(found);
    return size;
  }

  void give(void* memory, std::size_t size) {
    const std::lock_guard<std::mutex> guard(mutex_);
    join(static_cast<char*>(memory), size);
  }

  // Bytes in the pool.
  std::size_t waiting() {
    const std::lock_guard<std::mutex> guard(mutex_);
    std::size_t sum = 0;
    for (const auto& piece : pieces_) sum += piece.second;
    return sum;
  }

  void lock() { mutex_.lock(); }
  void unlock() { mutex_.unlock(); }

  // In the child of a fork: pages of the pool would be copied as soon as one side writes to them.
  void unlock_in_child() {
    give_up();
    mutex_.unlock();
  }

 private:
  using Piece = std::pair<char*, std::size_t>;

  std::mutex mutex_;
  std::map<char*, std::size_t> pieces_;           // what waits; no two side by side
  std::unordered_map<void*, std::size_t> taken_;  // tensors
  // Where mappings of the system may meet. Before 6.17 Linux moves no range across them.
  std::set<char*> seams_;

  // From the smallest piece that is large enough.
  char* cut(std::size_t size) {
    auto best = pieces_.end();
    for (auto piece = pieces_.begin(); piece != pieces_.end(); ++piece)
      if (piece->second >= size && (best == pieces_.end() || piece->second < best->second))
        best = piece;
    if (best == pieces_.end()) return nullptr;
    char* at = best->first;
    const std::size_t rest = best->second - size;
    pieces_.erase(best);
    if (rest) pieces_.emplace(at + size, rest);
    return at;
  }

  // From the pool's pieces, which are all smaller, and then from the system.
  char* assemble(std::size_t size) {
    if (seams_.size() > kMostSeams) give_up();
    char* at = map(size);
    if (!at) {
      give_up();
      at = map(size);
    }
    if (!at) return nullptr;
    seams_.insert({at, at + size});
    for (char* to = at; to < at + size && !pieces_.empty();) {
      const auto piece = next_piece(at + size - to);
      if (!move(piece, to)) {
        unmap(at, to - at);
        // In between may be a gap by now, and in the gap what another thread has mapped.
        unmap(to + piece.second, at + size - to - piece.second);
        give_up();
        return nullptr;
      }
      to += piece.second;
      seams_.insert(to);
    }
    return at;
  }

  // At most `most` bytes of one mapping, from the end of the smallest piece, so that small ones do
  // not pile up.
  Piece next_piece(std::size_t most) const {
    const auto smallest = std::min_element(
        pieces_.begin(), pieces_.end(),
        [](const auto& one, const auto& other) { return one.second < other.second; });
    char *start = smallest->first, *end = start + smallest->second;
    const auto seam = seams_.lower_bound(end);
    if (seam != seams_.begin()) start = std::max(start, *std::prev(seam));
    const std::size_t size = std::min<std::size_t>(most, end - start);
    return {end - size, size};
  }

  // False if the system refuses.
  bool move(const Piece& from, char* to) {
    const int how = MREMAP_MAYMOVE | MREMAP_FIXED;
    if (mremap(from.first, from.second, from.second, how, to) == MAP_FAILED) return false;
    forget_seams(from);
    const auto whole = std::prev(pieces_.upper_bound(from.first));
    whole->second -= from.second;
    if (!whole->second) pieces_.erase(whole);
    return true;
  }

  // Puts a piece into the pool.
  void join(char* at, std::size_t size) {
    auto next = pieces_.lower_bound(at);
    if (next != pieces_.end() && next->first == at + size) {
      size += next->second;
      next = pieces_.erase(next);
    }
    if (next != pieces_.begin()) {
      const auto before = std::prev(next);
      if (before->first + before->second == at) {
        before->second += size;
        return;
      }
    }
    pieces_.emplace(at, size);
  }

  // The pool goes back to the system, but for what the system cannot take from amidst a mapping.
  void give_up() {
    for (auto piece = pieces_.begin(); piece != pieces_.end();)
      piece = unmap(piece->first, piece->second) ? pieces_.erase(piece) : std::next(piece);
  }

  bool unmap(char* at, std::size_t size) {
    if (size == 0 || munmap(at, size) != 0) return false;
    forget_seams({at, size});
    return true;
  }

  // Of a range that is mapped no longer: what will be mapped there brings its own.
  void forget_seams(const Piece& gone) {
    seams_.erase(seams_.lower_bound(gone.first), seams_.upper_bound(gone.first + gone.second));
  }

  static char* map(std::size_t size) {
    const int how = MAP_PRIVATE | MAP_ANONYMOUS;
    void* at = mmap(nullptr, size, PROT_READ | PROT_WRITE, how, -1, 0);
    return at == MAP_FAILED ? nullptr : static_cast<char*>(at);
  }
};

// Neither is ever destroyed: tensors may outlive everything else.
Pool& pool() {
  static Pool& only = *new Pool;
  return only;
}
c10::Allocator* pytorchs = nullptr;

void free_any(void* memory) {
  const std::size_t size = pool().release(memory);
  if (!size) return pytorchs->raw_deleter()(memory);
  // Before another thread can have the same address; without the lock, as a profiler may allocate.
  c10::profiledCPUMemoryReporter().Delete(memory);
  pool().give(memory, size);
}

class Recycling final : public c10::Allocator {
 public:
  c10::DataPtr allocate(std::size_t size) override {
    void* memory = size < kSmallest ? nullptr : pool().take(size);
    // It has its own way to say that there is no more. What it frees itself needs no search.
    if (!memory) return pytorchs->allocate(size);
    c10::profiledCPUMemoryReporter().New(memory, size);
    return {memory, memory, &free_any, c10::Device(c10::DeviceType::CPU)};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &free_any; }

  void copy_data(void* to, const void* from, std::size_t size) const override {
    default_copy_data(to, from, size);
  }
};

// False if something else than PyTorch's own is there, or the unit is not of whole pages.
bool install() {
  pytorchs = c10::GetDefaultCPUAllocator();
  if (c10::GetAllocator(c10::DeviceType::CPU) != pytorchs) return false;
  if (kUnit % sysconf(_SC_PAGESIZE)) return false;
  pthread_atfork([] { pool().lock(); }, [] { pool().unlock(); },
                 [] { pool().unlock_in_child(); });
  static Recycling& only = *new Recycling;
  c10::SetAllocator(c10::DeviceType::CPU, &only, 1);
  return c10::GetAllocator(c10::DeviceType::CPU) == &only;
}

}  // namespace

extern "C" {

// Puts the allocator before PyTorch's own, once; 0 if that cannot be.
int recycle() {
  static const bool done = install();
  return done;
}

// Bytes in the pool.
std::int64_t waiting() { return static_cast<std::int64_t>(pool().waiting()); }

}  // extern "C"
