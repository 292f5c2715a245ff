"""From settings to an exchange that can be asked."""

from __future__ import annotations

from seawall.core.errors import Fatal
from seawall.perceptual_hashing.exchanges import credentials
from seawall.perceptual_hashing.exchanges.records import Exchange
from seawall.perceptual_hashing.exchanges.settings import ExchangeSettings
from seawall.perceptual_hashing.exchanges.transport import BoundedSession, check_url


def connect(name: str, settings: ExchangeSettings) -> Exchange:
    """The exchange ``name``. Nothing is sent yet.

    Raises Fatal: credentials, an address without TLS, an unknown environment.
    """
    base_url = None if settings.base_url is None else check_url(settings.base_url)

    def session(url: str) -> BoundedSession:
        return BoundedSession(settings.http, url)

    def secrets(*keys: str, optional: tuple[str, ...] = ()) -> credentials.Secrets:
        return credentials.load(
            name, keys, optional=optional, file=settings.credentials_file, variable=settings.credentials_variable
        )

    match settings.kind:
        case "ncmec":
            from seawall.perceptual_hashing.exchanges import ncmec

            environment = settings.environment or ""
            if environment not in ncmec.ENVIRONMENTS:
                known = ", ".join(ncmec.ENVIRONMENTS)
                raise Fatal("BAD_SETTINGS", f"exchange {name}: environment must be one of {known}")
            return ncmec.NcmecExchange(
                secrets("user", "password"),
                environment,
                session=session,
                base_url=base_url,
                members=settings.members,
            )
        case "stopncii":
            from seawall.perceptual_hashing.exchanges import stopncii

            return stopncii.StopNciiExchange(
                secrets("subscription_key", "fetch_key", optional=("feedback_key",)),
                session=session,
                base_url=base_url or stopncii.BASE_URL,
            )
        case "threatexchange":
            from seawall.perceptual_hashing.exchanges import meta_threatexchange

            return meta_threatexchange.MetaThreatExchange(
                secrets("access_token"),
                settings.privacy_group or 0,
                session=session,
                base_url=base_url or meta_threatexchange.BASE_URL,
            )
