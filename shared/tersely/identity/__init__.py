"""Who a node is: a certificate authority, join tokens, a certificate per role, and the list of those revoked.

Everything here needs the package `cryptography`; it is imported only where TLS is used.
"""
