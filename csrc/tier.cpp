// Choose the tier once: the fastest that this processor and operating system support, or MMFAST_CPU_TIER.
#include "tier.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace mmfast {

#if defined(__x86_64__)
extern const Tier kAvx512Vnni, kAvx2;
#elif defined(__aarch64__)
extern const Tier kNeon;
#endif
extern const Tier kPortable;

const Tier* const kTiers[] = {
#if defined(__x86_64__)
    &kAvx512Vnni,
    &kAvx2,
#elif defined(__aarch64__)
    &kNeon,
#endif
    &kPortable,
    nullptr,
};

namespace {

const Tier* find(const std::string& name, const std::string& setting) {
  std::string names;
  for (const Tier* const* tier = kTiers; *tier; ++tier) {
    if (!(*tier)->available()) continue;
    if (name == (*tier)->name) return *tier;
    names += std::string(names.empty() ? "" : ", ") + (*tier)->name;
  }
  throw std::invalid_argument(setting + " must be one of the tiers this machine has (" + names + "), got '" + name +
                              "'");
}

const Tier* initial() {
  const char* forced = std::getenv("MMFAST_CPU_TIER");
  if (forced && *forced) return find(forced, "MMFAST_CPU_TIER");
  const Tier* const* tier = kTiers;
  while (!(*tier)->available()) ++tier;  // the portable tier always is
  return *tier;
}

std::atomic<const Tier*>& chosen() {
  static std::atomic<const Tier*> tier{initial()};
  return tier;
}

}  // namespace

const Tier& current_tier() { return *chosen().load(); }

std::vector<std::string> available_tiers() {
  std::vector<std::string> names;
  for (const Tier* const* tier = kTiers; *tier; ++tier)
    if ((*tier)->available()) names.emplace_back((*tier)->name);
  return names;
}

void select_tier(const std::string& name) { chosen().store(find(name, "name")); }

}  // namespace mmfast
