#include "core/parallel.h"

#include <pthread.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "core/checked.h"
#include "core/error.h"

namespace ernie {
namespace {

constexpr int kMaxThreads = 1024;
// How long a thread spins before it sleeps. A decode step is over a hundred short jobs with gaps
// of some microseconds; a sleeping thread takes longer than most of them to wake.
constexpr auto kSpin = std::chrono::microseconds(50);

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Spins until `ready` or kSpin has passed; says which.
template <class Ready>
bool spin_until(const Ready& ready) {
  const auto end = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 64; ++i) {
      if (ready()) return true;
      pause();
    }
  } while (std::chrono::steady_clock::now() < end);
  return ready();
}

// One job's chunks. Each thread starts on its own contiguous share, so that memory is walked as it
// was the time before, and then takes over what slower threads have not begun.
struct alignas(64) Share {
  std::atomic<int64_t> next{0};
  int64_t end = 0;
};

class Pool {
 public:
  explicit Pool(int threads) : threads_(threads), shares_(new Share[threads]) {
    try {
      for (int i = 1; i < threads; ++i) workers_.emplace_back(&Pool::work, this, i);
    } catch (const std::exception&) {  // the system has no more threads, or no memory for one
      const size_t started = workers_.size() + 1;
      stop();
      throw OutOfMemoryError("threads: could not start more than " + std::to_string(started) +
                             " of " + std::to_string(threads) +
                             "; call set_num_threads or set ERNIE_NUM_THREADS");
    }
  }

  ~Pool() { stop(); }

  int threads() const { return threads_; }

  void run(int64_t count, int64_t grain, const RangeBody& body) {
    const int64_t chunks = ceil_div(count, grain);
    count_ = count;
    grain_ = grain;
    body_ = &body;
    for (int i = 0; i < threads_; ++i) {
      shares_[i].next.store(chunks * i / threads_, std::memory_order_relaxed);
      shares_[i].end = chunks * (i + 1) / threads_;
    }
    gate_.store(kOpen);   // publishes the job
    epoch_.fetch_add(1);  // and tells of it
    if (sleepers_.load() > 0) {
      std::lock_guard<std::mutex> lock(mutex_);
      wake_.notify_all();
    }
    drain(0);
    // Every chunk is taken now. Workers that have not joined yet are not waited for: one that
    // sleeps or was preempted costs nothing.
    gate_.fetch_sub(kOpen);
    const auto all_left = [this] { return gate_.load() == 0; };
    if (!spin_until(all_left)) {
      std::unique_lock<std::mutex> lock(mutex_);
      caller_sleeps_.store(true);
      done_.wait(lock, all_left);
      caller_sleeps_.store(false);
    }
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
  }

 private:
  void stop() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stopping_ = true;
      epoch_.fetch_add(1);
    }
    wake_.notify_all();
    for (std::thread& t : workers_) t.join();
  }

  void drain(int self) {
    for (int i = 0; i < threads_; ++i) {
      Share& share = shares_[(self + i) % threads_];
      for (;;) {
        if (share.next.load(std::memory_order_relaxed) >= share.end) break;
        const int64_t chunk = share.next.fetch_add(1, std::memory_order_relaxed);
        if (chunk >= share.end) break;
        try {
          (*body_)(chunk* grain_, std::min(count_, (chunk + 1) * grain_));
        } catch (...) {
          std::lock_guard<std::mutex> lock(mutex_);
          if (!error_) error_ = std::current_exception();
        }
      }
    }
  }

  void work(int self) {
    uint64_t seen = 0;
    for (;;) {
      const auto has_job = [&] { return epoch_.load() != seen; };
      if (!spin_until(has_job)) {
        std::unique_lock<std::mutex> lock(mutex_);
        sleepers_.fetch_add(1);
        wake_.wait(lock, has_job);
        sleepers_.fetch_sub(1);
      }
      seen = epoch_.load();
      if (stopping_) return;
      if (!join()) continue;
      drain(self);
      if (gate_.fetch_sub(kMember) == kMember && caller_sleeps_.load()) {
        std::lock_guard<std::mutex> lock(mutex_);
        done_.notify_one();
      }
    }
  }

  // Counts this worker in, unless the job has closed already.
  bool join() {
    int gate = gate_.load();
    while (gate & kOpen)
      if (gate_.compare_exchange_weak(gate, gate + kMember)) return true;
    return false;
  }

  const int threads_;
  std::unique_ptr<Share[]> shares_;
  std::vector<std::thread> workers_;
  std::atomic<uint64_t> epoch_{0};
  static constexpr int kOpen = 1, kMember = 2;
  std::atomic<int> gate_{0};  // kOpen while a job may be joined, plus kMember per worker in it
  std::atomic<int> sleepers_{0};
  std::atomic<bool> caller_sleeps_{false}, stopping_{false};
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  int64_t count_ = 0, grain_ = 1;
  const RangeBody* body_ = nullptr;
  std::exception_ptr error_;
};

int default_threads() {
  const char* wanted = std::getenv("ERNIE_NUM_THREADS");
  if (wanted == nullptr || *wanted == '\0')
    return std::clamp(static_cast<int>(std::thread::hardware_concurrency()), 1, kMaxThreads);
  char* end = nullptr;
  const long n = std::strtol(wanted, &end, 10);
  if (*end != '\0' || n < 1 || n > kMaxThreads)
    throw ArgumentError("ERNIE_NUM_THREADS: expected a number from 1 to 1024, got " +
                        std::string(wanted).substr(0, 64));
  return static_cast<int>(n);
}

std::atomic<int>& thread_count() {
  static std::atomic<int> n{default_threads()};
  return n;
}

thread_local bool t_inside = false;

// Another library may have set the rounding or the flushing of denormals, of this thread alone: the
// same bits come from every thread only if a body runs in the default mode.
struct DefaultRounding {
#if defined(__x86_64__)
  unsigned before = _mm_getcsr();
  DefaultRounding() { _mm_setcsr(0x1f80); }  // as a process starts: nearest, denormals, no traps
  ~DefaultRounding() { _mm_setcsr(before); }
#endif
};

struct InsideScope {
  DefaultRounding rounding;
  bool outer = std::exchange(t_inside, true);
  ~InsideScope() { t_inside = outer; }
};

// One pool serves all callers, one job at a time. Never destroyed: worker threads must not outlive
// what they use at interpreter exit, and a forked child must not join threads that it lacks.
struct Pools {
  std::mutex job_mutex;
  Pool* pool = nullptr;
};
Pools* g_pools = nullptr;

// The child of a fork has none of the threads, and the mutex may be held by one of them: it starts
// afresh and leaks the parent's pool.
void reset_after_fork() { g_pools = new Pools; }

Pools& pools() {
  static const bool once = [] {
    g_pools = new Pools;
    pthread_atfork(nullptr, nullptr, reset_after_fork);
    return true;
  }();
  (void)once;
  return *g_pools;
}

}  // namespace

void parallel_for(int64_t count, int64_t grain, RangeBody body) {
  if (count <= 0) return;
  grain = std::max<int64_t>(1, grain);
  const int threads = num_threads();
  if (count <= grain || t_inside || threads == 1) {
    const InsideScope scope;
    for (int64_t begin = 0; begin < count; begin += grain)
      body(begin, std::min(count, begin + grain));
    return;
  }
  const auto marked = [&](int64_t begin, int64_t end) {
    const InsideScope scope;
    body(begin, end);
  };
  Pools& p = pools();
  std::lock_guard<std::mutex> one_job_at_a_time(p.job_mutex);
  if (p.pool == nullptr || p.pool->threads() != threads) {
    delete std::exchange(p.pool, nullptr);
    p.pool = new Pool(threads);
  }
  p.pool->run(count, grain, marked);
}

int num_threads() { return thread_count().load(); }

void set_num_threads(int64_t n) {
  if (n < 1 || n > kMaxThreads)
    throw ArgumentError("set_num_threads: n: expected 1 to 1024, got " + std::to_string(n));
  thread_count().store(static_cast<int>(n));
}

}  // namespace ernie
