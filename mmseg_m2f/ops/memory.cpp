// PyTorch's allocator on a CPU, but that large tensors live in pages that others have left.
//
// A page from the system costs a fault, and is cleared before it is written. A heap that keeps what
// is freed saves that, but of sizes that change it keeps holes, too. Pages need not lie side by
// side to be used so: Linux's mremap moves them without a copy. So what is freed waits in a pool,
// a tensor is put together from pieces of it, and the system is asked for what is missing alone:
// tensors and pool together hold what the tensors alone held at their peak.

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <map>
#include <mutex>
#include <set>
#include <unordered_map>

namespace {

// Bytes of the smallest tensor that lives here, and of the unit that sizes are rounded up to:
// a multiple of every usual page.
constexpr std::size_t kSmallest = 1 << 20, kUnit = 1 << 16;

class Pool {
 public:
  // Null if the system has no more.
  void* take(std::size_t bytes) {
    const std::size_t size = (bytes + kUnit - 1) / kUnit * kUnit;
    const std::lock_guard<std::mutex> guard(mutex_);
    char* at = cut(size);
    if (!at) at = assemble(size);
    if (!at) return nullptr;
    taken_.emplace(at, size);
    c10::profiledCPUMemoryReporter().New(at, bytes);
    return at;
  }

  // False if it was not taken here.
  bool give(void* memory) {
    const std::lock_guard<std::mutex> guard(mutex_);
    const auto found = taken_.find(memory);
    if (found == taken_.end()) return false;
    c10::profiledCPUMemoryReporter().Delete(memory);
    join(static_cast<char*>(memory), found->second);
    taken_.erase(found);
    return true;
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
    release();
    mutex_.unlock();
  }

 private:
  using Pieces = std::map<char*, std::size_t>;

  std::mutex mutex_;
  Pieces pieces_;                                 // what waits; no two side by side
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
    char* at = map(nullptr, size, 0);
    if (!at) {
      // Too much, or too many mappings.
      release();
      at = map(nullptr, size, 0);
    }
    if (!at) return nullptr;
    seams_.insert({at, at + size});
    for (std::size_t done = 0; done < size && !pieces_.empty();) {
      const std::size_t moved = move(size - done, at + done);
      if (!moved) {
        // Too many mappings, as it seems. A failed move may leave a gap.
        release();
        if (map(at + done, size - done, MAP_FIXED)) break;
        munmap(at, size);
        return nullptr;
      }
      done += moved;
      seams_.insert(at + done);
    }
    return at;
  }

  // The end of the smallest piece, so that small ones do not pile up, `most` bytes of one mapping.
  // Returns their number, 0 if the system refuses.
  std::size_t move(std::size_t most, char* to) {
    const auto piece = std::min_element(
        pieces_.begin(), pieces_.end(),
        [](const auto& one, const auto& other) { return one.second < other.second; });
    char *start = piece->first, *end = start + piece->second;
    const auto seam = seams_.lower_bound(end);
    if (seam != seams_.begin()) start = std::max(start, *std::prev(seam));
    const std::size_t size = std::min<std::size_t>(most, end - start);
    if (mremap(end - size, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, to) == MAP_FAILED) return 0;
    forget_seams(end - size, end);
    piece->second -= size;
    if (!piece->second) pieces_.erase(piece);
    return size;
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

  // Gives the pool back to the system.
  void release() {
    for (const auto& piece : pieces_) {
      munmap(piece.first, piece.second);
      forget_seams(piece.first, piece.first + piece.second);
    }
    pieces_.clear();
  }

  // Of a range that is mapped no longer: what will be mapped there brings its own.
  void forget_seams(char* start, char* end) {
    seams_.erase(seams_.lower_bound(start), seams_.upper_bound(end));
  }

  static char* map(char* at, std::size_t size, int flags) {
    void* found = mmap(at, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
    return found == MAP_FAILED ? nullptr : static_cast<char*>(found);
  }
};

// Neither is ever destroyed: tensors may outlive everything else.
Pool& pool() {
  static Pool& only = *new Pool;
  return only;
}
c10::Allocator* before = nullptr;

void free_large(void* memory) { pool().give(memory); }

void free_any(void* memory) {
  if (!pool().give(memory)) before->raw_deleter()(memory);
}

class Recycling final : public c10::Allocator {
 public:
  c10::DataPtr allocate(std::size_t size) override {
    void* memory = size < kSmallest ? nullptr : pool().take(size);
    // It has its own way to say that there is no more.
    if (!memory) return before->allocate(size);
    return {memory, memory, &free_large, c10::Device(c10::DeviceType::CPU)};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &free_any; }

  void copy_data(void* to, const void* from, std::size_t size) const override {
    default_copy_data(to, from, size);
  }
};

}  // namespace

extern "C" {

// Puts the allocator before PyTorch's own; false if another one has precedence.
bool recycle() {
  static Recycling& only = *new Recycling;
  c10::Allocator* now = c10::GetAllocator(c10::DeviceType::CPU);
  if (now == &only) return true;
  // Of PyTorch's, whose raw pointers can be freed by what it names.
  if (!now->raw_deleter()) return false;
  before = now;
  c10::SetAllocator(c10::DeviceType::CPU, &only, 1);
  if (c10::GetAllocator(c10::DeviceType::CPU) != &only) return false;
  pthread_atfork([] { pool().lock(); }, [] { pool().unlock(); },
                 [] { pool().unlock_in_child(); });
  return true;
}

// Bytes in the pool.
std::size_t waiting() { return pool().waiting(); }

}  // extern "C"
