// The scan kernels without Python, for processors that only an emulator runs: reads float32 tensors from a file, writes
// the results of forward and backward to another. See test_other_processors.py for the order of both.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "kernels.h"

namespace ssmseq {
extern const ScanKernels scan_foreign;
}
using ssmseq::Kind;
using ssmseq::Mixers;
using ssmseq::Rows;
using Numbers = std::vector<float>;

int main(int, char** argv) {
  std::FILE* in = std::fopen(argv[1], "rb");
  int64_t size[4];
  if (!in || std::fread(size, 8, 4, in) != 4) return 1;
  const int64_t B = size[0], L = size[1], D = size[2], N = size[3];
  auto take = [&](int64_t n) {
    Numbers v(n);
    if (std::fread(v.data(), 4, n, in) != static_cast<size_t>(n)) std::exit(1);
    return v;
  };
  auto rows = [&](Numbers& v) { return Rows{reinterpret_cast<char*>(v.data()), Kind::native, L * D, D, 1}; };
  auto states = [&](Numbers& v) { return Rows{reinterpret_cast<char*>(v.data()), Kind::native, D * N, 1, N}; };
  auto mixers = [&](Numbers& v) {
    return Mixers{reinterpret_cast<char*>(v.data()), Kind::native, L * N, N, N, 1, false};
  };
  Numbers u = take(B * L * D), delta = take(B * L * D), A = take(D * N), Bm = take(B * L * N), C = take(B * L * N);
  Numbers skip = take(D), z = take(B * L * D), bias = take(D), h0 = take(B * D * N);
  Numbers dy = take(B * L * D), dhT = take(B * D * N);
  Numbers y(B * L * D), hT(B * D * N), kept(B * (L / ssmseq::kChunk + 1) * N * D);
  Numbers du(B * L * D), ddelta(B * L * D), dA(D * N), dB(B * L * N), dC(B * L * N), dskip(D), dz(B * L * D), dbias(D),
      dh0(B * D * N);
  ssmseq::Scan<float> s;
  s.B = B, s.L = L, s.D = D, s.N = N;
  s.u = rows(u), s.delta = rows(delta), s.z = rows(z), s.h0 = states(h0), s.A = {states(A).p, Kind::native, 0, 1, N};
  s.Bm = mixers(Bm), s.Cm = mixers(C), s.skip = skip.data(), s.bias = bias.data();
  s.y = rows(y), s.hT = states(hT), s.checkpoint = kept.data();
  ssmseq::scan_foreign.forward_f32(&s, 1, 1);
  s.dy = rows(dy), s.dhT = states(dhT), s.du = rows(du), s.ddelta = rows(ddelta), s.dz = rows(dz), s.dh0 = states(dh0);
  s.dB = mixers(dB), s.dC = mixers(dC), s.dA = dA.data(), s.dskip = dskip.data(), s.dbias = dbias.data();
  ssmseq::scan_foreign.backward_f32(&s, 1, 1);
  std::FILE* out = std::fopen(argv[2], "wb");
  for (const Numbers* v : {&y, &hT, &du, &ddelta, &dA, &dB, &dC, &dskip, &dz, &dbias, &dh0})
    std::fwrite(v->data(), 4, v->size(), out);
  std::fclose(out);
}
