// Vectors of 8 doubles and of 16 floats for what every tier compiles from the same text (body.h, dense.h).
//
// These files are included by a tier file inside its own namespace, after the tier's target pragma and its
// kVectorBytes. Sums run in 8 or 16 lanes whatever the width of a register, so that the order of every sum, and with it
// every bit of the result, is the same in all tiers. Nothing from the standard library is instantiated here: the linker
// could pick that copy for the whole program.

typedef double Doubles __attribute__((vector_size(kVectorBytes)));
typedef float Floats __attribute__((vector_size(kVectorBytes)));
typedef int32_t Ints __attribute__((vector_size(kVectorBytes)));
typedef float HalfFloats __attribute__((vector_size(kVectorBytes / 2)));
typedef int32_t HalfInts __attribute__((vector_size(kVectorBytes / 2)));
constexpr int kLanes = kVectorBytes / 8;  // doubles in a register
constexpr int kParts = 8 / kLanes;        // registers of 8 doubles, and of 16 floats

template <class V, class T>
inline V load(const T* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
template <class V, class T>
inline void store(T* p, V v) {
  __builtin_memcpy(p, &v, sizeof v);
}

// Registers that together hold 8 doubles or 16 floats. One vector type of that size would be taken apart lane by lane
// where no register is as wide.
template <class V>
struct Lanes {
  V part[kParts];
};
typedef Lanes<Doubles> D8;
typedef Lanes<Floats> F16;

template <class V>
inline Lanes<V> operator+(Lanes<V> a, Lanes<V> b) {
  for (int i = 0; i < kParts; ++i) a.part[i] += b.part[i];
  return a;
}
template <class V>
inline Lanes<V> operator-(Lanes<V> a, Lanes<V> b) {
  for (int i = 0; i < kParts; ++i) a.part[i] -= b.part[i];
  return a;
}
template <class V>
inline Lanes<V> operator*(Lanes<V> a, Lanes<V> b) {
  for (int i = 0; i < kParts; ++i) a.part[i] *= b.part[i];
  return a;
}
inline D8 operator+(D8 a, double b) {
  for (int i = 0; i < kParts; ++i) a.part[i] += b;
  return a;
}
inline D8 operator*(D8 a, double b) {
  for (int i = 0; i < kParts; ++i) a.part[i] *= b;
  return a;
}
inline D8 larger_magnitude(D8 a, D8 b) {  // of a, which is not negative, and |b|
  for (int i = 0; i < kParts; ++i) {
    const Doubles magnitude = b.part[i] < 0 ? -b.part[i] : b.part[i];
    a.part[i] = magnitude > a.part[i] ? magnitude : a.part[i];
  }
  return a;
}
inline D8 clamp(D8 a, double limit) {  // NaN to limit
  for (int i = 0; i < kParts; ++i) {
    const Doubles high = a.part[i] <= limit ? a.part[i] : Doubles{} + limit;
    a.part[i] = high >= -limit ? high : Doubles{} - limit;
  }
  return a;
}
inline void store_digits(int8_t* p, D8 digits) {
  int32_t wide[8];
  for (int i = 0; i < kParts; ++i) store(wide + i * kLanes, __builtin_convertvector(digits.part[i], HalfInts));
  for (int k = 0; k < 8; ++k) p[k] = int8_t(wide[k]);
}

// Part by part: the compiler would copy the whole in pieces that a wider load has to wait for.
template <class V, class T>
inline Lanes<V> load_lanes(const T* p) {
  Lanes<V> v;
  for (int i = 0; i < kParts; ++i) v.part[i] = load<V>(p + i * int(sizeof(V) / sizeof(T)));
  return v;
}
template <class V, class T>
inline void store_lanes(T* p, Lanes<V> v) {
  for (int i = 0; i < kParts; ++i) store(p + i * int(sizeof(V) / sizeof(T)), v.part[i]);
}
inline D8 load_double(const double* p) { return load_lanes<Doubles>(p); }
inline D8 load_double(const float* p) {
  D8 v;
  for (int i = 0; i < kParts; ++i) v.part[i] = __builtin_convertvector(load<HalfFloats>(p + i * kLanes), Doubles);
  return v;
}

inline double total(D8 v) {
  double l[8];
  store_lanes(l, v);
  return ((l[0] + l[4]) + (l[2] + l[6])) + ((l[1] + l[5]) + (l[3] + l[7]));
}

// Round to the nearest integer, |v| < 2^51, by adding and subtracting 1.5 * 2^52.
inline D8 nearest(D8 v) {
  const double shift = 6755399441055744.0;
  return (v + shift) + -shift;
}
