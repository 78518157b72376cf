"""Who may join, and who may call what."""

from __future__ import annotations

from tersely.errors.network import RpcError


class IdentityError(RpcError):
    """Certificates, tokens and roles."""


class IdentityMissing(IdentityError):
    """The machine has no certificate for what it should do, or no certificate authority to make one with."""

    kind, exit_code = "identity_missing", 104


class TokenRefused(IdentityError):
    """A join token that is malformed, expired, used or unknown."""

    kind, exit_code = "token_refused", 105


class AuthorityMismatch(IdentityError):
    """Who answers is not of the certificate authority that the token names."""

    kind, exit_code = "authority_mismatch", 106


class AccessDenied(IdentityError):
    """The caller's role may not make this call."""

    kind, exit_code = "access_denied", 107


class CertificateRefused(IdentityError):
    """The caller's certificate was revoked, has expired, or is none of ours."""

    kind, exit_code = "certificate_refused", 108


class IdentityInvalid(IdentityError):
    """Files of an identity that are damaged, readable by others, or in the way of new ones."""

    kind, exit_code = "identity_invalid", 109
