"""The gRPC ground: servers on a thread of their own, channels with keepalive, errors that keep their kind."""

import os

# gRPC's own log has a line for every handshake that fails: any stranger could fill the disk with them.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
