#include "core/dispatch.h"

#include <cstdlib>
#include <cstring>

namespace ernie {

bool cuda_sync_wanted() {
  static const bool wanted = [] {
    const char* value = std::getenv("ERNIE_CUDA_SYNC");
    return value != nullptr && std::strcmp(value, "1") == 0;
  }();
  return wanted;
}

}  // namespace ernie
