#include "registry.h"

#include <vector>

namespace monarch {

// variants_enabled.def is what CMake kept of variants.def for this machine and these build options.
#define MONARCH_VARIANT(family, device, isa, compute) \
  extern const family##_family family##_##device##_##isa##_##compute;
#include "variants_enabled.def"
#undef MONARCH_VARIANT

namespace {

template <class Family>
std::vector<const Family*>& rows() {
  static std::vector<const Family*> list;
  return list;
}

const bool filled = [] {
#define MONARCH_VARIANT(family, device, isa, compute) \
  rows<family##_family>().push_back(&family##_##device##_##isa##_##compute);
#include "variants_enabled.def"
#undef MONARCH_VARIANT
  return true;
}();

}  // namespace

template <class Family>
std::span<const Family* const> kernels() {
  return rows<Family>();
}

template <class Family>
std::span<const VariantInfo> variant_infos() {
  static const std::vector<VariantInfo> infos = [] {
    std::vector<VariantInfo> list;
    for (const Family* row : rows<Family>()) list.push_back(row->info);
    return list;
  }();
  return infos;
}

template std::span<const FftConvKernels* const> kernels();
template std::span<const DepthwiseKernels* const> kernels();
template std::span<const MlpKernels* const> kernels();
template MONARCH_API std::span<const VariantInfo> variant_infos<FftConvKernels>();
template MONARCH_API std::span<const VariantInfo> variant_infos<DepthwiseKernels>();
template MONARCH_API std::span<const VariantInfo> variant_infos<MlpKernels>();

}  // namespace monarch
