// The selective scan for one instruction set.
#include "scan_backward.h"
#include "scan_forward.h"
#include "state_update.h"

namespace ssmseq {
extern const ScanKernels SSMSEQ_CONCAT(scan_, SSMSEQ_ISA) = {forward<float>,  forward<double>, backward<float>,
                                                             backward<double>, update<float>,   update<double>};
}
