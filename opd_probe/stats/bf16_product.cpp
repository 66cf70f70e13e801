// Products of bf16 matrices with float32 results on a CPU, which torch's own operators round to bf16.
//
// The output layer's weight is packed once into blocks of ids, pairs of inputs side by side, as the processor's bf16
// units read them; torch's micro-kernel (oneDNN's batch-reduce product) accumulates in float32 and stores float32.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/native/CPUBlas.h>
#include <torch/library.h>

#include <algorithm>

namespace {

// out[n, W] = hidden[n, d] · weightᵀ, with packed[ceil(W / block), d / 2, block, 2] of weight[W, d].
void bf16_product(const at::Tensor& hidden, const at::Tensor& packed, at::Tensor out) {
  const int64_t rows = hidden.size(0), depth = hidden.size(1), width = out.size(1);
  const int64_t blocks = packed.size(0), block = packed.size(2);
  TORCH_CHECK(hidden.scalar_type() == at::kBFloat16 && packed.scalar_type() == at::kBFloat16, "factors: not bf16");
  TORCH_CHECK(out.scalar_type() == at::kFloat && out.size(0) == rows, "out: not float32 of as many rows as hidden");
  TORCH_CHECK(packed.dim() == 4 && packed.size(1) * 2 == depth && packed.size(3) == 2, "packed: not of hidden's depth");
  TORCH_CHECK((blocks - 1) * block < width && width <= blocks * block, "packed: not of out's width");
  TORCH_CHECK(hidden.is_contiguous() && packed.is_contiguous() && out.is_contiguous(), "a tensor is not contiguous");
  const auto* input = hidden.const_data_ptr<at::BFloat16>();
  const auto* weight = packed.const_data_ptr<at::BFloat16>();
  auto* result = out.mutable_data_ptr<float>();
  constexpr int64_t tile = 64;  // rows whose inputs stay in the first cache beside a block of weights
  at::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const int64_t columns = std::min(block, width - b * block);
      for (int64_t row = 0; row < rows; row += tile) {
        at::native::cpublas::brgemm(
            std::min(tile, rows - row), columns, depth, depth, block, width, /*add_C=*/false, input + row * depth,
            weight + b * block * depth, result + row * width + b * block, /*is_vnni=*/true);
      }
    }
    at::native::cpublas::brgemm_release(true);
  });
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(opd_probe, library) {
  library.def("bf16_product(Tensor hidden, Tensor packed, Tensor(a!) out) -> ()");
}

TORCH_LIBRARY_IMPL(opd_probe, CPU, library) { library.impl("bf16_product", bf16_product); }
