"""Which servers are believed over https, and in words why one is not."""

from __future__ import annotations

import functools
import os
import ssl
from collections.abc import Iterator
from pathlib import Path

from qmpkit.errors import CertificateWrong, Fault, HostLacks, PullFailed, SpecInvalid

__all__ = ["tls_context", "tls_failure"]

_NOT_YET, _EXPIRED = 9, 10  # OpenSSL's X509_V_ERR_…
_ANOTHERS = (62, 63, 64)  # name, mail, address
_FILE = "SSL_CERT_FILE"
_AUTHORITY = "if you trust its authority, name that one's certificate: --ca-file, or SSL_CERT_FILE"


def tls_context(ca_file: Path | None) -> ssl.SSLContext:
    """The authorities that this host trusts, and those of *ca_file*; blocking.

    The host's are where OpenSSL has them, or SSL_CERT_FILE and SSL_CERT_DIR say; httpx would
    bring its own.  `SpecInvalid` for a *ca_file*, `HostLacks` for an SSL_CERT_FILE that cannot
    be read.
    """
    changed = tuple(_changed(Path(file)) for file in (ca_file, os.environ.get(_FILE)) if file)
    return _made(ca_file, os.environ.get(_FILE, ""), os.environ.get("SSL_CERT_DIR", ""), changed)


def _changed(file: Path) -> int:
    return file.stat().st_mtime_ns if file.exists() else 0


@functools.cache  # reading them takes 20 ms
def _made(
    ca_file: Path | None, file: str, _folder: str, _changed: tuple[int, ...]
) -> ssl.SSLContext:
    if file:  # OpenSSL says nothing when it cannot read it, and then trusts nobody
        try:
            ssl.create_default_context(cafile=file)
        except OSError as error:  # an SSLError is one, too
            raise HostLacks(f"{_FILE} names {file!r}, {_why(error)}", "name another") from error
    context = ssl.create_default_context()
    if ca_file is not None:
        try:
            context.load_verify_locations(cafile=ca_file)
        except OSError as error:
            fault = Fault(
                "ca_file", f"{str(ca_file)!r} {_why(error)}", "a file of PEM certificates"
            )
            raise SpecInvalid([fault]) from error
    return context


def _why(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return "has no certificate that could be read"
    return f"cannot be read: {(error.strerror or str(error)).lower()}"


def tls_failure(error: BaseException, shown: str) -> PullFailed | None:
    """What *error* of a connection says of the server's TLS, which asking again would not change.

    None when it is about something else.
    """
    found = next((each for each in _causes(error) if isinstance(each, ssl.SSLError)), None)
    if isinstance(found, ssl.SSLCertVerificationError):
        return CertificateWrong(shown, *_certificate(found))
    if found is not None and found.reason == "WRONG_VERSION_NUMBER":
        return PullFailed(shown, "there is no TLS at this port", "is it http://… ?")
    return None


def _certificate(error: ssl.SSLCertVerificationError) -> tuple[str, str]:
    said = error.verify_message
    if error.verify_code in (_NOT_YET, _EXPIRED):
        return f"the server's certificate is not valid now: {said}", "is this host's clock right?"
    if error.verify_code in _ANOTHERS:
        return f"the server's certificate is another one's: {said}", "is the address right?"
    return f"the server's certificate is not trusted: {said}", _AUTHORITY


def _causes(error: BaseException) -> Iterator[BaseException]:
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__
