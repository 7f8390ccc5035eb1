// What this machine can do at best, measured: the figure that benches set their own beside.
#pragma once

#include <cstdint>

namespace ernie {

// Bytes per second of reading `nbytes` of memory once, front to back, by all threads of the pool.
double measure_read_bandwidth(int64_t nbytes);

}  // namespace ernie
