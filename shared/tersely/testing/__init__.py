"""Helpers for tests of tersely and of plugins; nothing here runs in production."""
