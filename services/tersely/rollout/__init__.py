"""The rollout worker: leases prompt groups, samples their completions, and swaps weights without a restart."""
