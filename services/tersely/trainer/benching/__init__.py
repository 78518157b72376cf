"""`tersely bench learner`: what the shared prompt gains, and our whole step beside a peer's, measured in turns."""
