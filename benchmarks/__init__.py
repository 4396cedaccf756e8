"""What mmfast is measured with: the data, the peers' adapters, and the two ways of timing them.

``python -m pytest benchmarks --benchmark-enable`` measures every provider by itself, and
``python -m benchmarks.interleaved`` all of them side by side. Both check every result against float64 before they
time anything.
"""
