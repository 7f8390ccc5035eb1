// Whether a row's result must not depend on how many rows are in the call. On the CPU it never
// does. On CUDA the fastest float matrix product and attention differ with the size, each in its
// own order of summation; with this set they keep to one order. Process-wide, off at the start.
#pragma once

namespace ernie {

bool batch_invariant();
void set_batch_invariant(bool on);  // for the ops called after it returns, from any thread

}  // namespace ernie
