"""The gRPC ground: servers on a thread of their own, channels with keepalive, errors that keep their kind."""
