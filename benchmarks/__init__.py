"""Problem sets and side-by-side benchmarks against peers."""
