"""The checkpoint channel: snapshots the trainer holds, the service that streams them, the client that checks them."""
