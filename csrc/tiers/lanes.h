// Vectors of 8 doubles and of 16 floats for what every tier compiles from the same text (the other headers here).
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

// What each tier defines: instructions for which compilers have no good notation of their own.
inline Doubles widen(HalfFloats v);
inline Doubles widen(HalfInts v);
inline HalfInts low_half(Ints v);
inline HalfInts high_half(Ints v);
inline void store_narrow(int8_t* p, Ints v);  // v in the range of the type
inline void store_narrow(int16_t* p, Ints v);
inline unsigned lane_bits(Ints mask);              // one bit for each lane of a comparison
inline unsigned at_least(Floats a, Floats b);      // the same of a >= b
inline void add_pairs(Ints& acc, Ints a, Ints b);  // acc += products of two pairs of 16-bit integers

// Inlined, an inner loop is short of registers.
#define MMFAST_ALONE __attribute__((noinline))

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
template <class V, class T>
inline Lanes<V> operator+(Lanes<V> a, T b) {
  for (int i = 0; i < kParts; ++i) a.part[i] += b;
  return a;
}
template <class V, class T>
inline Lanes<V> operator*(Lanes<V> a, T b) {
  for (int i = 0; i < kParts; ++i) a.part[i] *= b;
  return a;
}
template <class V>
inline Lanes<V> larger_magnitude(Lanes<V> a, Lanes<V> b) {  // of a, which is not negative, and |b|
  for (int i = 0; i < kParts; ++i) {
    const V magnitude = b.part[i] < 0 ? -b.part[i] : b.part[i];
    a.part[i] = magnitude > a.part[i] ? magnitude : a.part[i];
  }
  return a;
}
template <class T>
inline T clamp(T a, T limit) {  // NaN to limit
  const T high = a <= limit ? a : limit;
  return high >= -limit ? high : -limit;
}
template <class V, class T>
inline Lanes<V> clamp(Lanes<V> a, T limit) {
  for (int i = 0; i < kParts; ++i) {
    const V high = a.part[i] <= limit ? a.part[i] : V{} + limit;
    a.part[i] = high >= -limit ? high : V{} - limit;
  }
  return a;
}

// Round to the nearest integer, |v| < 2^22 or 2^51, by adding and subtracting 1.5 * 2^23 or 2^52.
inline float nearest(float v) { return (v + 12582912.0f) - 12582912.0f; }
inline double nearest(double v) { return (v + 6755399441055744.0) - 6755399441055744.0; }
inline F16 nearest(F16 v) { return (v + 12582912.0f) + -12582912.0f; }
inline D8 nearest(D8 v) { return (v + 6755399441055744.0) + -6755399441055744.0; }

inline void store_digits(int8_t* p, D8 digits) {
  int32_t wide[8];
  for (int i = 0; i < kParts; ++i) store(wide + i * kLanes, __builtin_convertvector(digits.part[i], HalfInts));
  for (int k = 0; k < 8; ++k) p[k] = int8_t(wide[k]);
}
inline void store_digits(int8_t* p, F16 digits) {
  for (int i = 0; i < kParts; ++i) store_narrow(p + i * 2 * kLanes, __builtin_convertvector(digits.part[i], Ints));
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
inline Doubles load_vector(const double* p) { return load<Doubles>(p); }
inline Ints load_vector(const int32_t* p) { return load<Ints>(p); }
inline D8 load_wide(const double* p) { return load_lanes<Doubles>(p); }
inline F16 load_wide(const float* p) { return load_lanes<Floats>(p); }
inline D8 load_double(const double* p) { return load_wide(p); }
inline D8 load_double(const float* p) {
  D8 v;
  for (int i = 0; i < kParts; ++i) v.part[i] = widen(load<HalfFloats>(p + i * kLanes));
  return v;
}
inline D8 load_double(const int32_t* p) {
  D8 v;
  for (int i = 0; i < kParts; ++i) v.part[i] = widen(load<HalfInts>(p + i * kLanes));
  return v;
}

inline void store_double(double* p, D8 v) { store_lanes(p, v); }
inline void store_double(float* p, D8 v) {
  for (int i = 0; i < kParts; ++i) store(p + i * kLanes, __builtin_convertvector(v.part[i], HalfFloats));
}

template <class T>
inline T total(const T* l) {  // of 8
  return ((l[0] + l[4]) + (l[2] + l[6])) + ((l[1] + l[5]) + (l[3] + l[7]));
}
inline double total(D8 v) {
  double l[8];
  store_lanes(l, v);
  return total(l);
}
inline float total(F16 v) {
  float l[16];
  store_lanes(l, v);
  return total(l) + total(l + 8);
}
