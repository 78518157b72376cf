"""The process that computes rewards: the ring's consumer of completions, and a gRPC door for anyone's summaries."""
